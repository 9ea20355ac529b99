"""Files below a folder or in a zip, by name. What is in them is not looked at here."""

import hashlib
import lzma
import os
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .decoding import MAX_PIXELS, suffixes
from .errors import DatasetError, cause

# what systems leave beside files, in lower case; besides names that begin with a dot
OF_SYSTEMS = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle", "$recycle.bin", "icon\r", "lost+found",
              "system volume information"}
# of a zip entry: its name is UTF-8; its type of an extra field that repeats the name in UTF-8
UTF8_FLAG, UNICODE_PATH = 0x800, 0x7075
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

    folders: The folders below, at any depth, in the same form.
    """

    def __init__(self, path: Path):
        self.path = path
        self.folders: set[str] = set()
        try:
            self.names = sorted(self._names_below())
        except RecursionError:
            raise DatasetError(f"{path} holds folders within folders, too deep to be a dataset") from None

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
            self.folders.update(prefix + name for name in folders)
            yield from (prefix + name for name in names)


class Archive:
    """The files of a zip, by name, with forward slashes whatever system wrote it.

    folders: The folders in it, at any depth.
    """

    def __init__(self, path: Path):
        self.path = path
        self._open = PerProcess(zipfile.ZipFile, path)
        try:
            entries = self._open().infolist()
        except (OSError, NotImplementedError, ValueError, struct.error, zipfile.BadZipFile) as error:
            if _is_tar(path):
                raise DatasetError(f"{path} is a tar archive: expected a folder or a zip; unpack it, and give the folder") from None
            raise DatasetError(
                f"{path} is neither a folder nor a zip that opens ({cause(error)}): expected a dataset; "
                "run `fastdgl dataset` to prepare the images"
            ) from error
        self._entries: dict[str, str] = {}
        self.folders: set[str] = set()
        for entry, name in zip(entries, _names_of_entries(entries)):
            # not is_dir(), which fails where a damaged name is empty
            if name.endswith("/"):
                self.folders.add(name.rstrip("/"))
            elif self._entries.setdefault(name, entry.filename) != entry.filename:
                raise DatasetError(f"{path} holds {self._entries[name]!r} and {entry.filename!r}, which are one name with forward slashes: "
                                   f"expected different names; rename one of them")
        self.names = sorted(self._entries)
        self.folders.update(above for name in self.names for above in _folders_of(name))

    def read(self, name: str) -> bytes:
        try:
            archive = self._open()
            entry = archive.getinfo(self._entries[name])
            _check_bytes(entry.file_size)
            return archive.read(entry)
        except DatasetError:
            raise
        # RuntimeError: encrypted, or compressed in a way Python does not know; ValueError: a position or name that cannot be
        except (OSError, EOFError, KeyError, RuntimeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
            raise DatasetError(f"cannot be read ({cause(error)})") from error

    def checksum(self, name: str) -> tuple[int, int]:
        """Bytes of a file, and their CRC-32, as the zip lists them."""
        entry = self._open().getinfo(self._entries[name])
        return entry.file_size, entry.CRC


def _names_of_entries(entries: list[zipfile.ZipInfo]) -> list[str]:
    """Return the names of a zip's entries with forward slashes.

    Windows writes backslashes. Old programs write names in the code page of their country, without saying which; in those of
    East Asia a backslash may be the second half of a letter, so there it separates only where no name has a forward slash.
    """
    decoded = [_decoded_name(entry) for entry in entries]
    slashes = any("/" in name for name, _ in decoded)
    names = []
    for name, raw in decoded:
        if raw is None or not slashes:
            name = name.replace("\\", "/")
        else:
            name = "".join("/" if letter == "\\" and (i == 0 or raw[i - 1] < 0x80) else letter for i, letter in enumerate(name))
        parts = [part for part in name.split("/") if part not in ("", ".")]
        # an entry without any name stays one, and is met where it is read
        names.append("/".join(parts) + ("/" if parts and name.endswith("/") else "") if parts else name)
    return names


def _decoded_name(entry: zipfile.ZipInfo) -> tuple[str, bytes | None]:
    """Return the name of an entry, and its bytes where they are in a code page that nobody knows."""
    name = entry.filename
    if name.isascii() or entry.flag_bits & UTF8_FLAG:
        return name, None
    extra = _unicode_path(entry.extra)
    if extra is not None:
        return extra, None
    try:
        # Python takes what is not marked as UTF-8 for code page 437, but macOS and Linux write UTF-8 without the mark
        raw = name.encode("cp437")
    except UnicodeEncodeError:
        return name, None
    try:
        return raw.decode("utf-8"), None
    except UnicodeDecodeError:
        return name, raw


def _unicode_path(extra: bytes) -> str | None:
    """Return the UTF-8 name in an entry's extra field, if there is one."""
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        if kind == UNICODE_PATH:
            try:
                # a version and a checksum stand before it
                return extra[9:4 + size].decode("utf-8") or None
            except UnicodeDecodeError:
                return None
        extra = extra[4 + size:]
    return None


def _folders_of(name: str) -> Iterator[str]:
    """Yield the folders that a file lies in, the deepest first."""
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
        return False


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
    return any(part.lower() in OF_SYSTEMS or (part.startswith(".") and part != ".") for part in name.split("/"))


def is_image(name: str) -> bool:
    """Whether the name ends like an image's."""
    return name.lower().endswith(suffixes())


def composed(name: str) -> str:
    """Return a name with its accents composed (NFC): macOS stores them apart, other systems do not."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _refuse_folder(error: OSError):
    raise DatasetError(f"{error.filename} cannot be read ({cause(error)}): expected a folder of images") from error


def _check_bytes(size: int):
    if size > MAX_BYTES:
        raise DatasetError(f"has {size} bytes, expected at most {MAX_BYTES}")
