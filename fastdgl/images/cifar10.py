"""CIFAR-10 in its authors' binary version: `cifar-10-batches-bin` with `data_batch_1.bin` ... and `batches.meta.txt`.

Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images", and the page of the dataset.
"""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from .errors import DatasetError, cause
from .files import PerProcess, fingerprint_of_file
from .labels import Labels, class_labels

BATCHES = "data_batch_*.bin"
SIZE = 32
CHANNELS = 3
CLASSES = 10
# a label, then the image's red, green and blue
RECORD = 1 + CHANNELS * SIZE * SIZE  # bytes


class Cifar10:
    """The training images, in the order of the files.

    Raises:
        DatasetError: A file is not a whole number of records, or cannot be read.
    """

    others = ()

    def __init__(self, path: Path):
        self.path = path
        self._files = sorted(path.glob(BATCHES))
        counts = [_count_records(file) for file in self._files]
        # of the first image of each file, and of the one behind the last
        self._starts = np.cumsum([0, *counts])
        self._records = [PerProcess(_open_records, file) for file in self._files]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def name(self, i: int) -> str:
        file, record = self._place(i)
        return f"image {record} of {self._files[file].name}"

    def image(self, i: int) -> Image.Image:
        file, record = self._place(i)
        pixels = self._records[file]()[record, 1:].reshape(CHANNELS, SIZE, SIZE)
        return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))

    def fingerprint(self) -> str:
        return hashlib.sha256("".join(map(fingerprint_of_file, self._files)).encode()).hexdigest()

    def labels(self) -> Labels:
        values = np.concatenate([records()[:, 0] for records in self._records])
        return class_labels(values, self._class_names(), lambda i: f"{self.path} gives {self.name(i)}")

    def _place(self, i: int) -> tuple[int, int]:
        """The file of an image, and its place there."""
        file = int(np.searchsorted(self._starts, i, side="right")) - 1
        return file, i - int(self._starts[file])

    def _class_names(self) -> tuple[str, ...]:
        file = self.path / "batches.meta.txt"
        try:
            names = tuple(file.read_text(encoding="utf-8").split())
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"{file} cannot be read ({cause(error)}): expected the names of the classes") from error
        if len(set(names)) != CLASSES:
            raise DatasetError(f"{file} names {len(set(names))} classes, expected {CLASSES}; unpack the archive again")
        return names


def holds_cifar10(path: Path) -> bool:
    """Whether a folder holds CIFAR-10 in its binary version.

    Raises:
        DatasetError: It is the Python version, whose pickles are not opened.
    """
    if any(path.glob(BATCHES)):
        return True
    if (path / "data_batch_1").is_file() and (path / "batches.meta").is_file():
        raise DatasetError(
            f"{path} holds the Python version of CIFAR-10, whose pickles run code when they are opened: "
            "expected the binary version; take cifar-10-binary.tar.gz"
        )
    return False


def _count_records(file: Path) -> int:
    try:
        size = file.stat().st_size
    except OSError as error:
        raise DatasetError(f"{file} cannot be read ({cause(error)}): expected images; unpack the archive again") from error
    if size == 0 or size % RECORD:
        raise DatasetError(f"{file} has {size} bytes, expected a multiple of {RECORD}, as each image takes; unpack the archive again")
    return size // RECORD


def _open_records(file: Path) -> np.ndarray:
    """`uint8 [images, 1 + 3 * 32 * 32]`, of which the system reads what is looked at."""
    try:
        return np.memmap(file, np.uint8, mode="r").reshape(-1, RECORD)
    except (OSError, ValueError) as error:
        raise DatasetError(f"cannot be read from {file} ({cause(error)})") from error
