"""What a training run writes and prints: its folder, the tick line, log.txt, stats.jsonl, TensorBoard scalars.

All ranks take part in sums over ranks; rank 0 alone writes. Nothing here knows of models or checkpoints.
"""

import json
import math
import os
import re
import sys
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from .atomic_files import DiskFullError, atomically, writing

GIB = 2**30  # bytes
LOSSES_ON_THE_TICK_LINE = ("G/loss", "D/loss")
# the first closes after one step
TICKS_BEFORE_THE_ESTIMATE = 2

# One statistic: num (how many values), mean, std.
Statistic = dict[str, float]


class RunFolderError(OSError):
    """No run folder can be made; the message says why, for the one who chose the place."""


def new_run_folder(outdir: Path | str, description: str) -> Path:
    """Make the next run folder, `outdir/00000-description`, and return it.

    The number is one more than the highest there. No two runs get the same number, not even if they start at once
    and under different descriptions. `outdir` is made if need be.

    Raises:
        RunFolderError: `outdir` is not a folder, cannot be written to, or `description` is not a file name.
    """
    outdir = Path(outdir)
    # os.path, which answers where a folder on the way may not be entered
    if os.path.exists(outdir) and not os.path.isdir(outdir):
        raise RunFolderError(f"runs cannot be kept in {outdir}: it is a file, expected a folder")
    if Path(description).name != description:
        raise RunFolderError(f"a run cannot be called {description!r}: its name becomes part of a folder's name")
    try:
        outdir.mkdir(parents=True, exist_ok=True)
        while True:
            number = next_number(outdir)
            folder = outdir / f"{number:05d}-{description}"
            if claimed(folder):
                return folder
    except OSError as error:
        raise RunFolderError(f"cannot make a run folder in {outdir}: {error.strerror}") from error


def next_number(outdir: Path) -> int:
    """One more than the highest run number in `outdir`; 0 where there is none."""
    runs = [re.match(r"(\d{5,})(-|$)", entry.name) for entry in outdir.iterdir()]
    return max((int(run[1]) for run in runs if run), default=-1) + 1


def claimed(folder: Path) -> bool:
    """Make `folder` unless its number is taken; True if made.

    mkdir decides between equal names. Between different names of one number, whoever finds a neighbour afterwards
    gives way: of two, at least the later one does.
    """
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    number = folder.name.partition("-")[0]
    alone = len(list(folder.parent.glob(f"{number}-*"))) == 1
    if not alone:
        folder.rmdir()
    return alone


def format_time(seconds: float) -> str:
    """A duration as people say it: `45s`, `3m 05s`, `1h 19m 08s`, `2d 03h 12m`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    d, h = divmod(hours, 24)
    if d:
        return f"{d}d {h:02d}h {m:02d}m"
    if h:
        return f"{h}h {m:02d}m {s:02d}s"
    return f"{m}m {s:02d}s" if m else f"{s}s"


class Statistics:
    """Mean and spread of named values, over steps and ranks.

    Args:
        device: Where sums over ranks are taken: the GPU of this rank under NCCL.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._totals: dict[tuple[str, torch.device], Tensor] = {}

    def record(self, name: str, values: Tensor | float) -> None:
        """Add values to those of `name`. Never waits for the device.

        Args:
            name: As in stats.jsonl: `Loss/G/loss`.
            values: Any shape, any number of them, none included. Detached.
        """
        device = values.device if isinstance(values, Tensor) else torch.device("cpu")
        x = torch.as_tensor(values, dtype=wide(device), device=device).detach()
        # the count is filled in on the device: copying it there would wait
        totals = torch.stack([torch.full_like(x, 1).sum(), x.sum(), x.square().sum()])
        # one sum per device, or a float recorded beside a tensor would have to travel
        key = name, device
        # not in place: what was made in inference mode could not be added to outside
        self._totals[key] = self._totals[key] + totals if key in self._totals else totals

    def collect(self) -> dict[str, Statistic]:
        """Everything recorded since the last call, by any rank, and start afresh. All ranks call it together.

            mean = sum x / num,  std = sqrt(sum x² / num - mean²)

        Returns:
            The same on each rank: name to `{"num", "mean", "std"}`, sorted by name. Names without values are left out.
        """
        names = recorded_by_any_rank({name for name, _ in self._totals})
        table = torch.zeros(len(names), 3, dtype=wide(self.device), device=self.device)  # count, sum, sum of squares
        for (name, _), totals in self._totals.items():
            table[names.index(name)] += totals.to(table)
        self._totals.clear()
        if distributed() and names:
            dist.all_reduce(table)
        return {name: statistic(*totals) for name, totals in zip(names, table.tolist()) if totals[0]}


def wide(device: torch.device) -> torch.dtype:
    """The widest floating dtype the device has."""
    return torch.float32 if device.type == "mps" else torch.float64


def distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def recorded_by_any_rank(names: set[str]) -> list[str]:
    """The names of all ranks, sorted: ranks that summed rows of different names would mix them up in silence."""
    everyone = [names]
    if distributed():
        everyone = [set()] * dist.get_world_size()
        dist.all_gather_object(everyone, names)
    return sorted(set().union(*everyone))


def statistic(num: float, total: float, squares: float) -> Statistic:
    """Number, mean and standard deviation (of the population, as peers report it) from sums."""
    mean = total / num
    # rounding can leave a constant a variance just below zero; max keeps a NaN that comes first
    return {"num": int(num), "mean": mean, "std": math.sqrt(max(squares / num - mean * mean, 0.0))}


def single(value: float) -> Statistic:
    """A value that was measured once, in the shape of the others."""
    return {"num": 1, "mean": value, "std": 0.0}


class Journal:
    """The record of one run: say what happens, and it is printed and kept.

    Files are appended to, so a resumed run goes on where the old one stopped. On ranks other than 0 nothing is printed
    or written, but `tick` takes part in the sums, so all ranks call it.

    Args:
        folder: The run folder, which exists; `None` prints only.
        total_images: When the run will end, images over all ranks.
        start_images: Where it starts; not 0 when resumed.
        rank: Of this process.
        device: Where this rank trains; its memory is reported, sums over ranks are taken there.
        progress: Show a bar with images/s and the time left, on stderr where that is a terminal.
        elapsed: Seconds trained before a resume (`Timing/total_sec`), so that the total goes on.
        stage: What the bar calls this run, such as `guided 3/3`.
    """

    def __init__(
        self,
        folder: Path | str | None,
        *,
        total_images: int,
        start_images: int = 0,
        rank: int = 0,
        device: torch.device | str = "cpu",
        progress: bool = True,
        elapsed: float = 0.0,
        stage: str = "",
    ) -> None:
        self.rank = rank
        self.folder = Path(folder) if folder is not None and rank == 0 else None
        self.statistics = Statistics(device)
        self._scalars = self._tensorboard(start_images) if self.folder else None
        if self.folder and start_images:
            self._forget_after(start_images)
        self._seen, self._total, self._ticks = start_images, total_images, 0
        # from here, or the first tick would pay for the import of TensorBoard
        self._tick_end = time.perf_counter()
        self._start = self._tick_end - elapsed
        # disable=None: no bar where stderr is a file, it would fill it
        self._bar = tqdm(
            desc=stage or None, total=total_images, initial=start_images, unit="img", unit_scale=True, dynamic_ncols=True,
            mininterval=1, smoothing=0.05, disable=None if progress and rank == 0 else True,
        )

    def _tensorboard(self, start_images: int) -> Any | None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.message("TensorBoard is not installed: no event files are written (pip install tensorboard)")
            return None
        # what an interrupted run wrote after its last checkpoint will come again
        return SummaryWriter(str(self.folder), purge_step=start_images + 1 if start_images else None)

    def _forget_after(self, images: int) -> None:
        """Drop from stats.jsonl what an interrupted run wrote after its last checkpoint: it will come again."""
        path = self.folder / "stats.jsonl"
        if not path.exists():
            return
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if shown_by(line) <= images]
        with atomically(path) as unfinished:
            unfinished.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def record(self, name: str, values: Tensor | float) -> None:
        """Add values to a statistic of this tick: `Statistics.record`."""
        self.statistics.record(name, values)

    def advance(self, images: int) -> None:
        """Move the bar: so many more images were shown, over all ranks."""
        self._bar.update(images)

    def message(self, text: str) -> None:
        """Print, and keep in log.txt."""
        if self.rank != 0:
            return
        tqdm.write(text)
        sys.stdout.flush()
        self._append("log.txt", text)

    def tick(self, seen: int, tick: int, maintenance_time: float, augment: float = 0.0) -> dict[str, Statistic]:
        """Close a tick: sum up what was recorded, print the tick line, keep it all. All ranks call it together.

        Args:
            seen: Images shown to D since the run began, over all ranks.
            tick: Its number.
            maintenance_time: Seconds since the last tick, or since the journal was made, that were not training
                (snapshots, metrics); taken off sec/tick and sec/kimg.
            augment: Probability of augmentation.

        Returns:
            Recorded statistics, the same on each rank, and this rank's own `Progress/*`, `Timing/*`, `Resources/*`.
        """
        # collect waits for the device, so the clock is read after it
        stats = self.statistics.collect()
        stats |= self._progress(seen, tick, maintenance_time, augment)
        self.message(tick_line(stats))
        self._estimate(stats, seen)
        self._keep(stats, seen)
        return stats

    def _estimate(self, stats: dict[str, Statistic], seen: int) -> None:
        """Say how long the run will take, once a whole tick has been timed; its first tick has warmed up only."""
        self._ticks += 1
        hours = self._hours_left(stats["Timing/sec_per_kimg"]["mean"], seen)
        if self._ticks == TICKS_BEFORE_THE_ESTIMATE and hours:
            self.message(f"about {format_time(hours * 3600)} ({hours:.1f} hours) to go for {(self._total - seen) / 1000:g} kimg at "
                         f"{stats['Timing/sec_per_kimg']['mean']:.2f} sec/kimg, snapshots and metrics not counted")

    def _hours_left(self, sec_per_kimg: float, seen: int) -> float:
        return max(self._total - seen, 0) / 1000 * sec_per_kimg / 3600

    def _progress(self, seen: int, tick: int, maintenance_time: float, augment: float) -> dict[str, Statistic]:
        now = time.perf_counter()
        # parsers of the tick line expect no minus sign, should maintenance have begun before the journal did
        seconds = max(now - self._tick_end - maintenance_time, 0.0)
        kimg = (seen - self._seen) / 1000
        self._tick_end, self._seen = now, seen
        allocated, reserved = peak_gpu_memory(self.statistics.device)
        values = {
            "Progress/tick": tick,
            "Progress/kimg": seen / 1000,
            "Progress/augment": augment,
            "Timing/total_sec": now - self._start,
            "Timing/sec_per_tick": seconds,
            "Timing/sec_per_kimg": seconds / kimg if kimg else 0.0,
            "Timing/maintenance_sec": maintenance_time,
            "Timing/hours_left": self._hours_left(seconds / kimg if kimg else 0.0, seen),
            "Resources/cpu_mem_gb": psutil.Process().memory_info().rss / GIB,
            "Resources/peak_gpu_mem_gb": allocated,
            "Resources/peak_gpu_mem_reserved_gb": reserved,
        }
        return {name: single(value) for name, value in values.items()}

    def _keep(self, stats: dict[str, Statistic], seen: int) -> None:
        timestamp = time.time()
        self._append("stats.jsonl", json.dumps(strict(stats) | {"timestamp": timestamp}, allow_nan=False))
        self._draw(stats, seen, timestamp)

    def _draw(self, stats: dict[str, Statistic], seen: int, timestamp: float) -> None:
        """Add points to TensorBoard's curves."""
        if self._scalars:
            with self._event_file():
                for name, stat in stats.items():
                    self._scalars.add_scalar(name, stat["mean"], global_step=seen, walltime=timestamp)
                self._scalars.flush()

    def amend(self, seen: int, values: dict[str, float]) -> None:
        """Add to what is kept of the tick that closed after `seen` images what was computed since, as metrics are."""
        if self.folder is None:
            return
        path, stats = self.folder / "stats.jsonl", {name: single(value) for name, value in values.items()}
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        closed = lines and shown_by(lines[-1]) == seen
        tick = json.loads(lines.pop()) if closed else {"Progress/kimg": single(seen / 1000), "timestamp": time.time()}
        lines.append(json.dumps(tick | strict(stats), allow_nan=False))
        with atomically(path) as unfinished:
            unfinished.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        self._draw(stats, seen, time.time())

    def write_options(self, name: str, options: dict[str, Any]) -> None:
        """Keep settings as JSON under `name` (`training_options.json`); under it there is never half a file."""
        if self.folder is None:
            return
        with atomically(self.folder / name) as unfinished:
            unfinished.write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")

    def close(self) -> None:
        """Take the bar away and finish the event file."""
        self._bar.close()
        if self._scalars:
            # every tick is flushed: what has no room now had none then, and that has been told
            with suppress(DiskFullError), self._event_file():
                self._scalars.close()

    def _event_file(self) -> AbstractContextManager[None]:
        return writing(self.folder / "events.out.tfevents")

    def _append(self, name: str, line: str) -> None:
        if self.folder is None:
            return
        with writing(self.folder / name), open(self.folder / name, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def shown_by(line: str) -> float:
    """Images shown by the tick of a line of stats.jsonl; infinite for one cut short when the run was killed."""
    try:
        return round(json.loads(line)["Progress/kimg"]["mean"] * 1000)
    except (ValueError, KeyError, TypeError):
        return math.inf


def tick_line(stats: dict[str, Statistic]) -> str:
    """The lines that people watch and scripts parse, `tick 1 kimg 20.0 time 1h 19m 08s ...`, of at most 120 columns; losses come last."""
    value = {name: stat["mean"] for name, stat in stats.items()}
    fields = [
        f"tick {value['Progress/tick']:<4d}",
        f"kimg {value['Progress/kimg']:<7.1f}",
        f"time {format_time(value['Timing/total_sec']):<11s}",
        f"sec/tick {value['Timing/sec_per_tick']:<6.1f}",
        f"sec/kimg {short(value['Timing/sec_per_kimg'], 2):<6s}",
        f"maintenance {short(value['Timing/maintenance_sec'], 1):<5s}",
        f"cpumem {memory(value['Resources/cpu_mem_gb']):<5s}",
        f"gpumem {memory(value['Resources/peak_gpu_mem_gb'])}",
    ]
    more = [
        f"reserved {memory(value['Resources/peak_gpu_mem_reserved_gb'])}",
        f"augment {value['Progress/augment']:.3f}",
    ]
    more += [f"{name} {value['Loss/' + name]:.3f}" for name in LOSSES_ON_THE_TICK_LINE if "Loss/" + name in value]
    return " ".join(fields) + "\n     " + " ".join(more)


def short(value: float, decimals: int) -> str:
    """Return a number of few characters: from 1,000 up without decimals."""
    return f"{value:.{decimals if value < 1000 else 0}f}"


def memory(gib: float) -> str:
    """Return GiB in few characters: from 100 up without decimals."""
    return f"{gib:.2f}" if gib < 100 else f"{gib:.0f}"


def strict(stats: dict[str, Statistic]) -> dict[str, dict[str, float | None]]:
    """Statistics as JSON can hold them: NaN and infinity, which it has no words for, become null."""
    return {name: {key: x if math.isfinite(x) else None for key, x in stat.items()} for name, stat in stats.items()}


def peak_gpu_memory(device: torch.device) -> tuple[float, float]:
    """GiB at most allocated and reserved since the last call; 0 without CUDA."""
    if device.type != "cuda":
        return 0.0, 0.0
    peaks = torch.cuda.max_memory_allocated(device) / GIB, torch.cuda.max_memory_reserved(device) / GIB
    torch.cuda.reset_peak_memory_stats(device)
    return peaks
