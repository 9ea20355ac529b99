"""The images and labels of one source, checked to be of one kind."""

import copy
import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .decoding import decode, is_power_of_two, stored_bits, upright, why_no_image
from .errors import DatasetError
from .labels import no_labels
from .sources import open_source

# what a pixel of each mode holds; every other mode is for `fastdgl dataset` to convert
CHANNELS = {"L": 1, "RGB": 3}
REMEDY = "run `fastdgl dataset` to prepare the images"
SIXTEEN_BITS = "has 16 bits in each channel, expected 8"
# what becomes of images that cannot be used
CORRUPT = ("stop", "skip")
# one bad image in so many is an accident; more of them are a broken set
BAD_ONE_IN = 100


class ImageDataset(torch.utils.data.Dataset):
    """The images of one source: those of files in the order of their sorted names, others in the order they lie in.

    Args:
        path: A folder or zip of images, a folder of CIFAR-10's binary files, an HDF5 file, or "digits" for the digits that
            come with this package; which it is, is decided by what is there.
        resolution: Side of the images in pixels, if they must have this one. Default: what the first image has.
        labels: Whether to read the labels; without them `label_dim` is 0.
        mirror: Whether to count each image a second time, flipped left to right; the flipped follow all the others.
        corrupt: What an image that cannot be used is: "stop", a DatasetError that names the file; "skip", replaced by the next
            one that can, until more than one image in BAD_ONE_IN is bad.

    The first image is decoded here and each other one when it is asked for; every fault is a DatasetError that names the file.
    A dataset may be pickled and forked: no process reads through another's open file.

    Attributes:
        faults: What is wrong with the images that were replaced so far, a sentence each, by their number.
        label_dim: Classes, or the length of the labels that are vectors.
        class_names: Of class 0, 1, ..., or None where the source does not tell.
        label_kind: "classes" or "vectors", of the labels; None without labels.
        notes: How the classes were found where a person might have meant others, a sentence each.
    """

    def __init__(
        self, path: str | os.PathLike, *, resolution: int | None = None, labels: bool = False, mirror: bool = False,
        corrupt: str = "stop",
    ):
        if corrupt not in CORRUPT:
            raise ValueError(f"corrupt must be one of {', '.join(CORRUPT)}, got {corrupt!r}")
        self.source = open_source(path)
        self.name = _stem(self.source.path)
        self.mirror = mirror
        self.corrupt = corrupt
        self.faults: dict[int, str] = {}
        if not len(self.source):
            others = f"; {self.source.others[0]}: {why_no_image(self.source.others[0])}" if self.source.others else ""
            raise DatasetError(
                f"{self.source.path} holds no images: expected files such as 00000/img00000000.png; check the path or {REMEDY}{others}"
            )
        self.channels, self.resolution = self._first_layout()
        if resolution not in (None, self.resolution):
            raise DatasetError(
                f"{self.source.path} holds images of {self.resolution}x{self.resolution} pixels, expected "
                f"{resolution}x{resolution}; set the resolution to {self.resolution} or run "
                f"`fastdgl dataset --resolution {resolution}` on the originals"
            )
        self._labels = self.source.labels() if labels else no_labels(len(self.source))
        self.label_dim, self.class_names = self._labels.dim, self._labels.class_names
        self.label_kind, self.notes = self._labels.kind, self._labels.notes

    def __len__(self) -> int:
        return len(self.source) * (2 if self.mirror else 1)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Image `i`, `uint8 [C, H, W]`, and its label, `float32 [label_dim]`."""
        pixels, label, faults = self.usable(i)
        self.faults |= faults
        return pixels, label

    def usable(self, i: int) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """As `self[i]`, and what is wrong with the images that this one replaces, by their number; `faults` is not changed.

        The replacement is a function of `i` and the files alone: the same in any process, and after a resume.
        """
        faults: dict[int, str] = {}
        first = range(len(self))[i]
        for j in itertools.chain(range(first, len(self)), range(first)):
            flipped, unflipped = divmod(j, len(self.source))
            try:
                with self._naming(unflipped):
                    pixels = self._pixels(unflipped)
            except DatasetError as error:
                self._pass_over(unflipped, error, faults)
            else:
                return np.ascontiguousarray(pixels[:, :, ::-1] if flipped else pixels), self.label(unflipped), faults
        raise self._none_usable(faults)

    def check_faults(self, faults: Mapping[int, str]) -> None:
        """Refuse more bad images than may be replaced.

        Args:
            faults: As the attribute, perhaps of several ranks.

        Raises:
            DatasetError: There are more.
        """
        if len(faults) > max(1, len(self.source) // BAD_ONE_IN):
            raise DatasetError(f"{len(faults)} of the {len(self.source)} images in {self.source.path} cannot be used, more than the one in {BAD_ONE_IN} "
                               f"that images.corrupt: skip replaces; the last of them: {list(faults.values())[-1]}")

    def label(self, i: int) -> np.ndarray:
        """The label of image `i`, `float32 [label_dim]`; of a class, one-hot."""
        return self._labels.vector(range(len(self))[i] % len(self.source))

    @cached_property
    def fingerprint(self) -> str:
        """The checksum of the source's images. Taken once: all files of a folder are read for it."""
        return self.source.fingerprint()

    def unmirrored(self) -> "ImageDataset":
        """The same images, each once."""
        dataset = copy.copy(self)
        dataset.mirror, dataset.faults = False, {}
        return dataset

    def all_labels(self) -> np.ndarray:
        """The labels of all images, flipped ones not counted, as they were recorded: `int64 [images]` of classes below
        `label_dim`, or `float32 [images, label_dim]` of vectors."""
        return self._labels.values.copy()

    def _first_layout(self) -> tuple[int, int]:
        """Channels and resolution of the first image that can be used."""
        faults: dict[int, str] = {}
        for i in range(len(self.source)):
            try:
                with self._naming(i):
                    image = self.source.image(i)
                    layout = _layout(image)
                    upright(decode(image))
                return layout
            except DatasetError as error:
                self._pass_over(i, error, faults)
        raise self._none_usable(faults)

    def _none_usable(self, faults: Mapping[int, str]) -> DatasetError:
        return DatasetError(f"{self.source.path} holds no image that can be used: {', '.join(faults.values())}")

    def _pass_over(self, i: int, error: DatasetError, faults: dict[int, str]) -> None:
        """Note what is wrong with image `i`, or raise it where no image may be replaced, or no more."""
        if self.corrupt == "stop":
            raise error
        faults[i] = str(error)
        self.check_faults(faults)

    def _pixels(self, i: int) -> np.ndarray:
        image = self.source.image(i)
        if CHANNELS.get(image.mode) != self.channels:
            expected = {1: "grey (L)", 3: "RGB"}[self.channels]
            raise DatasetError(f"has colour mode {image.mode}, expected {expected} like the first image")
        if image.size != (self.resolution, self.resolution):
            raise DatasetError(
                f"has {image.width}x{image.height} pixels, expected {self.resolution}x{self.resolution} like the first image"
            )
        if stored_bits(image) > 8:
            raise DatasetError(SIXTEEN_BITS)
        pixels = np.asarray(upright(decode(image))).reshape(self.resolution, self.resolution, self.channels)
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
    if stored_bits(image) > 8:
        raise DatasetError(SIXTEEN_BITS)
    return CHANNELS[image.mode], image.width
