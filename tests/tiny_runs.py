"""What tests of whole runs share: a config of seconds, ways to run it, and what is to be compared afterwards."""

import importlib
import itertools
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import safetensors.torch
import torch
import yaml
from click.testing import CliRunner, Result
from torch import nn

from fastdgl import ema, samples
from fastdgl.checkpoints import open_snapshot
from fastdgl.train import main

from ranks import ROOT, finish, fork, free_port

SCRIPT = ROOT / "fastdgl" / "train.py"

# 20 of each digit at 8x8: what a run costs here is its layers and the files it opens
DIGITS = str(ROOT / "tests" / "golden" / "digits8.zip")

TINY = {
    "name": "tiny",
    "images": {"path": DIGITS, "workers": 0},
    "model": {"resolution": 8, "channels": 1, "conditional": True, "z_dim": 8, "w_dim": 8, "mapping_layers": 2,
              "channel_base": 128, "channel_max": 8, "num_fp16_res": 0},
    "loss": {"r1_gamma": 0.1, "r1_interval": 4, "path_length_interval": 2},
    "train": {"batch": 8, "kimg": 0.048, "tick_kimg": 0.024, "ema_kimg": 0.05},
    "engine": {"kind": "torch"},
}


def dump(config: dict) -> str:
    """YAML in the order given: that of the stages matters."""
    return yaml.safe_dump(config, sort_keys=False)


# images a row of a sheet, each row a class: whole sheets take longer than such a training
COLUMNS = 2


def invoke(*arguments) -> Result:
    """Run train.py in this process, with small sheets."""
    grid_shape = samples.grid_shape

    def small(resolution: int) -> tuple[int, int]:
        columns, rows = grid_shape(resolution)
        return min(columns, COLUMNS), rows

    with patch.object(samples, "grid_shape", small):
        return CliRunner().invoke(main, [str(a) for a in arguments])


def train_apart(*arguments) -> None:
    """As `train`, in a process of its own, which DeepSpeed leaves its marks on."""
    finish([fork(train, *map(str, arguments))])


def train(*arguments) -> str:
    """What a run in this process prints; it must succeed."""
    result = invoke(*arguments)
    assert result.exit_code == 0, f"{result.output}\n{''.join(traceback.format_exception(result.exception))}"
    return result.output


def refusal(*arguments) -> str:
    """The one sentence that a run in this process ends with."""
    result = invoke(*arguments)
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert len(lines) == 1 and "Traceback" not in result.output
    return lines[0]


def switch_off(monkeypatch, function: str, call: int) -> None:
    """Let a run end where it calls a function for the time `call`, the first being 0."""
    module, _, name = function.rpartition(".")
    calls, original = itertools.count(), getattr(importlib.import_module(module), name)

    def instead(*arguments, **options):
        if next(calls) == call:
            raise OSError("switched off")
        return original(*arguments, **options)

    monkeypatch.setattr(function, instead)


def of_launchers() -> dict[str, str]:
    """The environment in which launchers are found, and find this code."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    python_path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return os.environ | {"PATH": path, "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"}


def launch(*command, **environment) -> str:
    """What a launcher in a process of its own prints; it must succeed."""
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=600, cwd=ROOT, env=of_launchers() | environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@contextmanager
def training(world_size: int, output: Path, *arguments: str | Path) -> Iterator[list[subprocess.Popen]]:
    """Ranks without a launcher, so that what is measured is theirs; whatever is left of them at the end is killed.

    Args:
        output: File for what they print.
    """
    shared = of_launchers() | {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with open(output, "w") as file:
        ranks = [subprocess.Popen([sys.executable, SCRIPT, *arguments], stdout=file, stderr=file,
                                  env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(world_size)]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def networks(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(open_snapshot(run).path)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two states are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def statistics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def during_steps(action: Callable[[nn.Module], None], when: Callable[[int], bool], monkeypatch) -> None:
    """Have `action(G)` done at the end of each step of a run, counted from 1 by all runs together, for which `when` is true."""
    steps, update = [], ema.update

    def counted(average, network, *arguments):
        update(average, network, *arguments)
        # a step averages D too, after G
        if not hasattr(network, "training_images"):
            return
        steps.append(None)
        if when(len(steps)):
            action(network)

    monkeypatch.setattr(ema, "update", counted)
