"""The labels of images: classes by index and name, or vectors; from `dataset.json`, or from the folders the images lie in."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .errors import DatasetError, LabelsMissing, cause
from .files import Archive, Folder, class_folder, is_hidden

# beyond this a class is taken for an identifier: one-hot labels of that length serve nobody
MAX_CLASSES = 1_000_000
# folders that number the images, not class them
NUMBERED = re.compile(r"\d{5}/img\d{8}\.\w+")


@dataclass(frozen=True)
class Labels:
    """The labels of all images of a source, as they were recorded.

    values: `int64 [images]` of classes below `dim`, or `float32 [images, dim]` of vectors.
    class_names: Of class 0, 1, ..., where the source tells.
    """

    values: np.ndarray
    dim: int
    class_names: tuple[str, ...] | None = None

    def vector(self, i: int) -> np.ndarray:
        """The label of image `i`, `float32 [dim]`; of a class, one-hot."""
        if self.values.ndim == 2:
            return self.values[i].copy()
        one_hot = np.zeros(self.dim, np.float32)
        one_hot[self.values[i]] = 1
        return one_hot


def no_labels(images: int) -> Labels:
    return Labels(np.zeros([images, 0], np.float32), 0)


def class_labels(values: np.ndarray, class_names: tuple[str, ...] | None, giver: Callable[[int], str]) -> Labels:
    """Classes, as many as have names, or without names as many as the highest tells.

    Args:
        values: Integers `[images]`.
        giver: What gives image i its label, for a sentence: "dataset.json gives a.png".

    Raises:
        DatasetError: A label is negative or too large.
    """
    count = MAX_CLASSES if class_names is None else len(class_names)
    outside = np.flatnonzero((values < 0) | (values >= count))
    if len(outside):
        raise DatasetError(
            f"{giver(int(outside[0]))} the label {values[outside[0]]}, expected a class from 0 to {count - 1}; correct it there"
        )
    return Labels(values.astype(np.int64), int(values.max()) + 1 if class_names is None else count, class_names)


def labels_of_files(files: Folder | Archive, image_names: Sequence[str]) -> Labels:
    """The labels in `dataset.json`, or where there is none, the folder of each image as its class, by sorted name.

    Raises:
        DatasetError: An image has no label or a wrong one, or a class folder has no image.
    """
    if "dataset.json" not in files.names and not all(map(NUMBERED.fullmatch, image_names)):
        return _labels_by_folder(files, image_names)
    recorded = recorded_labels(files)
    for name in image_names:
        if name not in recorded:
            raise LabelsMissing(f"{name} in {files.path} has no label: expected one in dataset.json like the others; add it there")
    values = [recorded[name] for name in image_names]
    if isinstance(values[0], list):
        return Labels(np.array(values, np.float32), len(values[0]))
    return class_labels(np.array(values), recorded_class_names(files), lambda i: f"dataset.json in {files.path} gives {image_names[i]}")


def _labels_by_folder(files: Folder | Archive, image_names: Sequence[str]) -> Labels:
    folders = [class_folder(name) for name in image_names]
    if None in folders:
        raise LabelsMissing(
            f"{files.path} has no dataset.json, and {image_names[folders.index(None)]} lies in no class folder: labels were asked for, "
            "and those are where they are expected; run `fastdgl dataset --labels folders`"
        )
    class_names = tuple(sorted(folder for folder in files.folders if not is_hidden(folder)))
    empty = sorted(set(class_names) - set(folders))
    if empty:
        raise DatasetError(f"{empty[0]} in {files.path} holds no images: expected some in every class folder; remove it or fill it")
    index = {name: i for i, name in enumerate(class_names)}
    return Labels(np.array([index[folder] for folder in folders], np.int64), len(class_names), class_names)


def recorded_labels(files: Folder | Archive) -> dict[str, int | list[float]]:
    """What `dataset.json` says: a class or a vector for each image it names, all of one kind.

    An image whose label is null is left out.
    """
    where = f"dataset.json in {files.path}"
    if "dataset.json" not in files.names:
        raise LabelsMissing(
            f"{files.path} has no dataset.json: labels were asked for, and that is where they are expected; "
            "run `fastdgl dataset --labels folders`"
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
        raise LabelsMissing(f"{where} holds no labels: expected one per image; run `fastdgl dataset --labels folders` on the originals")
    return _checked_labels(pairs, where)


def recorded_class_names(files: Folder | Archive) -> tuple[str, ...] | None:
    """The names of classes 0, 1, ... that `fastdgl dataset` puts into `dataset.json`; None without them.

    Raises:
        DatasetError: A name is no text.
    """
    try:
        names = json.loads(files.read("dataset.json")).get("classes")
    except (DatasetError, ValueError, AttributeError, RecursionError):
        return None
    if not isinstance(names, list):
        return None
    wrong = [i for i, name in enumerate(names) if type(name) not in (str, int)]
    if wrong:
        raise DatasetError(f"dataset.json in {files.path} gives class {wrong[0]} a name that is no text; correct it there")
    return tuple(map(str, names))


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
