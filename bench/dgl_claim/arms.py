"""The arms of the experiment, and how each is trained: by fastdgl/train.py, in a process of its own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fastdgl import checkpoints, config as configs, models

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FAMILIES = ("stylegan2", "biggan")
TEACHER, STUDENT = "teacher", "student"


class ArmError(RuntimeError):
    """A run that failed, with where its output is."""


@dataclass(frozen=True)
class Arm:
    """What a student is trained with after its first stage.

    stage: Of the YAML file that trains it; A8 goes on where A0 ends.
    """

    name: str
    about: str
    stage: str


ARMS = (
    Arm("A0", "nothing (λ = 0)", "A0"),
    Arm("A1", "the teacher's discriminator, frozen", "A1"),
    Arm("A2", "the teacher's discriminator, updated", "A2"),
    Arm("A3", "a second discriminator of the teacher's size, trained from random weights", "A3"),
    Arm("A8", "nothing, for as much computation as A1", "A0"),
)


def stage(family: str, name: str, overrides: Sequence[str] = ()) -> configs.Config:
    """The config of one stage of the experiment."""
    return next(config for config in configs.read(HERE / f"{family}.yaml", overrides) if config.stage == name)


def trained(family: str, name: str, outdir: Path, overrides: Sequence[str] = (), kimg: float | None = None) -> Path:
    """The run folder of a stage, trained to its end: by an earlier call, on from its newest checkpoint, or from the start.

    Args:
        outdir: Holds this stage's run folder, and no other one of this stage.
        overrides: As of train.py.
        kimg: Its length; None for that of the file.

    Raises:
        ArmError: Training failed.
    """
    config = stage(family, name, overrides)
    start = 0 if config.start is None else checkpoints.open_snapshot(config.start).seen
    length = [] if kimg is None else [f"train.kimg={kimg}"]
    end = start + (config.train.kimg if kimg is None else kimg) * 1000
    folder = run_folder(outdir, config)
    if folder is not None and snapshots(folder) and snapshots(folder)[-1].seen >= end:
        return folder
    if folder is not None and checkpoints.saved_checkpoints(folder / checkpoints.CHECKPOINTS):
        what = ["--resume", str(folder), *length]
    else:
        # stopped before its first checkpoint
        if folder is not None:
            shutil.rmtree(folder)
        what = ["--config", str(HERE / f"{family}.yaml"), "--stage", name, f"outdir={outdir}", *overrides, *length]
    outdir.mkdir(parents=True, exist_ok=True)
    log = outdir / f"{name}.log"
    # sums of other numbers of threads round otherwise
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    with open(log, "a", encoding="utf-8") as output:
        code = subprocess.run([sys.executable, str(ROOT / "fastdgl" / "train.py"), *what], env=environment, stdout=output, stderr=output).returncode
    if code:
        raise ArmError(f"training {family} {name} in {outdir} failed with exit code {code}; its output is in {log}")
    return run_folder(outdir, config)


def run_folder(outdir: Path, config: configs.Config) -> Path | None:
    """The newest folder of a stage's runs."""
    return max(outdir.glob(f"*-{config.description}"), default=None)


def snapshots(folder: Path) -> list[checkpoints.Snapshot]:
    """Those of a run, from the first to the last."""
    return [checkpoints.open_snapshot(path) for path in sorted(folder.glob(checkpoints.SNAPSHOT_PATTERN))]


def random_teacher(teacher: Path, seed: int, path: Path) -> Path:
    """A snapshot like the teacher's whose discriminator has random weights."""
    if not path.exists():
        snapshot = checkpoints.open_snapshot(teacher)
        torch.manual_seed(seed)
        D = models.discriminator(snapshot.family, snapshot.arguments["D"])
        states = {name: snapshot.state_dict(name) for name in ("G", "G_ema")} | {"D": D.state_dict()}
        header = {"family": snapshot.family, "seen": 0, "classes": snapshot.class_names, **snapshot.arguments}
        checkpoints.write_snapshot(path, states, header)
    return path
