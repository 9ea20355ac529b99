"""Files that are fetched once: where they are kept, and that they are the ones meant."""

import hashlib
import os
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tqdm import tqdm

from ..atomic_files import atomically

# seconds without a byte
PATIENCE = 60


class DownloadError(OSError):
    """A file that did not come, in one sentence."""


def cache_folder() -> Path:
    """Where the user's programs keep what they can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastdgl"


def download(url: str, path: Path, sha256: str) -> None:
    """Fetch a file, with a progress bar on standard error; under its name there is never half of it, nor another one.

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
            if found != sha256:
                raise DownloadError(f"{url} gives a file with the SHA-256 {found}, expected {sha256}, so it was not kept; {remedy}")
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
