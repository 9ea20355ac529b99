"""Whole runs of the trainer with a tiny StyleGAN2, whose steps cost next to nothing: what the trainer itself adds. Also without a GPU.

    pytest bench/bench_training.py --benchmark-only --benchmark-json=training.json

Timed is the run from launch to end. `extra_info` has, of the round that started fastest, seconds from launch to the end of the first step; GiB resident in
rank 0 at the end; and milliseconds per step, 50th, 95th and 99th percentile: every step closes a tick, and is measured as the trainer measures it.
Lazy regularization makes one step in 16 longer.
"""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ranks import training

BATCH, STEPS, ROUNDS = 8, 200, 3
MODEL = {"resolution": 32, "channels": 1, "conditional": True, "z_dim": 8, "w_dim": 8, "mapping_layers": 2, "channel_base": 128, "channel_max": 8,
         "num_fp16_res": 0}


@pytest.mark.parametrize("kind", ["deepspeed", "torch"])
@pytest.mark.parametrize("ranks", [1, 2])
def bench_training(benchmark, tmp_path, ranks, kind):
    if 0 < torch.cuda.device_count() < ranks:
        pytest.skip(f"{ranks} ranks need as many GPUs")
    config = tmp_path / "tiny.yaml"
    never = dict.fromkeys(("image_ticks", "snapshot_ticks", "checkpoint_ticks"), 0)
    config.write_text(yaml.safe_dump({
        "name": "tiny", "outdir": str(tmp_path), "images": {"path": "digits", "workers": 0}, "model": MODEL, "loss": {"r1_gamma": 0.1},
        "train": {"batch": BATCH, "kimg": BATCH * STEPS / 1000, "tick_kimg": BATCH / 1000, **never}, "engine": {"kind": kind}}))
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
    ticks = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    # the first step is part of starting up
    steps = [1000 * tick["Timing/sec_per_tick"]["mean"] for tick in ticks[1:]]
    return {"start_s": ticks[0]["timestamp"] - launch, "resident_gib": ticks[-1]["Resources/cpu_mem_gb"]["mean"],
            **{f"step_p{q}_ms": float(np.percentile(steps, q)) for q in (50, 95, 99)}}
