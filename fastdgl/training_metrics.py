"""The metrics of a run's snapshots while it trains, and which snapshot is its best."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from .checkpoints import BEST_NAME, SNAPSHOT_PATTERN, keep_as_best, open_snapshot
from .config import Config
from .download import cache_folder
from .engines import Run, allow_tf32, first_rank_decides
from .fidelity.cache import check_writable
from .fidelity.detectors import Detector, open_detector
from .fidelity.metrics import (
    BETTER, append_line, check_computable, check_detector, evaluated, grouped, lines_path, metric_lines, name_of, replace_lines,
)
from .images import ImageDataset
from .interruption import StopRequest
from .journal import Journal
from .models import FAMILIES


class Evaluator:
    """Computes the metrics that a config asks for, as `fastdgl evaluate` does, of snapshots of its run. All ranks make one together.

    A metric's line in `metric-<name>.jsonl` is written last: a metric without one is computed again when the run is resumed.

    Args:
        dataset: The training set.

    Raises:
        DetectorError: A detector is missing, or cannot see in such images what the metrics take.
        FeatureError: There are too few images for a metric, or such networks do not have it.
        CacheError: The folder for features takes no files.
    """

    def __init__(self, config: Config, dataset: ImageDataset, run: Run):
        self.config, self.run, self.dataset = config, run, dataset.unmirrored()
        settings = config.metrics
        self.cache = cache_folder() if settings.cache is None else Path(settings.cache)
        generator, _ = FAMILIES[config.model.family]
        check_computable(settings.names, generator, settings.fakes, len(self.dataset))
        check_writable(self.cache, "metrics.cache")
        self.groups = [(open_detector(name, run.device, settings.sha256, self.cache), metrics)
                       for name, metrics in grouped(settings.names, settings.detector).items()]
        for detector, metrics in self.groups:
            check_detector(metrics, self.dataset, detector, run.device)

    def evaluate(self, path: Path, names: Collection[str], seen: int, journal: Journal, stop: StopRequest) -> None:
        """Compute these metrics of the snapshot at `path`, saved after `seen` images, or as many as are done when the run is asked to stop.

        All ranks call it together.
        """
        def keep(line: dict[str, Any]) -> None:
            for key, value in line["results"].items():
                journal.message(f"{path.name}: {key} {value:.6g}")
            journal.amend(seen, {f"Metrics/{key}": value for key, value in line["results"].items()})
            self._keep_if_best(path, line, seen, journal)
            append_line(path.parent, line)

        chosen = [(detector, [metric for metric in metrics if metric in names]) for detector, metrics in self.groups]
        with self._apart_from_training():
            G = open_snapshot(path).averaged_generator(self.run.device)
            for line in evaluated([group for group in chosen if group[1]], G, self.dataset, self.run, snapshot=path.name, seen=seen,
                                  data=self.config.images.path, num=self.config.metrics.fakes, cache=self.cache,
                                  batch=min(self.config.metrics.batch, self.config.images_at_once(self.run.world_size)), workers=self.config.images.workers):
                first_rank_decides(lambda line=line: keep(line))
                if stop.agreed(at_once=True):
                    break

    def forget_after(self, path: Path, seen: int) -> None:
        """Drop what an interrupted run wrote of the snapshots after that at `path`, saved after `seen` images: they will come again."""
        for metric in self.config.metrics.names:
            name = name_of(metric, self.config.metrics.fakes)
            if lines_path(path.parent, name).exists():
                replace_lines(path.parent, name, [line for line in metric_lines(path.parent, name) if not is_later(line, seen)])

    def missing(self, path: Path, seen: int) -> list[str]:
        """The metrics that have no line yet of the snapshot at `path`, saved after `seen` images; none where that is gone."""
        def has_line(metric: str, detector: Detector) -> bool:
            # two snapshots of the same thousand images have the same name
            wanted = {"snapshot_pkl": path.name, "seen": seen, "detector_sha256": detector.sha256, "data": self.config.images.path, "num_fake": self.config.metrics.fakes}
            return any(line | wanted == line for line in metric_lines(path.parent, name_of(metric, self.config.metrics.fakes)))

        return [metric for detector, metrics in self.groups for metric in metrics if path.exists() and not has_line(metric, detector)]

    def _keep_if_best(self, path: Path, line: Mapping[str, Any], seen: int, journal: Journal) -> None:
        """Copy the snapshot at `path` to the best, unless that is as good: of all that were ever evaluated in this folder."""
        number = self.config.metrics.keep_best
        name = number and name_of(number, line["num_fake"])
        if name not in line["results"]:
            return
        best = path.with_name(BEST_NAME)
        before = (open_snapshot(best).best if best.exists() else None) or {}
        # a value of other fakes or by another detector means nothing here
        what = {"number": name, "num_fake": line["num_fake"], "detector_sha256": line["detector_sha256"]}
        value = line["results"][name]
        if before | what != before or BETTER[number](before["value"], value) != before["value"]:
            keep_as_best(path, what | {"value": value, "kimg": seen / 1000})
            journal.message(f"{path.name} has the best {name} so far: kept as {BEST_NAME}")

    @contextmanager
    def _apart_from_training(self) -> Iterator[None]:
        """What is computed inside leaves the run's random numbers and precision as they were."""
        with torch.random.fork_rng([self.run.device] if self.run.device.type == "cuda" else []):
            allow_tf32(False)
            try:
                yield
            finally:
                allow_tf32(self.config.engine.allow_tf32)


def is_later(line: Mapping[str, Any], seen: int) -> bool:
    """Whether a metric's line is of a snapshot that a run saved after more than `seen` images; its best, or what is no run's, is none."""
    return fnmatch(str(line.get("snapshot_pkl")), SNAPSHOT_PATTERN) and line.get("seen", 0) > seen
