"""Whole runs of the trainer with a tiny StyleGAN2, whose steps cost next to nothing: what the trainer itself adds. Also without a GPU.

    pytest bench/bench_training.py --benchmark-only --benchmark-json=training.json

Timed is the run from launch to end. `extra_info` has, of the round that started fastest, seconds from launch to the end of the first step; GiB resident in
rank 0 at the end; and milliseconds per step, 50th, 95th and 99th percentile: every step closes a tick, and is measured as the trainer measures it.
Lazy regularization makes some steps longer than others: R1 one in 4, path lengths one in 2.
"""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import TINY, dump, statistics, training

STEPS, ROUNDS = 200, 3
BATCH = TINY["train"]["batch"]
# a sheet, a snapshot and a checkpoint at the end alone
RARELY = dict.fromkeys(("image_ticks", "snapshot_ticks", "checkpoint_ticks"), 0)


@pytest.mark.parametrize("kind", ["deepspeed", "torch"])
@pytest.mark.parametrize("ranks", [1, 2])
def bench_training(benchmark, tmp_path, ranks, kind):
    if 0 < torch.cuda.device_count() < ranks:
        pytest.skip(f"{ranks} ranks need as many GPUs")
    config = tmp_path / "tiny.yaml"
    length = {"batch": BATCH, "kimg": BATCH * STEPS / 1000, "tick_kimg": BATCH / 1000}
    config.write_text(dump(TINY | {"outdir": str(tmp_path), "train": length | RARELY, "engine": {"kind": kind}}))
    launches = []

    def run() -> None:
        launches.append(time.time())
        with training(ranks, tmp_path / "output.txt", "--config", config) as processes:
            assert [process.wait() for process in processes] == [0] * ranks, (tmp_path / "output.txt").read_text()

    benchmark.pedantic(run, rounds=ROUNDS)
    rounds = [figures(folder, launch) for folder, launch in zip(sorted(tmp_path.glob("*-tiny")), launches, strict=True)]
    benchmark.extra_info.update(min(rounds, key=lambda figures: figures["start_s"]))


def figures(run: Path, launch: float) -> dict[str, float]:
    """Of one run, from its journal."""
    ticks = statistics(run)
    # the first step is part of starting up
    steps = [1000 * tick["Timing/sec_per_tick"]["mean"] for tick in ticks[1:]]
    return {"start_s": ticks[0]["timestamp"] - launch, "resident_gib": ticks[-1]["Resources/cpu_mem_gb"]["mean"],
            **{f"step_p{q}_ms": float(np.percentile(steps, q)) for q in (50, 95, 99)}}
