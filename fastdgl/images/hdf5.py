"""One HDF5 file in the layout of BigGAN-PyTorch's `I128.hdf5`: `imgs`, uint8 [N, C, R, R], and `labels`, int64 [N]."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .decoding import MAX_PIXELS
from .errors import DatasetError, LabelsMissing, cause
from .files import PerProcess, fingerprint_of_file
from .labels import Labels, class_labels

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SUFFIXES = (".h5", ".hdf5")
# what h5py makes of damaged bytes, besides MemoryError where a file claims more than there can be
DAMAGE = (OSError, RuntimeError, LookupError, TypeError, ValueError, MemoryError)
LAYOUT = "expected uint8 `imgs` [N, C, R, R] and integers `labels` [N], as BigGAN-PyTorch writes them"


class Hdf5:
    """The images of an HDF5 file, in their order there.

    Raises:
        DatasetError: h5py is missing, or the file cannot be read or is laid out otherwise.
    """

    others = ()

    def __init__(self, path: Path):
        self.path = path
        if importlib.util.find_spec("h5py") is None:
            raise DatasetError(f"{path} is an HDF5 file, and reading one needs h5py: install it by `pip install -c constraints.txt -e \".[hdf5]\"`")
        self._open = PerProcess(_open_file, path)
        images = self._dataset("imgs")
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise DatasetError(f"{path} has {images.dtype} `imgs` {list(images.shape)}: {LAYOUT}")
        self._count = len(images)
        pixels = images.shape[2] * images.shape[3]
        if not 0 < pixels <= MAX_PIXELS:
            raise DatasetError(f"{path} has `imgs` of {images.shape[3]}x{images.shape[2]} pixels, expected 1 to {MAX_PIXELS} in all")

    def __len__(self) -> int:
        return self._count

    def name(self, i: int) -> str:
        return f"imgs[{i}]"

    def image(self, i: int) -> Image.Image:
        try:
            pixels = self._dataset("imgs")[i]                         # [C, R, R]
        except DAMAGE as error:
            raise DatasetError(f"cannot be read ({cause(error)})") from error
        return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))

    def fingerprint(self) -> str:
        return fingerprint_of_file(self.path)

    def labels(self) -> Labels:
        labels = self._dataset("labels")
        if labels.dtype.kind not in "iu" or labels.shape != (self._count,):
            raise DatasetError(f"{self.path} has {labels.dtype} `labels` {list(labels.shape)} for {self._count} images: {LAYOUT}")
        try:
            values = labels[:]
        except DAMAGE as error:
            raise DatasetError(f"{self.path} has `labels` that cannot be read ({cause(error)}): {LAYOUT}") from error
        return class_labels(values, None, lambda i: f"{self.path} gives imgs[{i}]")

    def _dataset(self, name: str) -> Any:
        try:
            dataset = self._open().get(name)
            elsewhere = hasattr(dataset, "shape") and (dataset.file != self._open() or dataset.is_virtual or dataset.external)
        except DAMAGE as error:
            raise DatasetError(f"{self.path} has `{name}` that cannot be read ({cause(error)}): {LAYOUT}") from error
        # a file may name any other of this machine, to be read as numbers
        if elsewhere:
            raise DatasetError(f"{self.path} has `{name}` in another file: {LAYOUT}; keep the numbers in this one")
        # a group has none
        if not hasattr(dataset, "shape"):
            raise (LabelsMissing if name == "labels" else DatasetError)(f"{self.path} has no `{name}`: {LAYOUT}")
        return dataset


def is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5 by its first bytes, or claims to be by its name."""
    try:
        with path.open("rb") as file:
            return path.suffix.lower() in SUFFIXES or file.read(len(SIGNATURE)) == SIGNATURE
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({cause(error)}): expected a dataset") from error


def _open_file(path: Path) -> Any:
    import h5py

    try:
        return h5py.File(path, "r")
    except DAMAGE as error:
        raise DatasetError(f"{path} is no HDF5 file that opens ({cause(error)}): {LAYOUT}") from error
