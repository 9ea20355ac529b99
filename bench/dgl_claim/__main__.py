"""`python -m bench.dgl_claim --out runs/claim`: hours on two cores; stopped, it goes on where it was."""

import json
import math
from pathlib import Path

import click
import torch

from fastdgl import checkpoints
from fastdgl.atomic_files import atomically
from fastdgl.checkpoints import CheckpointError
from fastdgl.config import ConfigError
from fastdgl.engines import Run, end_run, start_run
from fastdgl.images import ImageDataset

from . import page
from .arms import ARMS, FAMILIES, STUDENT, TEACHER, Arm, ArmError, random_teacher, snapshots, stage, trained
from .compute import flops_per_image
from .measuring import Measurer

RESULTS = Path(__file__).parents[1] / "results" / "dgl_claim"


def kept(path: Path, compute) -> dict:
    """What `compute()` returned the first time, from the file at `path`."""
    if not path.exists():
        result = compute()
        with atomically(path) as unfinished:
            unfinished.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def experiment(family: str, seeds: int, out: Path, dataset: ImageDataset, run: Run) -> dict:
    """The teacher, and for each seed the student of stage I and all arms: trained, evaluated, and what each costs."""
    measure = Measurer(dataset, run, out / "cache")
    home = out / family
    teacher = snapshots(trained(family, TEACHER, home / TEACHER))[-1]
    found = {"teacher": kept(home / "teacher.json", lambda: measure(teacher)), "seeds": []}
    for seed in range(seeds):
        folder = home / f"seed{seed}"
        student = snapshots(trained(family, STUDENT, folder, [f"seed={seed}"]))[-1]
        result = {STUDENT: kept(folder / "student.json", lambda: measure(student)), "arms": {}}
        for arm in ARMS:
            result["arms"][arm.name] = kept(folder / f"{arm.name}.json", lambda arm=arm: one_arm(family, arm, seed, folder, student, teacher, dataset, measure))
            click.echo(f"{family} seed {seed} {arm.name}: FID {result['arms'][arm.name]['evaluations'][-1]['fid']:.3f}")
        found["seeds"].append(result)
    return found


def one_arm(family: str, arm: Arm, seed: int, folder: Path, student: checkpoints.Snapshot, teacher: checkpoints.Snapshot,
            dataset: ImageDataset, measure: Measurer) -> dict:
    """The cost of an image, and the evaluations along the way."""
    def overrides(name: str) -> list[str]:
        taught_by = random_teacher(teacher.path, seed, folder / "random-teacher.safetensors") if name == "A3" else teacher.path
        guided = [] if name == "A0" else [f"stages.{name}.guidance.teachers.0.checkpoint={taught_by}"]
        return [f"seed={seed}", f"stages.{name}.start={student.path}", *guided]

    config = stage(family, arm.stage, overrides(arm.stage))
    flops, kimg = flops_per_image(config, dataset, measure.run), config.train.kimg
    if arm.name == "A8":
        guided = flops_per_image(stage(family, "A1", overrides("A1")), dataset, measure.run)
        # whole batches
        images = math.ceil(kimg * 1000 * guided / flops / config.train.batch) * config.train.batch
        kimg = images / 1000
    start = student.seen
    folder = trained(family, arm.stage, folder, overrides(arm.stage), kimg)
    # the first is written after one step; A0's folder holds A8's too, once that is trained
    chosen = [snapshot for snapshot in snapshots(folder) if start + 1000 < snapshot.seen <= start + kimg * 1000 + config.train.batch * 2]
    if arm.name == "A8":
        chosen = chosen[-page.LAST:]
    return {"flops_per_image": flops, "kimg": kimg, "evaluations": [measure(snapshot) for snapshot in chosen]}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/claim"), show_default=True, help="Where everything is trained, and found again.")
@click.option("--family", "families", type=click.Choice(FAMILIES), multiple=True, default=FAMILIES, help="Only this one, so that two can run side by side.")
@click.option("--seeds", type=click.IntRange(min=2), default=3, show_default=True, help="Students of each family.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, help="Where FAMILY.json goes.  [default: bench/results/dgl_claim]")
@click.option("--page", "page_only", is_flag=True, help="Only write docs/claim.md anew from the results that are there.")
def main(out: Path, families: tuple[str, ...], seeds: int, results: Path, page_only: bool) -> None:
    """Train and evaluate all arms, keep the numbers, and say in docs/claim.md what they mean."""
    torch.set_num_threads(1)
    try:
        dataset, run = ImageDataset("digits", labels=True), start_run()
        for family in () if page_only else families:
            found = experiment(family, seeds, out, dataset, run)
            results.mkdir(parents=True, exist_ok=True)
            with atomically(results / f"{family}.json") as unfinished:
                unfinished.write_text(json.dumps(page.facts() | {"family": family} | found, indent=1) + "\n", encoding="utf-8")
        page.write(results)
    except (ArmError, ConfigError, CheckpointError) as error:
        raise click.ClickException(str(error)) from None
    finally:
        end_run()


if __name__ == "__main__":
    main()
