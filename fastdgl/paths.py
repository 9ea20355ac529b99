"""Paths as people write them, where no shell has read them first."""

import os
from pathlib import Path

import click


def expanded(path: str | os.PathLike) -> str:
    """Return a path with `~` and `~user` at its start replaced by the home folder; `./~` is a folder of that name.

    A path whose user is unknown is returned as it is.
    """
    return os.path.expanduser(os.fspath(path))


def why_not_writable(path: Path) -> str | None:
    """Return why no file or folder can be made at `path`, and what to do; None where one can."""
    parent = path.absolute().parent
    # os.path, which answers where a folder on the way may not be entered
    if not os.path.exists(parent):
        return f"there is no folder {parent}; create it first, or choose another place"
    if not os.path.isdir(parent):
        return f"{parent} is a file, expected a folder; choose another place"
    if not os.access(parent, os.W_OK | os.X_OK):
        return f"{parent} is read-only; make it writable, or choose another place"
    return None


class UserPath(click.ParamType):
    """A path on the command line, as a Path; `~` is the home folder, as in `--outdir=~/runs`, which no shell expands."""

    name = "path"

    def convert(self, value, param, ctx) -> Path:
        return Path(expanded(value))
