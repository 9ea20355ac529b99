"""Paths as people write them, where no shell has read them first."""

import os


def expanded(path: str | os.PathLike) -> str:
    """Return a path with `~` and `~user` at its start replaced by the home folder; `./~` is a folder of that name.

    A path whose user is unknown is returned as it is.
    """
    return os.path.expanduser(os.fspath(path))
