"""A long run, on two ranks: what it holds in memory and what a step costs stay as they are.

    FASTDGL_SOAK_MINUTES=1 pytest -m slow tests/test_soak.py      # a trial
"""

import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import psutil
import pytest
from tiny_runs import TINY, dump, training
from tiny_runs import statistics as ticks_of

MINUTES = float(os.environ.get("FASTDGL_SOAK_MINUTES", 25))
SAMPLES = 120
WARM_UP = 0.25  # of the samples: allocators and caches fill
GROWTH = 8 * 2**20  # bytes in all, of some 500 MiB; what a step may lose is this over the thousands of steps watched
MIN_STEPS = 50  # in a third; they are counted by tens, as ticks close
COST = 1.5  # the ratio of processor time per step, last third to first: it follows what else the machine does

SOAK = TINY | {
    "engine": {"kind": "deepspeed"},
    "images": {"path": "digits", "workers": 1},
    # everything that a run does now and then, often
    "train": TINY["train"] | {"kimg": 1e6, "tick_kimg": 0.08, "image_ticks": 10, "snapshot_ticks": 10, "checkpoint_ticks": 10, "keep_checkpoints": 1},
}


@dataclass(frozen=True)
class Sample:
    """Of a rank with the processes that decode its images. step: How many it has taken. cpu: Seconds of processor time. resident: Bytes."""

    step: int
    cpu: float
    resident: int


def sampled(rank: subprocess.Popen, step: int) -> Sample:
    process = psutil.Process(rank.pid)
    tree = [process, *process.children(recursive=True)]
    return Sample(step, sum(sum(p.cpu_times()[:2]) for p in tree), sum(p.memory_info().rss for p in tree))


def growth(samples: Sequence[Sample]) -> float:
    """Bytes gained from the first sample to the last, by the median of the slopes between any two: a single peak changes nothing."""
    slopes = [(b.resident - a.resident) / (b.step - a.step) for a, b in combinations(samples, 2) if b.step > a.step]
    return statistics.median(slopes) * (samples[-1].step - samples[0].step)


def cost(samples: Sequence[Sample]) -> float:
    """Seconds of processor time per step."""
    return (samples[-1].cpu - samples[0].cpu) / (samples[-1].step - samples[0].step)


def judge(samples: Sequence[Sample]) -> None:
    """Memory that is flat after the warm-up, and steps that cost in the last third what they did in the first."""
    steady = samples[int(len(samples) * WARM_UP):]
    third = len(steady) // 3
    steps = min(part[-1].step - part[0].step for part in (steady[:third], steady[-third:]))
    assert steps >= MIN_STEPS, f"only {steps} steps in a third of the time: FASTDGL_SOAK_MINUTES must be more on this machine"
    assert growth(steady) < GROWTH, f"grows by {growth(steady) / 2**20:.1f} MiB in {steady[-1].step - steady[0].step} steps"
    before, after = cost(steady[:third]), cost(steady[-third:])
    assert 1 / COST < after / before < COST, f"a step costs {1000 * before:.2f} ms of processor time at first and {1000 * after:.2f} ms at last"


def made_up(resident, cpu) -> list[Sample]:
    return [Sample(100 * i, cpu(i), int(resident(i))) for i in range(SAMPLES)]


def warming_up(i: int) -> float:
    """Bytes; now and then a checkpoint is written."""
    return 500e6 - 100e6 * 0.8**i + (40e6 if i % 10 == 0 else 0)


def test_a_run_that_warms_up_and_has_peaks_is_steady():
    judge(made_up(warming_up, lambda i: i))


@pytest.mark.parametrize("resident, cpu, words", [
    (lambda i: warming_up(i) + 100 * 1000 * i, lambda i: i, "grows by"),
    (warming_up, lambda i: i**2, "a step costs"),
], ids=["1000-bytes-a-step", "ever-slower"])
def test_what_grows_is_not(resident, cpu, words):
    with pytest.raises(AssertionError, match=words):
        judge(made_up(resident, cpu))


@pytest.mark.slow
def test_a_long_run_holds_its_memory_and_the_cost_of_its_steps(tmp_path):
    config, output, stats = tmp_path / "soak.yaml", tmp_path / "output.txt", tmp_path / "runs" / "00000-tiny" / "stats.jsonl"
    config.write_text(dump(SOAK | {"outdir": str(tmp_path / "runs")}))
    with training(2, output, "--config", config) as ranks:

        def wait(seconds: float) -> None:
            time.sleep(seconds)
            assert all(rank.poll() is None for rank in ranks), output.read_text()

        while not stats.exists():
            wait(0.2)
        samples: list[list[Sample]] = [[], []]
        for _ in range(SAMPLES):
            wait(MINUTES * 60 / SAMPLES)
            step = round(ticks_of(stats.parent)[-1]["Progress/kimg"]["mean"] * 1000 / TINY["train"]["batch"])
            for rank, of_rank in zip(ranks, samples):
                of_rank.append(sampled(rank, step))
    for rank, of_rank in enumerate(samples):
        steady = of_rank[int(SAMPLES * WARM_UP):]
        print(f"rank {rank}: {steady[-1].step - steady[0].step} steps after the warm-up, {steady[-1].resident / 2**20:.0f} MiB, "
              f"growing by {growth(steady) / 2**20:.2f} MiB, {1000 * cost(steady):.1f} ms of processor time per step")
        judge(of_rank)
