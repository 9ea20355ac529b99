"""What lies beside a snapshot: the metrics that were computed of it, and the statistics of the run that made it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints import SNAPSHOT_NAME, Snapshot
from ..fidelity.metrics import BETTER, name_of, plain_name

STATISTICS = "stats.jsonl"
LOSS, METRIC = "Loss/", "Metrics/"
# what has to be equal for two numbers to be comparable, and what it is called
CONDITIONS = {"detector_sha256": "detector", "resizing": "resizing", "data": "real images", "num_real": "number of real images",
              "num_fake": "number of fakes"}


@dataclass(frozen=True)
class Measured:
    """One number of a metric, and how it came about.

    name: Such as `pr50k3_full_precision`.
    conditions: By the keys of CONDITIONS; None for what the line does not say.
    detector: The name of its file.
    """

    name: str
    value: float
    conditions: Mapping[str, Any]
    detector: str
    timestamp: float

    @property
    def better(self) -> str:
        """Which of two values is the better one, in words; empty for a number that does not tell."""
        num = self.conditions["num_fake"]
        directions = {name_of(name, num) if isinstance(num, int) else name: direction for name, direction in BETTER.items()}
        return {min: "lower is better", max: "higher is better"}.get(directions.get(plain_name(self.name)), "")

    def comparable_with(self, other: "Measured") -> bool:
        """Whether all that has to be equal is known and equal."""
        return not self.differences(other)

    def differences(self, other: "Measured") -> list[str]:
        """What differs, or is not known, in words."""
        unknown = [CONDITIONS[key] for key in CONDITIONS if self.conditions[key] is None or other.conditions[key] is None]
        return unknown + [CONDITIONS[key] for key in CONDITIONS if CONDITIONS[key] not in unknown and self.conditions[key] != other.conditions[key]]


@dataclass(frozen=True)
class Metrics:
    """What the metric-*.jsonl beside a snapshot say of it.

    numbers: Of this very snapshot; of several lines that are comparable, the last.
    elsewhere: How many lines are of other snapshots.
    unreadable: How many lines say nothing that could be understood.
    """

    numbers: Sequence[Measured]
    elsewhere: int
    unreadable: int


def metrics_of(snapshot: Snapshot) -> Metrics:
    """Read all `metric-*.jsonl` that `fastdgl evaluate` has written for a snapshot.

    Raises:
        OSError: A file cannot be read.
    """
    # the best of a run is a copy, and was evaluated under its first name
    names = {snapshot.path.name} | ({SNAPSHOT_NAME.format(snapshot.seen // 1000)} if snapshot.best else set())
    numbers: list[Measured] = []
    elsewhere = unreadable = 0
    for path in sorted(snapshot.folder.glob("metric-*.jsonl")):
        for line in objects(path):
            found = None if line is None else measured(line)
            if found is None:
                unreadable += 1
            elif line.get("snapshot_pkl") not in names:
                elsewhere += 1
            else:
                numbers += found
    latest: dict[tuple, Measured] = {}
    for number in sorted(numbers, key=lambda number: number.timestamp):
        latest[(number.name, *map(str, number.conditions.values()))] = number
    return Metrics(list(latest.values()), elsewhere, unreadable)


def measured(line: Mapping[str, Any]) -> list[Measured] | None:
    """The numbers of one line; None if it has none."""
    results, when = line.get("results"), line.get("timestamp")
    if not isinstance(results, dict) or not results or not all(map(is_number, results.values())):
        return None
    conditions = {key: line.get(key) for key in CONDITIONS}
    timestamp = float(when) if is_number(when) else 0.0
    return [Measured(name, float(value), conditions, str(line.get("detector", "not said")), timestamp) for name, value in results.items()]


def curves_of(snapshot: Snapshot) -> dict[str, list[tuple[float, float | None]]]:
    """Statistics of the run that a snapshot lies in, each as points of (kimg, mean); empty if it lies in none.

    Of losses and scores, and of metrics. A run's first line is of a single step: its losses, often far off the rest, are left out.

    Raises:
        OSError: The file cannot be read.
    """
    path = snapshot.folder / STATISTICS
    curves: dict[str, list[tuple[float, float | None]]] = {}
    for line in objects(path) if path.is_file() else []:
        kimg = mean(line, "Progress/kimg")
        if kimg is None:
            continue
        for name in line:
            if name.startswith(METRIC) or (name.startswith(LOSS) and mean(line, "Progress/tick") != 0):
                curves.setdefault(name, []).append((kimg, mean(line, name)))
    return curves


def mean(line: Mapping[str, Any] | None, name: str) -> float | None:
    """Of one statistic of a line; None where it is missing, or was not finite."""
    statistic = line.get(name) if line else None
    value = statistic.get("mean") if isinstance(statistic, dict) else statistic
    return float(value) if is_number(value) and math.isfinite(value) else None


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def objects(path: Path) -> list[dict[str, Any] | None]:
    """The lines of a .jsonl file; None for one that was cut short, or is no object."""
    lines = []
    for text in path.read_bytes().splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        lines.append(line if isinstance(line, dict) else None)
    return lines
