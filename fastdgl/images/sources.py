"""Where images come from, decided by what is there."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from ..paths import expanded
from .cifar10 import Cifar10, holds_cifar10
from .errors import DatasetError
from .files import Archive, Folder
from .hdf5 import Hdf5, is_hdf5
from .image_files import ImageFiles
from .labels import Labels


class Source(Protocol):
    """Images where they lie, each read when it is asked for. A source may be pickled and forked.

    others: Names of what lies among the images and is none.
    """

    path: Path
    others: Sequence[str]

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """What to call image `i` in a sentence."""

    def image(self, i: int) -> Image.Image:
        """Image `i`, its pixels perhaps not yet decoded; a DatasetError says what is wrong with it, but not its name."""

    def fingerprint(self) -> str:
        """A checksum of the images and their order, in hex; a DatasetError says what cannot be read."""

    def labels(self) -> Labels:
        """The labels of all images, or a DatasetError."""


def dataset_path(path: str | os.PathLike) -> Path:
    """Where a dataset lies: `path` itself, or for the word "digits" the zip that comes with this package.

    A folder of that name is reached as "./digits".
    """
    if path == "digits":
        return Path(__file__).parents[1] / "assets" / "digits.zip"
    return Path(expanded(path))


def open_source(path: str | os.PathLike) -> Source:
    """The images at `path`: CIFAR-10's binary files, an HDF5 file, or else a folder or zip of images.

    Raises:
        DatasetError: There is none of these.
    """
    path = dataset_path(path)
    # os.path.exists also answers for paths no file can have
    if not os.path.exists(path):
        raise DatasetError(f"{path} does not exist: expected a folder or zip of images; check the path")
    # a pipe would be waited for
    if not path.is_dir() and not path.is_file():
        raise DatasetError(f"{path} is neither a folder nor a regular file: expected a dataset; check the path")
    if path.is_dir():
        return Cifar10(path) if holds_cifar10(path) else ImageFiles(Folder(path))
    return Hdf5(path) if is_hdf5(path) else ImageFiles(Archive(path))
