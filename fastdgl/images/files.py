"""Files below a folder or in a zip, by name. What is in them is not looked at here."""

import hashlib
import lzma
import os
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .decoding import MAX_PIXELS
from .errors import DatasetError, cause

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# ways to reach one folder by links; more are a maze of them
MAX_WAYS = 100
# of a file of more bytes, the image would be too large as well
MAX_BYTES = 4 * MAX_PIXELS


class PerProcess:
    """A file that each process opens for itself: a shared one has one position, and reads would mix.

    Args:
        opener, arguments: `opener(*arguments)` opens it, at the first call in a process.
    """

    def __init__(self, opener: Callable[..., Any], *arguments: Any):
        self._opener, self._arguments = opener, arguments
        self._opened, self._process = None, None

    def __call__(self) -> Any:
        if self._process != os.getpid():
            self._opened, self._process = self._opener(*self._arguments), os.getpid()
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None, "_process": None}


class Folder:
    """The files below a folder, by their path relative to it, with forward slashes; links are followed.

    folders: Names of the folders directly below.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self.names = sorted(self._names_below())
        except RecursionError:
            raise DatasetError(f"{path} holds folders within folders, too deep to be a dataset") from None
        self.folders = {item.name for item in path.iterdir() if item.is_dir()}

    def read(self, name: str) -> bytes:
        try:
            file = self.path / name
            found = file.stat()
            # a pipe would be waited for, and a device may have no end
            if not stat.S_ISREG(found.st_mode):
                raise DatasetError("is no regular file")
            _check_bytes(found.st_size)
            return file.read_bytes()
        except OSError as error:
            raise DatasetError(f"cannot be read ({cause(error)})") from error

    def checksum(self, name: str) -> tuple[int, int]:
        """Bytes of a file, and their CRC-32."""
        data = self.read(name)
        return len(data), zlib.crc32(data)

    def _names_below(self) -> Iterator[str]:
        # what is above each folder that is still to come
        above = {os.fspath(self.path): frozenset()}
        ways = Counter()
        for folder, folders, names in os.walk(self.path, onerror=_refuse_folder, followlinks=True):
            found = os.stat(folder)
            identity = found.st_dev, found.st_ino
            ways[identity] += 1
            if identity in above[folder] or ways[identity] > MAX_WAYS:
                raise DatasetError(f"{folder} is reached through links that lead back or over and over to the same folder; remove them")
            on_the_way = above.pop(folder) | {identity}
            above.update((os.path.join(folder, name), on_the_way) for name in folders)
            below = Path(folder).relative_to(self.path)
            # a folder at a time: a path for each of a million files takes long
            prefix = "" if below == Path() else f"{below.as_posix()}/"
            yield from (prefix + name for name in names)


class Archive:
    """The files of a zip, by name.

    folders: Names of the folders at the top.
    """

    def __init__(self, path: Path):
        self.path = path
        self._open = PerProcess(zipfile.ZipFile, path)
        try:
            entries = self._open().infolist()
        except (OSError, NotImplementedError, ValueError, struct.error, zipfile.BadZipFile) as error:
            raise DatasetError(
                f"{path} is neither a folder nor a zip that opens ({cause(error)}): expected a dataset; "
                "run `fastdgl dataset` to prepare the images"
            ) from error
        # not is_dir(), which fails where a damaged name is empty
        self.names = sorted({entry.filename for entry in entries if not entry.filename.endswith("/")})
        self.folders = {entry.filename.split("/")[0] for entry in entries if "/" in entry.filename}

    def read(self, name: str) -> bytes:
        try:
            archive = self._open()
            _check_bytes(archive.getinfo(name).file_size)
            return archive.read(name)
        except DatasetError:
            raise
        # RuntimeError: encrypted, or compressed in a way Python does not know; ValueError: a position or name that cannot be
        except (OSError, EOFError, KeyError, RuntimeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
            raise DatasetError(f"cannot be read ({cause(error)})") from error

    def checksum(self, name: str) -> tuple[int, int]:
        """Bytes of a file, and their CRC-32, as the zip lists them."""
        entry = self._open().getinfo(name)
        return entry.file_size, entry.CRC


def sha256_of_file(path: Path) -> str:
    """The checksum of a file, in hex; OSError where it cannot be read."""
    checksum = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(2**20):
            checksum.update(data)
    return checksum.hexdigest()


def fingerprint_of_file(path: Path) -> str:
    """The checksum of a file that holds images; a DatasetError where it cannot be read."""
    try:
        return sha256_of_file(path)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({cause(error)})") from error


def is_hidden(name: str) -> bool:
    """Whether a file is the system's and not the user's, as the `__MACOSX/._a.png` that macOS adds to zips."""
    return any(part == "__MACOSX" or (part.startswith(".") and part != ".") for part in name.split("/"))


def is_image(name: str) -> bool:
    """Whether the name ends like an image's."""
    return name.lower().endswith(SUFFIXES)


def class_folder(name: str) -> str | None:
    """The folder at the top that a file is in, or None for one at the top itself."""
    folder, slash, _ = name.partition("/")
    return folder if slash else None


def _refuse_folder(error: OSError):
    raise DatasetError(f"{error.filename} cannot be read ({cause(error)}): expected a folder of images") from error


def _check_bytes(size: int):
    if size > MAX_BYTES:
        raise DatasetError(f"has {size} bytes, expected at most {MAX_BYTES}")
