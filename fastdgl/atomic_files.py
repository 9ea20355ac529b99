"""Files and folders that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """Where to write the file or folder that is to be at `path`: a name beside it, which takes its place at the end.

        with atomically(folder / "config.yaml") as unfinished:
            unfinished.write_text(text)

    Where something is raised inside, `path` stays as it was, and nothing is left behind.

    Raises:
        OSError: It cannot take its place: a folder cannot that of one with something in it.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)
