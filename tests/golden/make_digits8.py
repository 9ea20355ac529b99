"""Make digits8.zip: 20 of each of the digits that come with fastdgl, at 8x8 by means over squares, for trainings of seconds."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from fastdgl.images import ImageDataset

EACH = 20


def main() -> None:
    digits = ImageDataset("digits", labels=True)
    classes = digits.all_labels()
    chosen = sorted(i for c in range(digits.label_dim) for i in np.flatnonzero(classes == c)[:EACH])
    with zipfile.ZipFile(Path(__file__).with_name("digits8.zip"), "w") as archive:
        for number, i in enumerate(chosen):
            pixels = digits[int(i)][0][0].reshape(8, 4, 8, 4).mean(axis=(1, 3)).round().astype(np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG", optimize=True)
            archive.writestr(zipfile.ZipInfo(f"img{number:08d}.png"), file.getvalue())
        labels = [[f"img{number:08d}.png", int(classes[i])] for number, i in enumerate(chosen)]
        archive.writestr(zipfile.ZipInfo("dataset.json"), json.dumps({"labels": labels}))


if __name__ == "__main__":
    main()
