"""Files that are fetched once: where they are kept, and that they are the ones meant."""

import hashlib
import os
import re
import sys
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

from tqdm import tqdm

from .atomic_files import atomically

# seconds without a byte
PATIENCE = 60
# of any scheme, and of those that are fetched
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
FETCHED = ("http", "https")
CHECKSUM = ".sha256"
# what a server sends in place of a file that asks for a click, a login or another address
WEB_PAGES = (b"<!doctype html", b"<html")


class DownloadError(OSError):
    """A file that did not come, in one sentence."""


def cache_folder() -> Path:
    """Where the user's programs keep what they can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastdgl"


def is_address(source: str | os.PathLike) -> bool:
    """Return whether this is the address of a file, not its path."""
    return isinstance(source, str) and ADDRESS.match(source) is not None


def fetched(url: str, cache: Path | None = None) -> Path:
    """Where the file of an address lies on this machine: fetched now, or before. Its SHA-256 is printed on standard error.

    The checksum is kept beside the file, in the form of `sha256sum`; a file that has changed since is rejected.

    Args:
        cache: Default: `cache_folder()`.

    Raises:
        DownloadError: It cannot be fetched or kept, is a web page, or has changed since.
    """
    parts = urlsplit(url)
    if parts.scheme.lower() not in FETCHED or not parts.netloc:
        raise DownloadError(f"{url}: is no address that fastdgl fetches from; expected http:// or https://, or the path of a file")
    name = re.sub(r"[^\w.-]", "_", unquote(parts.path).rpartition("/")[2]) or "network"
    path = (cache or cache_folder()) / "networks" / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    kept = path.with_name(path.name + CHECKSUM)
    if path.exists() and kept.exists():
        found, expected = sha256_of(path), kept.read_text(encoding="utf-8").partition(" ")[0]
        if found != expected:
            raise DownloadError(f"{path}, fetched from {url}, has the SHA-256 {found}, and had {expected} when it came; remove it to fetch it again")
    else:
        found = download(url, path)
        with atomically(kept) as unfinished:
            unfinished.write_text(f"{found}  {name}\n", encoding="utf-8")
    print(f"{url}: SHA-256 {found}, kept at {path}", file=sys.stderr)
    return path


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, read piece by piece."""
    checksum = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(2**20):
            checksum.update(data)
    return checksum.hexdigest()


def download(url: str, path: Path, sha256: str | None = None) -> str:
    """Fetch a file, with a progress bar on standard error; under its name there is never half of it, nor another one.

    Args:
        sha256: What its checksum must be; None takes any file but a web page.

    Returns:
        Its SHA-256.

    Raises:
        DownloadError: It cannot be fetched or written, was cut short, or has another checksum; nothing is left behind.
    """
    remedy = f"try again, or fetch it by other means and put it at {path}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomically(path) as unfinished:
            received, size, found = fetch(url, unfinished, path.name)
            if size is not None and received < size:
                raise DownloadError(f"{url} was cut short after {received} of {size} bytes; {remedy}")
            with open(unfinished, "rb") as file:
                start = file.read(100).lstrip().lower()
            if sha256 is None and start.startswith(WEB_PAGES):
                raise DownloadError(f"{url} gives a web page and no file; give the address that the page's download button leads to")
            if sha256 is not None and found != sha256:
                raise DownloadError(f"{url} gives a file with the SHA-256 {found}, expected {sha256}, so it was not kept; {remedy}")
            return found
    except DownloadError:
        raise
    except (OSError, HTTPException) as error:
        reason = error.reason if type(error) is URLError else error
        raise DownloadError(f"{url} cannot be downloaded ({reason}); {remedy}") from None


def fetch(url: str, path: Path, name: str) -> tuple[int, int | None, str]:
    """Write what comes to `path`: how many bytes did, how many were announced, if any were, and their SHA-256."""
    received, checksum = 0, hashlib.sha256()
    with urlopen(url, timeout=PATIENCE) as response, open(path, "wb") as file:
        size = response.length
        with tqdm(total=size, desc=name, unit="B", unit_scale=True, disable=None) as bar:
            while data := response.read(2**20):
                file.write(data)
                checksum.update(data)
                received += len(data)
                bar.update(len(data))
    return received, size, checksum.hexdigest()
