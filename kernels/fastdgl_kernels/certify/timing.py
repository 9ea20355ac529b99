"""Which of several right implementations is the fastest: events on the GPU, in turns, and a default that wins near ties."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch
from torch import Tensor

from .calls import Call

# of one implementation in one round, and rounds
EVENTS, ROUNDS = 20, 3
# the default is taken where it is slower by at most this
MARGIN = 0.05

# called with what to repeat and how often; microseconds of each
Stopwatch = Callable[[Callable[[], object], int], list[float]]


def training_pass(
    operator: Callable[..., Tensor], call: Call, implementation: str, tensors: Mapping[str, Tensor], arguments: Mapping
) -> Callable[[], object]:
    """Return a function that computes the value of a call and its gradients."""
    leaves = {name: t.detach().requires_grad_(call.operands[name].grad) for name, t in tensors.items()}
    inputs = [t for t in leaves.values() if t.requires_grad]

    def run() -> object:
        y = operator(**leaves, **arguments, impl=implementation)
        return torch.autograd.grad(y, inputs, y.detach(), allow_unused=True) if inputs else y

    return run


def rounds(runs: Mapping[str, Callable[[], object]], stopwatch: Stopwatch) -> dict[str, list[list[float]]]:
    """Return `ROUNDS` times `EVENTS` microseconds of each; they take turns, so that a change of the clock meets all."""
    for run in runs.values():
        # compiled, and cuDNN's plans made
        run()
    samples: dict[str, list[list[float]]] = {name: [] for name in runs}
    for turn in range(ROUNDS):
        names = list(runs)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            samples[name].append(stopwatch(runs[name], EVENTS))
    return samples


def fastest(samples: Mapping[str, Sequence[Sequence[float]]], default: str) -> tuple[str, dict[str, float]]:
    """Return the implementation to take, and the microseconds of each: the best round's median.

    Args:
        samples: What `rounds` returns.
        default: Taken unless another is faster by more than 5 %.
    """
    us = {name: min(median(turn) for turn in turns) for name, turns in samples.items()}
    best = min(us, key=us.get)
    if default in us and us[default] <= us[best] * (1 + MARGIN):
        best = default
    return best, us


def cuda_stopwatch(run: Callable[[], object], repetitions: int) -> list[float]:
    """Measure by events on the GPU; what Python takes too long for counts, as it does in training."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repetitions)]
    torch.cuda.synchronize()
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1e3 for start, end in events]


def host_stopwatch(run: Callable[[], object], repetitions: int) -> list[float]:
    """Measure by the clock of the CPU."""
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e6)
    return times
