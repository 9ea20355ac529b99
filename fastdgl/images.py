"""A folder or zip of images as a dataset, and as an endless stream of batches in [-1, 1].

The format is NVIDIA's: images of one size anywhere below, and perhaps a `dataset.json` with their labels. Making such a
dataset from other images is `packing.py`.
"""

import io
import itertools
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# what a pixel of each mode holds; every other mode is for `fastdgl dataset` to convert
CHANNELS = {"L": 1, "RGB": 3}
# beyond these an image is taken for a decompression bomb and not decoded
MAX_PIXELS = 89_478_485
MAX_BYTES = 4 * MAX_PIXELS
# beyond this a class is taken for an identifier: one-hot labels of that length serve nobody
MAX_CLASSES = 1_000_000
REMEDY = "run `fastdgl dataset` to prepare the images"


class DatasetError(ValueError):
    """What is wrong with a dataset, in one sentence for the one who brought it."""


def dataset_path(path: str | os.PathLike) -> Path:
    """Where a dataset lies: `path` itself, or for the word "digits" the zip that comes with this package.

    A folder of that name is reached as "./digits".
    """
    if path == "digits":
        return Path(__file__).parent / "assets" / "digits.zip"
    return Path(path)


class Folder:
    """The files below a folder, by their path relative to it, with forward slashes."""

    def __init__(self, path: Path):
        self.path = path
        self.names = sorted(_names_below(path))

    def read(self, name: str) -> bytes:
        try:
            file = self.path / name
            _check_bytes(file.stat().st_size)
            return file.read_bytes()
        except OSError as error:
            raise DatasetError(f"cannot be read ({cause(error)})") from error


class Archive:
    """The files of a zip, by name.

    Each process opens the zip for itself: a shared file has one position, and reads would mix.
    """

    def __init__(self, path: Path):
        self.path = path
        self._zip, self._process = None, None
        try:
            self.names = sorted({entry.filename for entry in self._open().infolist() if not entry.is_dir()})
        except (OSError, NotImplementedError, UnicodeDecodeError, struct.error, zipfile.BadZipFile) as error:
            raise DatasetError(
                f"{path} is neither a folder nor a zip that opens ({cause(error)}): expected a dataset; {REMEDY}"
            ) from error

    def read(self, name: str) -> bytes:
        try:
            archive = self._open()
            _check_bytes(archive.getinfo(name).file_size)
            return archive.read(name)
        # RuntimeError: encrypted, or compressed in a way Python does not know
        except (OSError, EOFError, KeyError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error) as error:
            raise DatasetError(f"cannot be read ({cause(error)})") from error

    def _open(self) -> zipfile.ZipFile:
        if self._process != os.getpid():
            self._zip, self._process = zipfile.ZipFile(self.path), os.getpid()
        return self._zip

    def __getstate__(self):
        return self.__dict__ | {"_zip": None, "_process": None}


def open_files(path: str | os.PathLike) -> Folder | Archive:
    """The files of a folder or zip, or of "digits"."""
    path = dataset_path(path)
    # os.path.exists also answers for paths no file can have
    if not os.path.exists(path):
        raise DatasetError(f"{path} does not exist: expected a folder or zip of images; check the path")
    return Folder(path) if path.is_dir() else Archive(path)


def is_hidden(name: str) -> bool:
    """Whether a file is the system's and not the user's, as the `__MACOSX/._a.png` that macOS adds to zips."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def is_image(name: str) -> bool:
    """Whether the name ends like an image's."""
    return name.lower().endswith(SUFFIXES) and not is_hidden(name)


def cause(error: Exception) -> str:
    """An exception as part of a sentence: its type and, in one line, its words."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _names_below(path: Path) -> Iterator[str]:
    for folder, _, names in os.walk(path, onerror=_refuse_folder):
        for name in names:
            yield (Path(folder) / name).relative_to(path).as_posix()


def _refuse_folder(error: OSError):
    raise DatasetError(f"{error.filename} cannot be read ({cause(error)}): expected a folder of images") from error


def _check_bytes(size: int):
    if size > MAX_BYTES:
        raise DatasetError(f"has {size} bytes, expected at most {MAX_BYTES}")


def open_image(data: bytes) -> Image.Image:
    """An image with its header read and its pixels not yet decoded, so that its size can be judged first."""
    try:
        image = Image.open(io.BytesIO(data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DatasetError(f"is too large to decode safely, expected at most {MAX_PIXELS} pixels") from error
    # decoders meet damage with whatever they trip over: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise DatasetError(f"cannot be decoded ({_without_address(error)})") from error
    if image.width * image.height > MAX_PIXELS:
        raise DatasetError(f"has {image.width}x{image.height} pixels, expected at most {MAX_PIXELS} in all")
    return image


def decode(image: Image.Image) -> Image.Image:
    """The same image with its pixels decoded."""
    try:
        image.load()
    # as in open_image
    except Exception as error:
        raise DatasetError(f"cannot be decoded ({cause(error)})") from error
    return image


def is_power_of_two(size: int) -> bool:
    return size > 0 and size & (size - 1) == 0


def _without_address(error: Exception) -> str:
    # Pillow names the buffer it was given, which tells the reader nothing
    return cause(error).split(" <_io.BytesIO")[0]


def _layout(image: Image.Image) -> tuple[int, int]:
    """Channels and resolution of an image a dataset may begin with."""
    if image.mode not in CHANNELS:
        raise DatasetError(f"has colour mode {image.mode}, expected grey (L) or RGB")
    if image.width != image.height or not is_power_of_two(image.width):
        raise DatasetError(f"has {image.width}x{image.height} pixels, expected a square whose side is a power of two")
    return CHANNELS[image.mode], image.width


def recorded_labels(files: Folder | Archive) -> dict[str, int | list[float]]:
    """What `dataset.json` says: a class or a vector for each image it names, all of one kind.

    An image whose label is null is left out.
    """
    where = f"dataset.json in {files.path}"
    if "dataset.json" not in files.names:
        raise DatasetError(
            f"{files.path} has no dataset.json: labels were asked for, and that is where they are expected; "
            "turn labels off or run `fastdgl dataset --labels folders`"
        )
    try:
        entries = json.loads(files.read("dataset.json"))["labels"]
        pairs = [(name.replace("\\", "/"), label) for name, label in entries or [] if label is not None]
    except DatasetError as error:
        raise DatasetError(f"{where} {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetError(
            f'{where} cannot be understood ({cause(error)}): expected {{"labels": [["00000/img00000000.png", 6], ...]}}'
        ) from error
    if not pairs:
        raise DatasetError(f"{where} holds no labels: expected one per image; turn labels off or write them")
    return _checked_labels(pairs, where)


def class_names(files: Folder | Archive) -> tuple[str, ...] | None:
    """The names of classes 0, 1, ... that `fastdgl dataset --labels folders` put into `dataset.json`; None without them."""
    try:
        names = json.loads(files.read("dataset.json")).get("classes")
    except (DatasetError, ValueError, AttributeError, RecursionError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def _checked_labels(pairs: list, where: str) -> dict[str, int | list[float]]:
    first_name, first = pairs[0]
    labels = {}
    for name, label in pairs:
        expected = _label_fault(label)
        if expected:
            raise DatasetError(f"{where} gives {name} the label {_short(label)}, expected {expected}; correct it there")
        if _kind(label) != _kind(first):
            raise DatasetError(
                f"{where} gives {name} the label {_short(label)} and {first_name} the label {_short(first)}, "
                "expected all classes or all vectors of one length; correct it there"
            )
        if labels.setdefault(name, label) != label:
            raise DatasetError(
                f"{where} gives {name} two labels, {_short(labels[name])} and {_short(label)}, expected one; correct it there"
            )
    return labels


def _label_fault(label) -> str | None:
    """What a label should have been, or None for a good one. bool is no int here."""
    if type(label) is int:
        return None if 0 <= label < MAX_CLASSES else f"a class from 0 to {MAX_CLASSES - 1}"
    if type(label) is list and label and all(_is_float32(x) for x in label):
        return None
    return "a class (0, 1, 2, ...) or a vector of finite numbers"


def _is_float32(x) -> bool:
    # false for NaN as well; against Python's float, with which an int of any size compares
    return type(x) in (int, float) and abs(x) <= float(np.finfo(np.float32).max)


def _kind(label: int | list) -> int:
    return len(label) if isinstance(label, list) else 0


def _short(label) -> str:
    text = json.dumps(label)
    return text if len(text) <= 40 else f"{text[:37]}..."


class ImageDataset(torch.utils.data.Dataset):
    """The images of a folder or zip, in the order of their sorted names.

    Args:
        path: A folder, a zip, or "digits" for the digits that come with this package.
        resolution: Side of the images in pixels, if they must have this one. Default: what the first image has.
        labels: Whether to read the labels of `dataset.json`; without them `label_dim` is 0.
        mirror: Whether to count each image a second time, flipped left to right; the flipped follow all the others.

    The first image is decoded here and each other one when it is asked for; every fault is a DatasetError that names the file.
    A dataset may be pickled and forked: no process reads through another's open zip.
    """

    def __init__(
        self, path: str | os.PathLike, *, resolution: int | None = None, labels: bool = False, mirror: bool = False
    ):
        self.files = open_files(path)
        self.name = _stem(self.files.path)
        self.image_names = [name for name in self.files.names if is_image(name)]
        self.mirror = mirror
        if not self.image_names:
            raise DatasetError(
                f"{self.files.path} holds no images: expected files such as 00000/img00000000.png; check the path or {REMEDY}"
            )
        with self._naming(self.image_names[0]):
            self.channels, self.resolution = _layout(open_image(self.files.read(self.image_names[0])))
            self._pixels(self.image_names[0])
        if resolution not in (None, self.resolution):
            raise DatasetError(
                f"{self.files.path} holds images of {self.resolution}x{self.resolution} pixels, expected "
                f"{resolution}x{resolution}; set the resolution to {self.resolution} or run "
                f"`fastdgl dataset --resolution {resolution}` on the originals"
            )
        self._labels = self._read_labels() if labels else np.zeros([len(self.image_names), 0], np.float32)
        by_class = self._labels.ndim == 1
        self.class_names = class_names(self.files) if by_class else None
        self.label_dim = self._count_classes() if by_class else self._labels.shape[1]

    def __len__(self) -> int:
        return len(self.image_names) * (2 if self.mirror else 1)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Image `i`, `uint8 [C, H, W]`, and its label, `float32 [label_dim]`."""
        i = range(len(self))[i]
        name = self.image_names[i % len(self.image_names)]
        with self._naming(name):
            pixels = self._pixels(name)
        if i >= len(self.image_names):
            pixels = pixels[:, :, ::-1]
        return np.ascontiguousarray(pixels), self.label(i)

    def label(self, i: int) -> np.ndarray:
        """The label of image `i`, `float32 [label_dim]`; of a class, one-hot."""
        label = self._labels[range(len(self))[i] % len(self.image_names)]
        if self._labels.ndim == 2:
            return label.copy()
        one_hot = np.zeros(self.label_dim, np.float32)
        one_hot[label] = 1
        return one_hot

    def all_labels(self) -> np.ndarray:
        """The labels of all images, flipped ones not counted, as they were recorded: `int64 [images]` of classes below
        `label_dim`, or `float32 [images, label_dim]` of vectors."""
        return self._labels.copy()

    def _pixels(self, name: str) -> np.ndarray:
        image = open_image(self.files.read(name))
        if CHANNELS.get(image.mode) != self.channels:
            expected = {1: "grey (L)", 3: "RGB"}[self.channels]
            raise DatasetError(f"has colour mode {image.mode}, expected {expected} like the first image")
        if image.size != (self.resolution, self.resolution):
            raise DatasetError(
                f"has {image.width}x{image.height} pixels, expected {self.resolution}x{self.resolution} like the first image"
            )
        pixels = np.asarray(decode(image)).reshape(self.resolution, self.resolution, self.channels)
        return pixels.transpose(2, 0, 1)                              # [C, H, W]

    def _read_labels(self) -> np.ndarray:
        """int64 `[images]` of classes or float32 `[images, label_dim]` of vectors."""
        recorded = recorded_labels(self.files)
        for name in self.image_names:
            if name not in recorded:
                raise DatasetError(
                    f"{name} in {self.files.path} has no label: expected one in dataset.json like the others; "
                    "add it there or turn labels off"
                )
        labels = [recorded[name] for name in self.image_names]
        return np.array(labels, np.float32 if isinstance(labels[0], list) else np.int64)

    def _count_classes(self) -> int:
        """As many as have names, where there are names."""
        highest = int(self._labels.argmax())
        count = int(self._labels[highest]) + 1
        if self.class_names is not None and count > len(self.class_names):
            raise DatasetError(
                f"dataset.json in {self.files.path} gives {self.image_names[highest]} the label {count - 1} and names "
                f"{len(self.class_names)} classes, expected a label from 0 to {len(self.class_names) - 1}; correct it there"
            )
        return count if self.class_names is None else len(self.class_names)

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Make what is wrong with one image a sentence."""
        try:
            yield
        except DatasetError as error:
            raise DatasetError(f"{name} in {self.files.path} {error}; {REMEDY}") from error


def _stem(path: Path) -> str:
    path = path.resolve()
    return path.name if path.is_dir() else path.stem


def stream(
    dataset: ImageDataset,
    batch: int,
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    workers: int = 2,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end, the images of each epoch in a new order.

    The order is a function of `seed` and the position alone. So a run that stopped after `seen` images goes on exactly with
    `start=seen`, and the ranks together see what one process would: rank `r` gets `batch[r::world_size]`, which puts the same
    images into one group of minibatch-stddev however many ranks there are. A batch may span the border of two epochs.

    Args:
        batch: Images per step, over all ranks.
        seed: What the orders are drawn from, 0 or more.
        start: Images already seen, over all ranks.
        workers: Processes that decode; 0 decodes in this one.

    Returns:
        An iterator over images, `float32 [batch / world_size, C, H, W]` in [-1, 1], and labels,
        `float32 [batch / world_size, label_dim]`, both on `device`. Closing it ends the workers.
    """
    if batch < 1 or batch % world_size:
        raise ValueError(f"batch must be a multiple of the {world_size} ranks, got {batch}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to {world_size - 1}, got {rank}")
    if seed < 0 or start < 0:
        raise ValueError(f"seed and start must not be negative, got {seed} and {start}")
    return _batches(dataset, _index_batches(len(dataset), batch, seed, rank, world_size, start), workers, torch.device(device))


def _batches(dataset, index_batches, workers, device) -> Iterator[tuple[Tensor, Tensor]]:
    loader = torch.utils.data.DataLoader(
        _Batches(dataset),
        sampler=index_batches,
        batch_size=None,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        # the loader draws a seed for its workers: not from the global generator, whose state belongs to the run
        generator=torch.Generator(),
    )
    for loaded in loader:
        if isinstance(loaded, DatasetError):
            raise loaded
        pixels, labels = (x.to(device, non_blocking=True) for x in loaded)
        yield pixels.to(torch.float32) / 127.5 - 1, labels


class _Batches(torch.utils.data.Dataset):
    """A dataset by the batch.

    A fault is returned, not raised: raised in a worker it would reach the user wrapped in the worker's traceback.
    """

    def __init__(self, dataset: ImageDataset):
        self.dataset = dataset

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor] | DatasetError:
        try:
            pixels, labels = zip(*(self.dataset[i] for i in indices))
        except DatasetError as error:
            return error
        return torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.stack(labels))


def _index_batches(length, batch, seed, rank, world_size, start) -> Iterator[list[int]]:
    epoch, order = None, []
    for first in itertools.count(start, batch):
        indices = []
        for position in range(first + rank, first + batch, world_size):
            if position // length != epoch:
                epoch = position // length
                order = _permutation(length, seed, epoch)
            indices.append(order[position % length])
        yield indices


def _permutation(length: int, seed: int, epoch: int) -> list[int]:
    # torch's CPU generator uses the low 32 bits of its seed only, so the two numbers are mixed into 32
    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    return torch.randperm(length, generator=torch.Generator().manual_seed(mixed)).tolist()
