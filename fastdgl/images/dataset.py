"""The images and labels of one source, checked to be of one kind."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .decoding import decode, is_power_of_two
from .errors import DatasetError
from .labels import no_labels
from .sources import open_source

# what a pixel of each mode holds; every other mode is for `fastdgl dataset` to convert
CHANNELS = {"L": 1, "RGB": 3}
REMEDY = "run `fastdgl dataset` to prepare the images"


class ImageDataset(torch.utils.data.Dataset):
    """The images of one source: those of files in the order of their sorted names, others in the order they lie in.

    Args:
        path: A folder or zip of images, a folder of CIFAR-10's binary files, an HDF5 file, or "digits" for the digits that
            come with this package; which it is, is decided by what is there.
        resolution: Side of the images in pixels, if they must have this one. Default: what the first image has.
        labels: Whether to read the labels; without them `label_dim` is 0.
        mirror: Whether to count each image a second time, flipped left to right; the flipped follow all the others.

    The first image is decoded here and each other one when it is asked for; every fault is a DatasetError that names the file.
    A dataset may be pickled and forked: no process reads through another's open file.

    Attributes:
        label_dim: Classes, or the length of the labels that are vectors.
        class_names: Of class 0, 1, ..., or None where the source does not tell.
        labels_are_classes: Whether an image has one class, or none; not so where labels are vectors.
    """

    def __init__(
        self, path: str | os.PathLike, *, resolution: int | None = None, labels: bool = False, mirror: bool = False
    ):
        self.source = open_source(path)
        self.name = _stem(self.source.path)
        self.mirror = mirror
        if not len(self.source):
            raise DatasetError(
                f"{self.source.path} holds no images: expected files such as 00000/img00000000.png; check the path or {REMEDY}"
            )
        with self._naming(0):
            self.channels, self.resolution = _layout(self.source.image(0))
            self._pixels(0)
        if resolution not in (None, self.resolution):
            raise DatasetError(
                f"{self.source.path} holds images of {self.resolution}x{self.resolution} pixels, expected "
                f"{resolution}x{resolution}; set the resolution to {self.resolution} or run "
                f"`fastdgl dataset --resolution {resolution}` on the originals"
            )
        self._labels = self.source.labels() if labels else no_labels(len(self.source))
        self.label_dim, self.class_names = self._labels.dim, self._labels.class_names
        self.labels_are_classes = self.label_dim == 0 or self._labels.values.ndim == 1

    def __len__(self) -> int:
        return len(self.source) * (2 if self.mirror else 1)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Image `i`, `uint8 [C, H, W]`, and its label, `float32 [label_dim]`."""
        flipped, unflipped = divmod(range(len(self))[i], len(self.source))
        with self._naming(unflipped):
            pixels = self._pixels(unflipped)
        return np.ascontiguousarray(pixels[:, :, ::-1] if flipped else pixels), self.label(unflipped)

    def label(self, i: int) -> np.ndarray:
        """The label of image `i`, `float32 [label_dim]`; of a class, one-hot."""
        return self._labels.vector(range(len(self))[i] % len(self.source))

    def all_labels(self) -> np.ndarray:
        """The labels of all images, flipped ones not counted, as they were recorded: `int64 [images]` of classes below
        `label_dim`, or `float32 [images, label_dim]` of vectors."""
        return self._labels.values.copy()

    def _pixels(self, i: int) -> np.ndarray:
        image = self.source.image(i)
        if CHANNELS.get(image.mode) != self.channels:
            expected = {1: "grey (L)", 3: "RGB"}[self.channels]
            raise DatasetError(f"has colour mode {image.mode}, expected {expected} like the first image")
        if image.size != (self.resolution, self.resolution):
            raise DatasetError(
                f"has {image.width}x{image.height} pixels, expected {self.resolution}x{self.resolution} like the first image"
            )
        pixels = np.asarray(decode(image)).reshape(self.resolution, self.resolution, self.channels)
        return pixels.transpose(2, 0, 1)                              # [C, H, W]

    @contextmanager
    def _naming(self, i: int) -> Iterator[None]:
        """Make what is wrong with one image a sentence."""
        try:
            yield
        except DatasetError as error:
            raise DatasetError(f"{self.source.name(i)} in {self.source.path} {error}; {REMEDY}") from error


def _stem(path: Path) -> str:
    path = path.resolve()
    return path.name if path.is_dir() else path.stem


def _layout(image: Image.Image) -> tuple[int, int]:
    """Channels and resolution of an image a dataset may begin with."""
    if image.mode not in CHANNELS:
        raise DatasetError(f"has colour mode {image.mode}, expected grey (L) or RGB")
    if image.width != image.height or not is_power_of_two(image.width):
        raise DatasetError(f"has {image.width}x{image.height} pixels, expected a square whose side is a power of two")
    return CHANNELS[image.mode], image.width
