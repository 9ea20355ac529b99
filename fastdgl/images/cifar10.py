"""CIFAR-10 in its authors' binary version: `cifar-10-batches-bin` with `data_batch_1.bin` ... and `batches.meta.txt`.

Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images", and the page of the dataset.
"""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from .errors import DatasetError, cause
from .files import fingerprint_of_file
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

    def __len__(self) -> int:
        return int(self._starts[-1])

    def name(self, i: int) -> str:
        file, record = self._place(i)
        return f"image {record} of {self._files[file].name}"

    def image(self, i: int) -> Image.Image:
        file, record = self._place(i)
        try:
            # not mapped into memory: where a mapped file has been cut short, reading it ends the process
            with self._files[file].open("rb") as opened:
                opened.seek(record * RECORD)
                data = opened.read(RECORD)
        except OSError as error:
            raise DatasetError(f"cannot be read ({cause(error)})") from error
        if len(data) != RECORD:
            raise DatasetError(f"is {len(data)} bytes instead of {RECORD}: the file has been cut short")
        pixels = np.frombuffer(data, np.uint8)[1:].reshape(CHANNELS, SIZE, SIZE)
        return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))

    def fingerprint(self) -> str:
        return hashlib.sha256("".join(map(fingerprint_of_file, self._files)).encode()).hexdigest()

    def labels(self) -> Labels:
        values = np.concatenate([_labels(file) for file in self._files])
        if len(values) != len(self):
            raise DatasetError(f"{self.path} has {len(values)} labels for {len(self)} images: its files have changed while they were read")
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


def _labels(file: Path) -> np.ndarray:
    """The labels in a file, `uint8 [images]`."""
    try:
        return np.fromfile(file, np.uint8)[::RECORD]
    except OSError as error:
        raise DatasetError(f"{file} cannot be read ({cause(error)})") from error
