"""What a detector saw in real images, kept from one evaluation to the next by their content."""

import hashlib
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch

from ..atomic_files import atomically
from ..engines import Run, first_rank_decides
from ..images import ImageDataset
from .detectors import Detector
from .features import MAX_BANK, Features, collect, real_images
from .moments import Moments

# 2: images are turned upright
FORMAT = 2


class CacheError(OSError):
    """A kept file that cannot be read or written, in one sentence."""


def check_writable(folder: Path, setting: str) -> None:
    """Refuse a folder that takes no files before hours go into them; it is made if need be.

    Args:
        setting: By which another is chosen.

    Raises:
        CacheError: It takes none.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK) else "it is read-only"
    except OSError as error:
        reason = error.strerror
    if reason is not None:
        raise CacheError(f"{folder} cannot be written to: {reason}; choose another folder by {setting}")


@dataclass(frozen=True)
class Kept:
    """The features of one dataset by one detector, each part in a file of its own.

    name: Of the dataset, for the one who looks into the folder.
    key: All that the features depend on.
    """

    folder: Path
    name: str
    key: str

    def path(self, part: str) -> Path:
        return self.folder / f"{self.name}-{part}-{self.key[:32]}.safetensors"

    def write(self, found: Features, parts: Collection[str]) -> None:
        """Keep these parts; under its name there is never half a file.

        Raises:
            CacheError: They cannot be written there.
        """
        for part in parts:
            value = getattr(found, part)
            tensors = {"bank": value} if part == "bank" else {"mean": value.mean.cpu(), "scatter": value.scatter.cpu()}
            count = len(value) if part == "bank" else value.count
            path = self.path(part)
            try:
                with atomically(path) as unfinished:
                    safetensors.torch.save_file(tensors, unfinished, metadata={"fastdgl": json.dumps({"key": self.key, "count": count})})
            except (OSError, safetensors.SafetensorError) as error:
                raise CacheError(f"{path} cannot be written: {error}") from None

    def read(self, found: Features, parts: Collection[str], run: Run) -> None:
        """Fill these parts of `found`.

        Raises:
            CacheError: One is damaged.
        """
        for part in parts:
            path = self.path(part)
            try:
                with safetensors.safe_open(path, framework="pt") as file:
                    header = json.loads(file.metadata()["fastdgl"])
                    tensors = {name: file.get_tensor(name) for name in file.keys()}
                if header["key"] != self.key:
                    raise KeyError(self.key)
                if part == "bank":
                    found.bank = tensors["bank"]
                else:
                    found.moments = Moments(header["count"], tensors["mean"].to(run.device), tensors["scatter"].to(run.device))
            except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError):
                raise CacheError(f"{path} is damaged, and held features of real images; remove it, and they are computed again") from None


def real_features(dataset: ImageDataset, detector: Detector, wanted: Collection[str], run: Run, folder: Path, batch: int, workers: int) -> Features:
    """Moments or bank of all images of a dataset: from `folder`, which exists, or computed and kept there. All ranks call it together.

    They are known again by the content of the images and of the detector, wherever both lie.

    Returns:
        As `collect` does: filled on rank 0.

    Raises:
        DatasetError, DetectorError, CacheError: On every rank.
    """
    def look() -> tuple[Kept, list[str]]:
        settings = {"format": FORMAT, "images": dataset.fingerprint, "detector": detector.sha256, "most": MAX_BANK}
        kept = Kept(folder, dataset.name, hashlib.sha256(json.dumps(settings).encode()).hexdigest())
        return kept, sorted(part for part in wanted if not kept.path(part).exists())

    if not wanted:
        return Features()
    kept, missing = first_rank_decides(look)
    found = Features()
    if missing:
        found = collect(real_images(dataset, run, batch, workers), len(dataset), detector, missing, run, "real images")
        first_rank_decides(lambda: kept.write(found, missing))
    first_rank_decides(lambda: kept.read(found, set(wanted) - set(missing), run))
    return found
