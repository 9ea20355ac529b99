"""The metrics by the names that the field knows them by, and the line that each leaves."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..atomic_files import atomically, writing
from ..engines import Run, first_rank_decides
from ..images import ImageDataset
from ..journal import format_time
from ..models.stylegan2 import Generator as StyleGAN2
from . import density_coverage, inception_score, kernel_distance, precision_recall
from .cache import real_features
from .detectors import Detector
from .features import MAX_BANK, Features, collect, fake_images, real_images, seen_in
from .frechet_distance import frechet_distance
from .moments import FeatureError
from .path_length import MOST_PIXELS, path_lengths, perceptual_path_length, scaled_down

NUM = 50_000


@dataclass(frozen=True)
class Metric:
    """A metric of NUM fakes.

    part: Of `Features`, which it is computed of.
    least: So many images there must be, of both kinds.
    compute: Of real images, fakes, and the device to compute on: its numbers by what is put behind the metric's name.
    better: `min` or `max` of two networks' numbers is that of the better one, for those numbers that tell.
    detector: The one that published numbers are by.
    uses_real: Whether it compares with real images.
    """

    part: str
    least: int
    compute: Callable[[Features, Features, torch.device], dict[str, float]]
    better: Mapping[str, Callable[[float, float], float]]
    detector: str = "inception"
    uses_real: bool = True


def of_banks(distance: Callable[..., Any], *suffixes: str) -> Callable[[Features, Features, torch.device], dict[str, float]]:
    """A metric of two banks of features that gives a number for each suffix."""
    def compute(real: Features, fake: Features, device: torch.device) -> dict[str, float]:
        numbers = distance(real.bank.to(device), fake.bank.to(device))
        return dict(zip(suffixes, numbers if len(suffixes) > 1 else [numbers]))
    return compute


METRICS = {
    "fid50k_full": Metric("moments", 2, lambda real, fake, device: {"": frechet_distance(real.moments, fake.moments)}, {"": min}),
    "kid50k_full": Metric("bank", 2, of_banks(kernel_distance.kernel_distance, ""), {"": min}),
    "pr50k3_full": Metric("bank", precision_recall.K + 1, of_banks(precision_recall.precision_recall, "_precision", "_recall"),
                          {"_precision": max, "_recall": max}, "vgg16"),
    "dc50k5_full": Metric("bank", density_coverage.K + 1, of_banks(density_coverage.density_coverage, "_density", "_coverage"),
                          {"_density": max, "_coverage": max}, "vgg16"),
    "is50k": Metric("probabilities", inception_score.SPLITS,
                    lambda real, fake, device: dict(zip(("_mean", "_std"), inception_score.inception_score(fake.probabilities))),
                    {"_mean": max}, uses_real=False),
    "ppl2_wend": Metric("path_lengths", 1, lambda real, fake, device: {"": perceptual_path_length(fake.path_lengths)}, {"": min}, "vgg16",
                        uses_real=False),
}
# the numbers by which one network is better than another, by their names
BETTER = {metric + suffix: better for metric, it in METRICS.items() for suffix, better in it.better.items()}


def name_of(metric: str, num: int) -> str:
    """What a metric of so many fakes is called, or a number of it: of NUM `fid50k_full`, of 1,000 `fid1k_full`, of 1,500 `fid1.5k_full`.

    Of `ppl2_wend`, whose name has no number, only the line tells.
    """
    return metric.replace("50k", f"{num / 1000}k".replace(".0k", "k"))


def how_drawn(truncation: float | None, standing: int | None) -> str:
    """Return what the name of a metric ends with where images are not drawn as published numbers want them: `_trunc0.7`."""
    return ("" if truncation is None else f"_trunc{truncation:g}") + ("" if standing is None else f"_standing{standing}")


def plain_name(name: str) -> str:
    """Return the name of a number without what `how_drawn` has put into it."""
    return re.sub(r"_trunc-?[\d.e+-]+?(?=_|$)|_standing\d+(?=_|$)", "", name)


def evaluate(metrics: Sequence[str], fakes: nn.Module | ImageDataset, dataset: ImageDataset, detector: Detector, run: Run, *,
             num: int, cache: Path, batch: int, workers: int, truncation: float | None = None,
             standing: int | None = None) -> Iterator[tuple[str, dict[str, float], int]]:
    """The metrics of a generator or of images, one after the other. All ranks call it together, with TF32 off.

    Args:
        metrics: Of METRICS.
        fakes: A generator; or images that were drawn elsewhere, of which `num` are taken, evenly spaced.
        dataset: The real images, which also say how often each class is drawn.
        num: How many fakes, or paths.
        cache: Folder of what was seen in real images.
        batch: Images at once on each rank.
        workers: Processes that decode real images.
        truncation: Of `sample_z` and `sample_images`; it becomes part of the metrics' names.
        standing: How many batches the batch norms of the generator have been given the statistics of; likewise.

    Returns:
        An iterator over the name of each metric, its results, and how many real images it compared with, on every rank.

    Raises:
        FeatureError: As of `check_computable`, before any image is looked at.
        DatasetError, DetectorError, CacheError: From there.
    """
    check_computable(metrics, type(fakes), num, len(dataset))
    chosen = [METRICS[metric] for metric in metrics]
    wanted = {it.part for it in chosen} - {"path_lengths"}
    # first, as a detector without LPIPS is refused at once
    lengths = path_lengths(fakes, dataset, num, detector, run, batch) if any(it.part == "path_lengths" for it in chosen) else None
    real = real_features(dataset, detector, {it.part for it in chosen if it.uses_real}, run, cache, batch, workers)
    if isinstance(fakes, ImageDataset):
        images = real_images(fakes, run, batch, workers, num)
    else:
        images = fake_images(fakes, dataset, num, run, batch, truncation)
    fake = collect(images, num, detector, wanted, run, "fakes") if wanted else Features()
    fake.path_lengths = lengths
    for metric, it in zip(metrics, chosen):
        name = name_of(metric, num) + how_drawn(truncation, standing)
        numbers = first_rank_decides(lambda it=it: it.compute(real, fake, run.device))
        num_real = min(len(dataset), MAX_BANK if it.part == "bank" else len(dataset)) if it.uses_real else 0
        yield name, {name + suffix: number for suffix, number in numbers.items()}, num_real


def check_computable(metrics: Sequence[str], kind: type[nn.Module], num: int, num_real: int) -> None:
    """Refuse metrics, of METRICS, that a generator of this kind does not have, or not of so many fakes and real images.

    Raises:
        FeatureError: One of them.
    """
    for metric in metrics:
        it = METRICS[metric]
        if it.part == "path_lengths" and issubclass(kind, ImageDataset):
            raise FeatureError(f"{metric} is the length of paths in w, which a network has and images have not; leave {metric} out")
        if it.part == "path_lengths" and not issubclass(kind, StyleGAN2):
            raise FeatureError(f"{metric} is the length of paths in w, which a StyleGAN2 has and this network has not; leave {metric} out")
        for what, count in (("fakes", num), *([("real images", num_real)] if it.uses_real else [])):
            if count < it.least:
                raise FeatureError(f"{metric} needs at least {it.least} {what}, got {count}")


@torch.no_grad()
def check_detector(metrics: Sequence[str], dataset: ImageDataset, detector: Detector, device: torch.device) -> None:
    """Let the detector see one image.

    Raises:
        DetectorError: It sees nothing in it that these metrics can be computed of.
        DatasetError: The image cannot be read.
    """
    pixels, _ = dataset[0]
    image, parts = torch.tensor(pixels, device=device)[None], {METRICS[metric].part for metric in metrics}
    seen_in(image, detector, parts)
    if "path_lengths" in parts:
        detector.lpips(scaled_down(image.float()))


def grouped(metrics: Sequence[str], detector_name: str | None) -> dict[str, list[str]]:
    """The metrics by the detector that each is computed by: that one, or else the one of published numbers."""
    groups: dict[str, list[str]] = {}
    for metric in metrics:
        groups.setdefault(detector_name or METRICS[metric].detector, []).append(metric)
    return groups


def resizing(metric: str, resolution: int) -> str:
    """What a metric does to the size of images before the detector, in words."""
    if METRICS[metric].part == "path_lengths" and resolution > MOST_PIXELS:
        return f"to {MOST_PIXELS}x{MOST_PIXELS} by means over squares, before the detector"
    return "none before the detector"


def evaluated(groups: Sequence[tuple[Detector, Sequence[str]]], fakes: nn.Module | ImageDataset, dataset: ImageDataset, run: Run, *,
              snapshot: str, seen: int, data: str, num: int, cache: Path, batch: int, workers: int, truncation: float | None = None,
              standing: int | None = None) -> Iterator[dict[str, Any]]:
    """As `evaluate`, by several detectors: of each metric its results and how they came about, with the fields that NVIDIA's metrics write first.

    Args:
        groups: Detectors, each with its metrics.
        snapshot: The file name of the network, or of the fakes.
        seen: How many images its D was shown.
        data: The dataset as the user called it.
    """
    start = time.time()
    for detector, metrics in groups:
        found = evaluate(metrics, fakes, dataset, detector, run, num=num, cache=cache, batch=batch, workers=workers, truncation=truncation,
                         standing=standing)
        for metric, (name, results, num_real) in zip(metrics, found, strict=True):
            seconds = time.time() - start
            # num_gpus and snapshot_pkl are what the field's scripts look for, whatever computed and whatever the file
            yield {"results": results, "metric": name, "total_time": seconds, "total_time_str": format_time(seconds), "num_gpus": run.world_size,
                   "snapshot_pkl": snapshot, "timestamp": time.time(), "seen": seen, "detector": detector.name, "detector_sha256": detector.sha256,
                   "resizing": resizing(metric, dataset.resolution), "data": data, "num_real": num_real, "num_fake": num,
                   "truncation": truncation, "standing": standing}


def lines_path(folder: Path, name: str) -> Path:
    """Where the lines of a metric are."""
    return folder / f"metric-{name}.jsonl"


def append_line(folder: Path, line: dict[str, Any]) -> None:
    """Add a line to `metric-<name>.jsonl`, which is of the line's metric."""
    path = lines_path(folder, line["metric"])
    with writing(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def metric_lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """What is in `metric-<name>.jsonl`, but for a line that was cut short when its writer was killed."""
    path, found = lines_path(folder, name), []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return found


def replace_lines(folder: Path, name: str, kept: Sequence[dict[str, Any]]) -> None:
    """Let `metric-<name>.jsonl` hold these lines."""
    with atomically(lines_path(folder, name)) as unfinished:
        unfinished.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
