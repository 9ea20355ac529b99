"""The labels of images: classes by index and name, or vectors; from `dataset.json`, or from the folders the images lie in."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .errors import DatasetError, LabelsMissing, cause
from .files import Archive, Folder, composed, is_hidden

# beyond this a class is taken for an identifier: one-hot labels of that length serve nobody
MAX_CLASSES = 1_000_000
# folders that number the images, not class them
NUMBERED = re.compile(r"\d{5}/img\d{8}\.\w+")
# names that people give the parts of one set of images, in lower case
PARTS = {"train", "training", "trainset", "train_set", "val", "valid", "validation", "valset", "val_set", "test", "testing", "testset", "test_set",
         "dev", "eval", "evaluation", "holdout"}
# the kinds of labels, by the names under which files keep them
CLASSES, VECTORS = "classes", "vectors"


@dataclass(frozen=True)
class Labels:
    """The labels of all images of a source, as they were recorded.

    values: `int64 [images]` of classes below `dim`, or `float32 [images, dim]` of vectors.
    class_names: Of class 0, 1, ..., where the source tells.
    notes: How the classes were found where a person might have meant others, a sentence each.
    """

    values: np.ndarray
    dim: int
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str | None:
        """CLASSES or VECTORS; None without labels."""
        if self.dim == 0:
            return None
        return CLASSES if self.values.ndim == 1 else VECTORS

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
    inner = inner_folder(image_names)
    if labels_file(files) is None and not all(NUMBERED.fullmatch(name.removeprefix(inner)) for name in image_names):
        return _labels_by_folder(files, image_names)
    recorded = recorded_labels(files)
    for name in image_names:
        if name not in recorded:
            raise LabelsMissing(f"{name} in {files.path} has no label: expected one in dataset.json like the others; add it there")
    values = [recorded[name] for name in image_names]
    if isinstance(values[0], list):
        return Labels(np.array(values, np.float32), len(values[0]))
    return class_labels(np.array(values), recorded_class_names(files), lambda i: f"dataset.json in {files.path} gives {image_names[i]}")


def inner_folder(names: Sequence[str]) -> str:
    """Return the folders that all these files lie in and that hold nothing else, as a prefix `photos/`; "" where there are none."""
    prefix = ""
    while names:
        deeper = f"{prefix}{names[0].removeprefix(prefix).partition('/')[0]}/"
        # a folder directly above files is theirs: the one class of a set, or the first thousand of numbered images
        if not all(name.startswith(deeper) and "/" in name[len(deeper):] for name in names):
            break
        prefix = deeper
    return prefix


def labels_file(files: Folder | Archive) -> str | None:
    """Return the name of the source's `dataset.json`: at the top, or in the one folder that all images lie below; None without one."""
    found = [name for name in files.names if name.rpartition("/")[2] == "dataset.json" and not is_hidden(name)]
    if "dataset.json" in found or not found:
        return "dataset.json" if found else None
    # a zip of the folder, rather than of what is in it
    below = [name.removesuffix("dataset.json") for name in found]
    images = [name for name in files.names if not is_hidden(name) and name not in found]
    return f"{below[0]}dataset.json" if len(below) == 1 and all(name.startswith(below[0]) for name in images) else None


@dataclass(frozen=True)
class ClassFolders:
    """Which class folder each image is in.

    of_images: The name of the folder, accents composed; None for an image in no class folder.
    roots: Prefixes of the folders whose subfolders are the classes.
    notes: As of `Labels`.
    """

    of_images: list[str | None]
    roots: tuple[str, ...]
    notes: tuple[str, ...]


def class_folders(image_names: Sequence[str]) -> ClassFolders:
    """Find the folders that a person would call the classes of these images.

    They are the folders at the top, or one level further down for each level at which there is only one folder (a zip of the
    folder of photos), or at which the folders are parts of one set (`train` and `val`), whose classes are then joined.
    """
    prefix = inner_folder(image_names)
    rests = [name.removeprefix(prefix) for name in image_names]
    notes, roots = [], (prefix,)
    tops = {rest.partition("/")[0] for rest in rests if "/" in rest}
    if prefix:
        notes.append(f"the classes are the folders in {prefix[:-1]}")
    if len(tops) > 1 and all(top.lower() in PARTS for top in tops) and all("/" in rest for rest in rests):
        parts = sorted(tops)
        notes = [f"{_listed(parts)} are parts of one set and no classes: the classes are the folders in them, and the images of all parts are used; "
                 f"for one part alone, give the path of its folder"]
        roots = tuple(f"{prefix}{part}/" for part in parts)
        rests = [rest.partition("/")[2] for rest in rests]
    elif len(tops) > 1 and all("/" in rest for rest in rests):
        below = {top: {rest.split("/")[1] for rest in rests if rest.startswith(f"{top}/") and rest.count("/") > 1} for top in tops}
        shared = set.intersection(*below.values())
        if len(shared) > 1:
            notes.append(f"the classes are {_listed(sorted(tops))}, and each holds folders called {_listed(sorted(shared))}: "
                         f"if these are the classes, give the path of one of the outer folders, or name the classes in dataset.json")
    folders = [composed(rest.partition("/")[0]) if "/" in rest else None for rest in rests]
    return ClassFolders(folders, roots, tuple(notes))


def _listed(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _labels_by_folder(files: Folder | Archive, image_names: Sequence[str]) -> Labels:
    found = class_folders(image_names)
    folders = found.of_images
    if None in folders:
        raise LabelsMissing(
            f"{files.path} has no dataset.json, and {image_names[folders.index(None)]} lies in no class folder: labels were asked for, "
            "and those are where they are expected; run `fastdgl dataset --labels folders`"
        )
    # the folders with images, and those that have none
    below = {folder.removeprefix(root) for folder in files.folders for root in found.roots if folder.startswith(root) and not is_hidden(folder)}
    class_names = tuple(sorted(composed(folder) for folder in below if folder and "/" not in folder))
    class_names = tuple(dict.fromkeys(class_names))
    empty = sorted(set(class_names) - set(folders))
    if empty:
        raise DatasetError(f"{empty[0]} in {files.path} holds no images: expected some in every class folder; remove it or fill it")
    index = {name: i for i, name in enumerate(class_names)}
    return Labels(np.array([index[folder] for folder in folders], np.int64), len(class_names), class_names, found.notes)


def recorded_labels(files: Folder | Archive) -> dict[str, int | list[float]]:
    """What `dataset.json` says: a class or a vector for each image it names, all of one kind.

    An image whose label is null is left out.
    """
    where, file = f"dataset.json in {files.path}", labels_file(files)
    if file is None:
        raise LabelsMissing(
            f"{files.path} has no dataset.json: labels were asked for, and that is where they are expected; "
            "run `fastdgl dataset --labels folders`"
        )
    try:
        entries = json.loads(files.read(file))["labels"]
        folder = file.removesuffix("dataset.json")
        pairs = [(folder + name.replace("\\", "/").removeprefix("./"), label) for name, label in entries or [] if label is not None]
    except DatasetError as error:
        raise DatasetError(f"{where} {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetError(
            f'{where} cannot be understood ({cause(error)}): expected {{"labels": [["00000/img00000000.png", 6], ...]}}'
        ) from error
    if not pairs:
        raise LabelsMissing(f"{where} holds no labels: expected one per image; run `fastdgl dataset --labels folders` on the originals")
    labels = _checked_labels(pairs, where)
    # accents may be composed here and apart there
    spelled = {composed(name): name for name in files.names if not name.isascii()}
    return {spelled.get(composed(name), name): label for name, label in labels.items()} if spelled else labels


def recorded_class_names(files: Folder | Archive) -> tuple[str, ...] | None:
    """The names of classes 0, 1, ... that `fastdgl dataset` puts into `dataset.json`; None without them.

    Raises:
        DatasetError: A name is no text.
    """
    file = labels_file(files)
    try:
        names = None if file is None else json.loads(files.read(file)).get("classes")
    except (DatasetError, ValueError, AttributeError, RecursionError):
        return None
    if not isinstance(names, list):
        return None
    wrong = [i for i, name in enumerate(names) if type(name) not in (str, int)]
    if wrong:
        raise DatasetError(f"dataset.json in {files.path} gives class {wrong[0]} a name that is no text; correct it there")
    return tuple(composed(str(name)) for name in names)


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
