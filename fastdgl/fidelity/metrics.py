"""The metrics by the names that the field knows them by, and the line that each leaves."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..engines import Run, first_rank_decides
from ..images import ImageDataset
from ..models.stylegan2 import Generator as StyleGAN2
from . import density_coverage, inception_score, kernel_distance, precision_recall
from .cache import real_features
from .detectors import Detector
from .features import MAX_BANK, Features, collect, fake_images
from .frechet_distance import frechet_distance
from .moments import FeatureError
from .path_length import path_lengths, perceptual_path_length

NUM = 50_000


@dataclass(frozen=True)
class Metric:
    """A metric of NUM fakes.

    part: Of `Features`, which it is computed of.
    least: So many images there must be, of both kinds.
    compute: Of real images, fakes, and the device to compute on: its numbers by what is put behind the metric's name.
    detector: The one that published numbers are by.
    uses_real: Whether it compares with real images.
    """

    part: str
    least: int
    compute: Callable[[Features, Features, torch.device], dict[str, float]]
    detector: str = "inception"
    uses_real: bool = True


def of_banks(distance: Callable[..., Any], *suffixes: str) -> Callable[[Features, Features, torch.device], dict[str, float]]:
    """A metric of two banks of features that gives a number for each suffix."""
    def compute(real: Features, fake: Features, device: torch.device) -> dict[str, float]:
        numbers = distance(real.bank.to(device), fake.bank.to(device))
        return dict(zip(suffixes, numbers if len(suffixes) > 1 else [numbers]))
    return compute


METRICS = {
    "fid50k_full": Metric("moments", 2, lambda real, fake, device: {"": frechet_distance(real.moments, fake.moments)}),
    "kid50k_full": Metric("bank", 2, of_banks(kernel_distance.kernel_distance, "")),
    "pr50k3_full": Metric("bank", precision_recall.K + 1, of_banks(precision_recall.precision_recall, "_precision", "_recall"), "vgg16"),
    "dc50k5_full": Metric("bank", density_coverage.K + 1, of_banks(density_coverage.density_coverage, "_density", "_coverage"), "vgg16"),
    "is50k": Metric("probabilities", inception_score.SPLITS,
                    lambda real, fake, device: dict(zip(("_mean", "_std"), inception_score.inception_score(fake.probabilities))),
                    uses_real=False),
    "ppl2_wend": Metric("path_lengths", 1, lambda real, fake, device: {"": perceptual_path_length(fake.path_lengths)}, "vgg16", uses_real=False),
}


def name_of(metric: str, num: int) -> str:
    """What a metric of so many fakes is called: of NUM `fid50k_full`, of 1,000 `fid1k_full`, of 1,500 `fid1.5k_full`.

    Of `ppl2_wend`, whose name has no number, only the line tells.
    """
    return metric.replace("50k", f"{num / 1000}k".replace(".0k", "k"))


def evaluate(metrics: Sequence[str], G: nn.Module, dataset: ImageDataset, detector: Detector, run: Run, *,
             num: int, cache: Path, batch: int, workers: int) -> Iterator[tuple[str, dict[str, float], int]]:
    """The metrics of a generator, one after the other. All ranks call it together, with TF32 off.

    Args:
        metrics: Of METRICS.
        dataset: The real images, which also say how often each class is drawn.
        num: How many fakes, or paths.
        cache: Folder of what was seen in real images.
        batch: Images at once on each rank.
        workers: Processes that decode real images.

    Returns:
        An iterator over the name of each metric, its results, and how many real images it compared with, on every rank.

    Raises:
        FeatureError: As of `check_computable`, before any image is looked at.
        DatasetError, DetectorError, CacheError: From there.
    """
    check_computable(metrics, G, num, len(dataset))
    chosen = [METRICS[metric] for metric in metrics]
    wanted = {it.part for it in chosen} - {"path_lengths"}
    # first, as a detector without LPIPS is refused at once
    lengths = path_lengths(G, dataset, num, detector, run, batch) if any(it.part == "path_lengths" for it in chosen) else None
    real = real_features(dataset, detector, {it.part for it in chosen if it.uses_real}, run, cache, batch, workers)
    fake = collect(fake_images(G, dataset, num, run, batch), num, detector, wanted, run, "fakes") if wanted else Features()
    fake.path_lengths = lengths
    for metric, it in zip(metrics, chosen):
        name = name_of(metric, num)
        numbers = first_rank_decides(lambda it=it: it.compute(real, fake, run.device))
        num_real = min(len(dataset), MAX_BANK if it.part == "bank" else len(dataset)) if it.uses_real else 0
        yield name, {name + suffix: number for suffix, number in numbers.items()}, num_real


def check_computable(metrics: Sequence[str], G: nn.Module, num: int, num_real: int) -> None:
    """Refuse metrics, of METRICS, that such a generator does not have, or not of so many fakes and real images.

    Raises:
        FeatureError: One of them.
    """
    for metric in metrics:
        it = METRICS[metric]
        if it.part == "path_lengths" and not isinstance(G, StyleGAN2):
            raise FeatureError(f"{metric} is the length of paths in w, which a StyleGAN2 has and this network has not; leave {metric} out")
        for what, count in (("fakes", num), *([("real images", num_real)] if it.uses_real else [])):
            if count < it.least:
                raise FeatureError(f"{metric} needs at least {it.least} {what}, got {count}")


def append_line(folder: Path, name: str, line: dict[str, Any]) -> None:
    """Add a line to `metric-<name>.jsonl`."""
    with open(folder / f"metric-{name}.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
