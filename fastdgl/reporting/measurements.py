"""What drawing takes on this device: how long, in turns with the other networks, and how much memory, each in a process of its own."""

import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import psutil
import torch
from torch import Tensor, nn

from .. import models
from ..checkpoints import Snapshot, open_snapshot

WARM_UPS = 3
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class MeasurementError(RuntimeError):
    """What cannot be measured here, in a few words."""


class DoesNotFit(MeasurementError):
    """There is not enough memory to draw."""


@dataclass(frozen=True)
class Latency:
    """Seconds of one draw of a whole batch: the median, and the first and third quartile."""

    median: float
    low: float
    high: float

    def as_spread_as(self, other: "Latency") -> bool:
        """Whether the middle halves of the two overlap, so that their medians may differ by chance."""
        return self.low <= other.high and other.low <= self.high


def inputs(G: nn.Module, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """z and classes of the first seeds, `[batch, z_dim]` and `[batch, c_dim]`; the classes in turn."""
    z = torch.cat([G.sample_z(seed) for seed in range(batch)])
    c = torch.eye(G.c_dim)[torch.arange(batch) % G.c_dim] if G.c_dim else torch.zeros(batch, 0)
    return z.to(device), c.to(device)


@torch.no_grad()
def latencies(networks: Sequence[nn.Module], batch: int, device: torch.device, rounds: int,
              clock: Callable[[], float] = time.perf_counter) -> list[Latency]:
    """How long each network takes from z on the device to images on the device.

    In each round every network draws once, and each round begins with another one, so that what else the machine does
    falls on all alike.

    Args:
        rounds: At least 2.
    """
    drawn = [(G, *inputs(G, batch, device)) for G in networks]

    def seconds(G: nn.Module, z: Tensor, c: Tensor) -> float:
        synchronize(device)
        start = clock()
        G.sample_images(z, c)
        synchronize(device)
        return clock() - start

    for _ in range(WARM_UPS):
        for one in drawn:
            seconds(*one)
    samples: list[list[float]] = [[] for _ in drawn]
    for turn in range(rounds):
        for i in range(len(drawn)):
            which = (turn + i) % len(drawn)
            samples[which].append(seconds(*drawn[which]))
    return [Latency(median(sampled), quantiles(sampled)[0], quantiles(sampled)[-1]) for sampled in samples]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(path: Path, batch: int, device: torch.device) -> int:
    """Bytes that a network and one draw of a batch take at most: its weights, and all that drawing needs besides.

    On CUDA, what PyTorch has allocated; else, by how much the resident memory of a fresh process has grown at its peak.

    Raises:
        DoesNotFit: So much memory there is not.
        MeasurementError: The system does not tell.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(peak_in_this_process, path, batch, str(device), torch.get_num_threads()).result()
        except BrokenProcessPool:
            raise DoesNotFit("the process that drew was ended, as systems do when memory runs out") from None
        except torch.OutOfMemoryError:
            raise DoesNotFit("it does not fit into the memory of the GPU") from None


@torch.no_grad()
def peak_in_this_process(path: Path, batch: int, device: str, threads: int) -> int:
    """As `peak_memory`; called where nothing was drawn yet."""
    torch.set_num_threads(threads)
    snapshot, where = open_snapshot(path), torch.device(device)
    # what PyTorch and fastdgl bring into memory with their first network of a family is no network's
    warm_up(snapshot.family, where)
    before = 0 if where.type == "cuda" else resident("VmRSS")
    G = snapshot.averaged_generator(where)
    z, c = inputs(G, batch, where)
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    else:
        # loading holds the weights twice, and would pass for drawing's peak
        forget_peak()
    G.sample_images(z, c)
    synchronize(where)
    return torch.cuda.max_memory_allocated(where) if where.type == "cuda" else resident("VmHWM") - before


def warm_up(family: str, device: torch.device) -> None:
    """Draw by the smallest network of a family, with all that any network of it runs."""
    smallest = {"stylegan2": {"z_dim": 8, "w_dim": 8, "c_dim": 1, "img_resolution": 8, "mapping_layers": 1, "channel_base": 64, "channel_max": 8},
                "biggan": {"z_dim": 8, "c_dim": 1, "img_resolution": 32, "ch": 4, "hier": False, "shared_dim": 0, "attention": 8}}
    G = models.generator(family, smallest[family]).eval().to(device)
    G.sample_images(*inputs(G, 2, device))
    synchronize(device)


def resident(what: str) -> int:
    """Bytes of this process in memory now (VmRSS), or at most (VmHWM).

    Raises:
        MeasurementError: The system does not tell.
    """
    try:
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return int(lines[what].split()[0]) * 1024
    except (OSError, KeyError):
        raise MeasurementError(f"{platform.system()} does not tell the peak memory of a process as Linux does") from None


def forget_peak() -> None:
    """Let VmHWM begin anew at VmRSS."""
    try:
        CLEAR.write_text("5")
    except OSError:
        raise MeasurementError(f"{CLEAR} cannot be written to, so the peak of loading would pass for that of drawing") from None


def this_device(device: torch.device) -> str:
    """What computes here, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} {'thread' if threads == 1 else 'threads'}"


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def precision(device: torch.device, snapshot: Snapshot) -> str:
    """What an averaged generator computes in there."""
    arguments = snapshot.arguments["G"]
    highest = arguments.get("num_fp16_res", 0)
    return f"the {highest} highest resolutions in {arguments['low_precision']}" if device.type == "cuda" and highest else "in fp32"


def versions() -> str:
    """Of what computes."""
    return f"PyTorch {torch.__version__}, Python {platform.python_version()}, {platform.system()}"


def load() -> str:
    """How busy the machine was before, in a sentence."""
    average, cores = psutil.getloadavg()[0], os.cpu_count() or 1
    told = f"The load average of the minute before was {average:.1f} on {cores} cores"
    return f"{told}: the machine was busy with other things; idle, it is faster." if average >= cores else f"{told}."
