"""Files and folders that appear whole or not at all, and what is said of a disk that has no room for them."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# the end of the name of what is not whole yet
UNFINISHED = ".tmp"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskFullError(OSError):
    """A file for which there is no room; the message names it, and says how much room there is."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, `path` or a part of it is written.

    Raises:
        DiskFullError: There is no room for it. The system's own error names no file.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise DiskFullError(f"{path}: cannot be written: {error.strerror}; {free_space(path)} free") from None


def free_space(path: Path) -> str:
    """How much room there is on the disk of the folder that `path` is in."""
    return f"{shutil.disk_usage(path.parent).free / 2**20:,.1f} MiB"


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """Where to write the file or folder that is to be at `path`: a name beside it, which takes its place at the end.

        with atomically(folder / "config.yaml") as unfinished:
            unfinished.write_text(text)

    Where something is raised inside, `path` stays as it was, and nothing is left behind.

    Raises:
        DiskFullError: There is no room for it.
        OSError: It cannot take its place: a folder cannot that of one with something in it.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        with writing(path):
            yield unfinished
            os.replace(unfinished, path)
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)
