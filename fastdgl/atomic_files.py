"""Files and folders that appear whole or not at all, and what is said of a disk that has no room for them."""

import errno
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
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

    Where something is raised inside, `path` stays as it was, and nothing is left behind; where the power fails, `path` is
    what it was or what it was to be.

    Raises:
        DiskFullError: There is no room for it.
        OSError: It cannot take its place: a folder cannot that of one with something in it.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        with writing(path):
            yield unfinished
            put_in_place(unfinished, path)
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)


def put_in_place(unfinished: Path, path: Path) -> None:
    """Rename a file or folder to `path`, once all that it holds is on the disk; then the new name is, too.

    Without that, a machine that loses its power may come back with the new name and nothing under it.

    Raises:
        OSError: It cannot take that place, or the disk did not take what was written.
    """
    items = [*unfinished.rglob("*"), unfinished]
    open_to_others([item for item in items if item.is_file()], path)
    for item in items:
        flush(item)
    os.replace(unfinished, path)
    flush(path.parent)


def open_to_others(files: Sequence[Path], path: Path) -> None:
    """Give files the rights that the umask leaves to any new file; safetensors writes its own for their owner alone.

    Args:
        path: A file beside it is made and removed to ask the system, since to read the umask a process must change it.
    """
    probe = path.with_name(f"{path.name}.{os.getpid()}.rights{UNFINISHED}")
    handle = os.open(probe, os.O_CREAT | os.O_WRONLY, 0o666)
    try:
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)
        probe.unlink()
    for file in files:
        if stat.S_IMODE(file.stat().st_mode) != mode:
            file.chmod(mode)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # some network file systems have no such thing
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
