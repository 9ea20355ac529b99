"""The labels that a person asks for on the command line: classes by name or number, or vectors."""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import click
import numpy as np
import torch
from torch import Tensor

from .images import VECTORS, composed
from .paths import expanded
from .sentences import printable

# how to say which of the two is meant, where a text is the name of one class and the number of another
NAME, NUMBER = "name:", "number:"
# of a vector in a file's name
LONGEST_TAG = 32
SHOWN = 10


class RequestError(click.UsageError):
    """A label that cannot be given to this network, in one sentence."""

    def __init__(self, message: str):
        super().__init__(printable(message))


@dataclass(frozen=True)
class Label:
    """A label to draw.

    vector: `[c_dim]`, of a class one-hot.
    tag: What it is called in the name of a file.
    """

    vector: Tensor
    tag: str


def requested_labels(given: Sequence[str], wanted: int, c_dim: int, kind: str | None, names: Sequence[str] | None) -> list[Label]:
    """Return the labels given by --class or --label.

    Args:
        wanted: How many the images take; 0 for a sheet of all classes.
        kind: Of the network's labels; None where its file does not say: then a single whole number is a class.
        names: Of class 0, 1, ..., if they have names.

    Raises:
        RequestError: They are too many or too few, or one is no label of this network.
    """
    if c_dim == 0 and given:
        raise RequestError(f"--class {given[0]}: this network has no classes; leave it out")
    if c_dim == 0:
        if wanted != 1:
            raise RequestError("this network has no classes, of which the sheet would be; leave --grid and --interpolate class out")
        return [Label(torch.zeros(0), "")]
    if kind == VECTORS and wanted == 0:
        raise RequestError(f"--grid classes: this network takes vectors of {c_dim} numbers and has no classes; leave it out")
    if len(given) != wanted:
        if kind == VECTORS:
            example = f"--label {','.join(['0.5'] * min(c_dim, 3))}{',...' if c_dim > 3 else ''}"
            raise RequestError(f"this network takes vectors of {c_dim} numbers, and {len(given)} are given; expected {wanted}, as {example} or a file")
        expected = ("leave --class out for a sheet of all", f"choose one with --class 0 to {c_dim - 1}", "choose two, as --class 0 --class 1")
        raise RequestError(f"this network makes images of {c_dim} classes, and {len(given)} are chosen; {expected[wanted]}")
    return [_label(one, c_dim, kind, names) for one in given]


def _label(given: str, c_dim: int, kind: str | None, names: Sequence[str] | None) -> Label:
    named = composed(given) in map(composed, names or ())
    if kind == VECTORS or (kind is None and not named and not re.fullmatch(r"[+-]?\d+", given.strip())):
        vector = _vector(given, c_dim, kind)
        return Label(torch.from_numpy(vector), f"label{_tag(vector)}")
    index = class_index(given, c_dim, names)
    return Label(torch.eye(c_dim)[index], f"class{index}")


def class_index(given: str, c_dim: int, names: Sequence[str] | None) -> int:
    """Return the class that a text stands for: a name, or else a number.

    `name:7` and `number:7` say which is meant where class 7 is not the one called "7".

    Raises:
        RequestError: There is no such class, or there are two.
    """
    known = [composed(name) for name in names or ()]
    named = [i for i, name in enumerate(known) if name == composed(given)]
    number = int(given) if re.fullmatch(r"\s*[+-]?\d{1,18}\s*", given) else None
    if not named and given.startswith(NAME):
        text, named, number = given.removeprefix(NAME), [i for i, name in enumerate(known) if name == composed(given.removeprefix(NAME))], None
    elif not named and re.fullmatch(NUMBER + r"\s*[+-]?\d{1,18}\s*", given):
        text, number = given, int(given.removeprefix(NUMBER))
    else:
        text = given
    if len(named) > 1:
        raise RequestError(f"--class {given}: {len(named)} classes have this name; choose one by number, as --class "
                           + " or --class ".join(f"{NUMBER}{i}" for i in named[:3]))
    if named and number is not None and 0 <= number < c_dim and number != named[0]:
        raise RequestError(f"--class {given}: class {named[0]} is called {given!r}, and class {number} is another; "
                           f"choose --class {NAME}{given} or --class {NUMBER}{number}")
    if named:
        return named[0]
    if number is not None:
        if not 0 <= number < c_dim:
            raise RequestError(f"--class {given}: this network has classes 0 to {c_dim - 1}")
        return number
    if not known:
        raise RequestError(f"--class {given}: the classes of this network have no names; choose one with --class 0 to {c_dim - 1}")
    near = difflib.get_close_matches(text, known) or known[:SHOWN]
    raise RequestError(f"--class {given}: this network has no class of that name; it has {', '.join(near)}"
                       f"{' and others' if len(near) < len(known) else ''}")


def _vector(given: str, c_dim: int, kind: str | None) -> np.ndarray:
    """Return a vector written as `0.5,0.25`, or in a file, `float32 [c_dim]`."""
    described = f"this network takes vectors of {c_dim} numbers" if kind == VECTORS else f"this network takes classes 0 to {c_dim - 1}, or vectors of {c_dim} numbers"
    try:
        numbers = np.array([float(number) for number in given.split(",")])
    except ValueError:
        if not os.path.isfile(expanded(given)):
            raise RequestError(f"--label {given}: {described}; expected numbers with commas between, or a file of them") from None
        numbers = _numbers_in(expanded(given))
    if numbers.shape != (c_dim,):
        raise RequestError(f"--label {given}: holds {numbers.size} number{'s' if numbers.size != 1 else ''}; {described}")
    if not (np.abs(numbers) <= np.finfo(np.float32).max).all():
        raise RequestError(f"--label {given}: expected finite numbers")
    return numbers.astype(np.float32)


def _numbers_in(path: str) -> np.ndarray:
    """Return the numbers in a file: NumPy's .npy, JSON, or text with commas, spaces or lines between."""
    try:
        if path.lower().endswith(".npy"):
            return np.load(path, allow_pickle=False).astype(np.float64).squeeze()[()].reshape(-1)
        with open(path, encoding="utf-8") as file:
            text = file.read(10**7)
        values = json.loads(text) if path.lower().endswith(".json") else re.split(r"[\s,;]+", text.strip())
        return np.array(values, np.float64).reshape(-1)
    except (OSError, ValueError, TypeError, EOFError, RecursionError) as error:
        raise RequestError(f"--label {path}: cannot be read as numbers ({' '.join(str(error).split())[:100]}); expected .npy, .json, or numbers with "
                           "commas between") from None


def _tag(vector: np.ndarray) -> str:
    text = "_".join(f"{number:g}" for number in vector.tolist())
    return text if len(text) <= LONGEST_TAG else hashlib.sha256(vector.tobytes()).hexdigest()[:8]
