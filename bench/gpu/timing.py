"""How long something takes: warmed up, repeated, with inputs that the cache cannot hold, and in turns with its rivals."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import ceil
from statistics import median, quantiles

import torch

from .case import Case, Random, Tensors, call, moved_bytes, named
from .errors import told

REPETITIONS = 20

# called with what to repeat, given the number of the repetition, and how often; microseconds of each
Stopwatch = Callable[[Callable[[int], object], int], list[float]]

# of the GPU, while the CPU queues what is timed: 20 launches take it milliseconds
_SLEEP_CYCLES = 40_000_000


def cuda_stopwatch(run: Callable[[int], object], repetitions: int, *, ahead: bool = True) -> list[float]:
    """By events on the GPU.

    Args:
        ahead: Let the GPU sleep until all is queued, so that it never waits for the CPU: for kernels. Else what
            the CPU takes too long for counts as well, as it does in training.
    """
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repetitions)]
    torch.cuda.synchronize()
    if ahead:
        torch.cuda._sleep(_SLEEP_CYCLES)
    for i, (start, end) in enumerate(events):
        start.record()
        run(i)
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1e3 for start, end in events]


def times(runs: Mapping[str, Sequence[Callable[[], object]]], stopwatch: Stopwatch, repetitions: int = REPETITIONS) -> dict[str, dict]:
    """The median of each, and its spread; or the error of what cannot run.

    Args:
        runs: By name, the same work on one set of inputs after another.
        repetitions: At least.
    """
    results, samples = {}, {}
    for name, turns in runs.items():
        try:
            for turn in turns:
                turn()
            samples[name] = []
        # a rival that cannot run is a result, too
        except Exception as error:
            results[name] = {"error": told(error)}
    # in turns: when the GPU's clock changes, it changes for all
    for _ in range(2):
        for name, sampled in samples.items():
            turns = runs[name]
            sampled += stopwatch(lambda i: turns[i % len(turns)](), ceil(repetitions / 2))
    return results | {name: summary(sampled) for name, sampled in samples.items()}


def summary(samples: Sequence[float]) -> dict:
    """Median, and the fifths at both ends."""
    fifths = quantiles(samples, n=5)
    return {"us": median(samples), "low_us": fifths[0], "high_us": fifths[-1], "repetitions": len(samples)}


def rotation(case: Case, device: torch.device, seed: int, cache_bytes: int) -> list[Tensors]:
    """Sets of inputs that together are three times as large as the cache, and at least two."""
    first = case.tensors(Random(device, seed))
    used = sum(t.numel() * t.element_size() for t in named(case.run, first).values())
    count = min(max(2, ceil(3 * cache_bytes / used)), 64)
    return [first, *(case.tensors(Random(device, seed + i)) for i in range(1, count))]


def timed(case: Case, functions: Mapping[str, Callable], device: torch.device, seed: int, cache_bytes: int, stopwatch: Stopwatch) -> dict:
    """The time of a case, what it moves and multiplies, and the times of others on the same inputs.

    Raises:
        Whatever the case itself raises; what the others raise is in the result.
    """
    sets = rotation(case, device, seed, cache_bytes)
    moved = moved_bytes(case, sets[0], call(case.run, sets[0]))
    runs = {name: [partial(f, **named(f, tensors)) for tensors in sets] for name, f in {"": case.run, **functions}.items()}
    found = times(runs, stopwatch)
    return found.pop("") | {"bytes": moved, "flops": case.flops, "dtype": str(case.dtype)[6:], "rivals": found}
