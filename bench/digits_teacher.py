"""Train a teacher of the digits, and find out whether it is good enough to ship: `python -m bench.digits_teacher --out runs/digits_teacher`.

Hours on one core. Run again, it goes on from the newest checkpoint. A teacher that passes is written as one small file, with its averaged
generator and its averaged discriminator in fp16; one that fails is not written.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import safetensors.torch
import torch

from fastdgl.atomic_files import atomically
from fastdgl.checkpoints import CHECKPOINTS, FORMAT, CheckpointError, Snapshot, open_snapshot, saved_checkpoints
from fastdgl.config import Teacher
from fastdgl.engines import Run, end_run, start_run
from fastdgl.fidelity.detectors import open_detector
from fastdgl.fidelity.metrics import evaluate
from fastdgl.images import ImageDataset
from fastdgl.samples import draw
from fastdgl.teachers import teacher_scores

ROOT = Path(__file__).parents[1]
CONFIG = Path(__file__).with_suffix(".yaml")
FAKES = 5000
MOST_FID, LEAST_VARIANCE, MOST_BYTES = 10.0, 0.8, 1_500_000


class TrainingFailed(RuntimeError):
    """A run that failed, with where its output is."""


@dataclass(frozen=True)
class Acceptance:
    """What a teacher of the digits must reach to be shipped.

    fid: Of 5,000 images of its averaged generator against all digits, by the digits classifier.
    variance: Within-class variance of its images relative to that of the digits.
    real, fake: Mean logits of its averaged discriminator of digits, and of its own images.
    """

    kimg: float
    fid: float
    variance: float
    real: float
    fake: float

    @property
    def faults(self) -> list[str]:
        """What it does not reach, a phrase each; empty for a teacher to ship. NaN reaches nothing."""
        found = []
        if not self.fid < MOST_FID:
            found.append(f"FID is {self.fid:.4g}, expected below {MOST_FID:g}")
        if not self.variance > LEAST_VARIANCE:
            found.append(f"its variance within classes is {self.variance:.3g} of the digits', expected above {LEAST_VARIANCE:g}")
        if not self.real > 0 > self.fake:
            found.append(f"D scores digits {self.real:+.3g} and its own images {self.fake:+.3g}, expected above 0 and below 0")
        return found


def within_class_variance(images: np.ndarray, classes: np.ndarray) -> float:
    """Return the variance of a pixel among images of its class, averaged over pixels and classes.

    Args:
        images: `[N, ...]`, of any numbers.
        classes: `[N]`, whole numbers; each class has at least two images.
    """
    flat = images.reshape(len(images), -1).astype(np.float64)
    return float(np.mean([flat[classes == c].var(axis=0, ddof=1).mean() for c in np.unique(classes)]))


def variance_ratio(snapshot: Snapshot, dataset: ImageDataset, per_class: int = 100) -> float:
    """Return the within-class variance of the averaged generator's images over that of the training set's."""
    G, c_dim = snapshot.averaged_generator("cpu"), dataset.label_dim
    classes = np.arange(c_dim).repeat(per_class)
    z = torch.randn(len(classes), G.z_dim, generator=torch.Generator().manual_seed(1))
    fakes = draw(G, z, torch.eye(c_dim)[torch.from_numpy(classes)])
    reals = np.stack([dataset[i][0] for i in range(len(dataset))])
    return within_class_variance(fakes, classes) / within_class_variance(reals, dataset.all_labels())


def accepted(snapshot: Snapshot, dataset: ImageDataset, run: Run, cache: Path) -> Acceptance:
    """Measure a teacher."""
    scores = teacher_scores(snapshot, Teacher(checkpoint=str(snapshot.path)), dataset, run.device)
    cache.mkdir(parents=True, exist_ok=True)
    (_, results, _), = evaluate(["fid50k_full"], snapshot.averaged_generator(run.device), dataset, open_detector("digits", run.device), run,
                                num=FAKES, cache=cache, batch=100, workers=0)
    fid, = results.values()
    return Acceptance(snapshot.seen / 1000, fid, variance_ratio(snapshot, dataset), scores.real, scores.fake)


def pack(snapshot: Snapshot, acceptance: Acceptance, destination: Path) -> None:
    """Write a snapshot in fp16 with the averages alone, which stand for G and D too.

    Raises:
        CheckpointError: The teacher is not good enough, has no averaged D, or does not fit the size.
    """
    if acceptance.faults:
        raise CheckpointError(f"{snapshot.path}: is no teacher to ship: {'; '.join(acceptance.faults)}")
    # a network's own state dict: what is written fits
    states = {average: snapshot.network(average).state_dict() for average in ("G_ema", "D_ema")}
    # not by a second name for the same memory, which the format does not have
    tensors = {f"{name}.{key}": value.half() for average, state in states.items() for name in (average, average.removesuffix("_ema"))
               for key, value in state.items()}
    header = {"format": FORMAT, "family": snapshot.family, "seen": snapshot.seen, "classes": snapshot.class_names, "label_kind": snapshot.label_kind,
              "averaged_D": True, "acceptance": vars(acceptance), **snapshot.arguments}
    with atomically(destination) as unfinished:
        safetensors.torch.save_file(tensors, unfinished, metadata={"fastdgl": json.dumps(header)})
        size = unfinished.stat().st_size
        if size > MOST_BYTES:
            raise CheckpointError(f"{destination}: would take {size:,} bytes; expected at most {MOST_BYTES:,}: train a narrower network")


def trained(out: Path, overrides: Sequence[str]) -> Path:
    """Return the run folder, trained to its end: on from its newest checkpoint, or from the start.

    Raises:
        TrainingFailed: Training failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    folder = max((folder for folder in out.glob("*-digits-teacher*") if saved_checkpoints(folder / CHECKPOINTS)), default=None)
    what = ["--config", str(CONFIG), f"outdir={out}"] if folder is None else ["--resume", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    log = out / "train.log"
    with open(log, "a", encoding="utf-8") as output:
        code = subprocess.run([sys.executable, str(ROOT / "fastdgl" / "train.py"), *what, *overrides], env=environment, stdout=output, stderr=output).returncode
    found = max(out.glob("*-digits-teacher*"), default=None)
    if code or found is None:
        raise TrainingFailed(f"training in {out} ended with exit code {code}; its output is in {log}")
    return found


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/digits_teacher"), show_default=True, help="Where it is trained, and found again.")
@click.option("--network", type=click.Path(path_type=Path), help="Only measure this snapshot or run folder.")
@click.option("--write", "destination", type=click.Path(path_type=Path), help="Where the teacher goes, if it is good enough.")
@click.argument("overrides", nargs=-1)
def main(out: Path, network: Path | None, destination: Path | None, overrides: tuple[str, ...]) -> None:
    """Train a teacher of the digits, and say whether it will do. OVERRIDES change single values of the config: train.kimg=100."""
    torch.set_num_threads(1)
    try:
        snapshot = open_snapshot(network or trained(out, overrides))
        dataset, run = ImageDataset("digits", labels=True), start_run()
        acceptance = accepted(snapshot, dataset, run, out / "cache")
        click.echo(json.dumps(vars(acceptance)))
        for fault in acceptance.faults:
            click.echo(f"not good enough: {fault}")
        if destination is not None:
            pack(snapshot, acceptance, destination)
    except (TrainingFailed, CheckpointError) as error:
        raise click.ClickException(str(error)) from None
    finally:
        end_run()


if __name__ == "__main__":
    main()
