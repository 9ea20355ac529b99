"""Train a StyleGAN2 or BigGAN, or compress one under a teacher discriminator's guidance (DGL).

    deepspeed fastdgl/train.py --config configs/ffhq.yaml train.batch=16

Config in, trained generator out. This module runs as `__main__`, or as `fastdgl train`, which imports it when it is run.
"""

import math
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from fastdgl import checkpoints, config as configs, ema, models, steps
from fastdgl.assembly import Student, assemble, check_images, check_references
from fastdgl.atomic_files import atomically
from fastdgl.checkpoints import CheckpointError
from fastdgl.config import STAGE_PREFIX, Config, ConfigError
from fastdgl.download import is_address
from fastdgl.engines import Run, allow_tf32, end_run, first_rank_decides, gathered, start_run
from fastdgl.engines.optimizers import check_implementation, chosen as chosen_implementation
from fastdgl.engines.peers import watched
from fastdgl.fidelity.detectors import DetectorError
from fastdgl.fidelity.moments import FeatureError
from fastdgl.images import VECTORS, DatasetError, ImageDataset, LabelsMissing, stream
from fastdgl.interruption import StopRequest
from fastdgl.journal import Journal, Statistic, new_run_folder
from fastdgl.kernel_choice import RECORD, choose_kernels, keep as keep_kernels, kept as kernels_kept
from fastdgl.latents import Latents
from fastdgl.models.cost import macs, parameter_count
from fastdgl.paths import UserPath
from fastdgl.samples import SampleSheet
from fastdgl.teachers import TeacherScores, check_teachers
from fastdgl.training_metrics import Evaluator
from fastdgl.warmup import compile_kernels

CONFIG_NAME = "config.yaml"
# by implementation, what steps
ADAM = {"loop": "torch's loop", "foreach": "torch's foreach", "fused": "torch's fused", "apex": "apex"}
# of the classes, when a run begins
NAMES_SHOWN = 10
# more than any run counts to: images, steps, seconds
MOST = 2**63

# real images [N, C, H, W] and their labels [N, c_dim]
Batch = tuple[torch.Tensor, torch.Tensor]


class TrainingError(RuntimeError):
    """A run that cannot go on, in one sentence."""


class Diverged(TrainingError):
    """Losses, parameters or gradients that are no numbers any more; nothing of that tick was saved."""


class Stopped(Exception):
    """A run that was asked to stop, and has been saved."""


@dataclass(frozen=True)
class Summary:
    """A finished run, for the table at the end."""

    stage: str
    name: str
    folder: Path
    parameters: dict[str, int]
    macs: dict[str, int]
    kimg: float
    seconds: float
    stats: dict[str, Statistic]
    snapshot: Path
    sheet: Path
    teachers: Sequence[TeacherScores]


@dataclass
class Progress:
    """Where a run stands. seen: real images shown to D, those before this run included. rollbacks: how often it has gone back."""

    seen: int
    iteration: int = 0
    tick: int = 0
    elapsed: float = 0.0
    rollbacks: int = 0

    def load_state_dict(self, state: Mapping[str, int | float]) -> None:
        """Back to `vars` of another.

        Raises:
            ValueError: It is of something else.
        """
        for name, value in vars(self).items():
            if type(state[name]) is not type(value) or not 0 <= state[name] < MOST:
                raise ValueError(f"its {name} is {state[name]!r:.50}")
        vars(self).update((name, state[name]) for name in vars(self))


def train(config: Config, run: Run, resumed: Path | None = None, place: str = "") -> Summary:
    """One run from start to end, or on from the newest checkpoint in the run folder `resumed`. Called by all ranks together.

    Args:
        place: Which of a file's stages it is, as `2/3`.

    Raises:
        Stopped: A signal has asked for it; there is a checkpoint to go on from.
    """
    config.check_world_size(run.world_size)
    check_implementation(config, run.device)
    allow_tf32(config.engine.allow_tf32)
    dataset = open_images(config)
    as_written, config = config, config.with_references(first_rank_decides(lambda: fetched_references(config, resumed is not None)))
    check_fetched(as_written, config, run)
    evaluator = Evaluator(config, dataset, run) if config.metrics.names else None
    teachers = first_rank_decides(lambda: check_teachers(config, dataset, run.device, run.world_size, resumed is not None))
    kernels = choose_kernels(config, run, dataset.label_dim, None if resumed is None else first_rank_decides(lambda: kernels_kept(resumed)))
    student = assemble(config, dataset, run, resumed=resumed is not None)
    student.kernels = kernels
    latents = Latents(config.seed + student.start_images, torch.from_numpy(dataset.all_labels()), run.device, run.rank, run.world_size,
                      dataset.label_dim)
    progress, faults = Progress(seen=student.start_images), {}
    if resumed is not None:
        first_rank_decides(lambda: checkpoints.remove_unfinished(resumed))
        faults = resume(student, latents, progress, dataset, checkpoints.newest_checkpoint(resumed), config.engine.precision)
    end = student.start_images + round(config.train.kimg * 1000)

    sheet = SampleSheet(dataset, config.model.z_dim, config.seed, run.device, config.images_at_once(run.world_size))
    folder = first_rank_decides(lambda: begin_folder(config, sheet, student) if resumed is None else resumed)
    check_shared(folder, run)
    first_rank_decides(lambda: keep_config(folder, as_written))
    # a resumed run keeps what it began with, wherever it goes on, unless it is told to take what is right here
    if resumed is None or config.engine.kernels == "required" or not (folder / RECORD).exists():
        first_rank_decides(lambda: keep_kernels(folder, kernels))
    news = ""
    with StopRequest(run) as stop:
        while True:
            try:
                stats = go_on(config, run, folder, dataset, student, latents, progress, sheet, evaluator, end, stop, faults, teachers, news, place)
                return summary(config, folder, dataset, student, progress, stats, teachers)
            except Diverged as error:
                saved = first_rank_decides(lambda: checkpoints.saved_checkpoints(folder / checkpoints.CHECKPOINTS))
                # a resumed run may have gone back more often than it now may
                if progress.rollbacks >= config.train.rollbacks or not saved:
                    way_on = "resume from the last checkpoint" if saved else "start again"
                    raise TrainingError(f"{error}; {way_on} with a lower learning rate, {config.remedies}") from None
                news = f"{error}; back to {saved[-1]}, {progress.rollbacks + 1} of {config.train.rollbacks} times (train.rollbacks)"
                faults = go_back(config, student, latents, progress, dataset, saved[-1])


def go_back(config: Config, student: Student, latents: Latents, progress: Progress, dataset: ImageDataset, checkpoint: Path) -> dict[int, str]:
    """To a checkpoint, and on from there with other random inputs: the same ones would lead to the same end. Returns what `resume` does."""
    rollbacks = progress.rollbacks + 1
    faults = resume(student, latents, progress, dataset, checkpoint, config.engine.precision)
    progress.rollbacks = rollbacks
    latents.reseed([config.seed, student.start_images, rollbacks])
    return faults


def go_on(config: Config, run: Run, folder: Path, dataset: ImageDataset, student: Student, latents: Latents, progress: Progress,
          sheet: SampleSheet, evaluator: Evaluator | None, end: int, stop: StopRequest, faults: Mapping[int, str],
          teachers: Sequence[TeacherScores], news: str, place: str = "") -> dict[str, Statistic]:
    """Train from where `progress` stands to `end`, saying `news` first.

    Args:
        faults: What is wrong with images, as far as that has been told.

    Returns:
        The statistics of the last tick.

    Raises:
        Diverged, Stopped: As they say.
    """
    journal = Journal(folder, total_images=end, start_images=progress.seen, rank=run.rank, device=run.device, elapsed=progress.elapsed,
                      stage=" ".join(filter(None, [config.stage or config.name, place])))
    if news:
        journal.message(news)
    announce(config, run, dataset, student, teachers, journal, folder)
    compile_kernels(student.gan, config, run, dataset.label_dim)
    images = stream(dataset, config.train.batch, seed=config.seed, rank=run.rank, world_size=run.world_size, start=progress.seen,
                    workers=config.images.workers, timeout=config.images.timeout, device=run.device)
    with closing(images), closing(journal):
        tick_start, maintenance, stats, suspects = progress.seen, -time.perf_counter(), {}, set()
        if evaluator is not None and progress.tick:
            catch_up(evaluator, config, folder, progress, journal, stop, done=progress.seen >= end)
            if stop.agreed(at_once=True):
                say_stopped(journal, folder, progress, end)
                raise Stopped
        maintenance += time.perf_counter()
        while progress.seen < end:
            seen = progress.seen
            real, real_c = iterate(student, images, latents, config, run.world_size, progress, journal)
            journal.advance(progress.seen - seen)
            done, stopping = progress.seen >= end, stop.agreed()
            # the first tick closes after one step, to show that training runs
            if done or stopping or progress.tick == 0 or progress.seen >= tick_start + config.train.tick_kimg * 1000:
                record_teachers(student, real, real_c, config.train.accumulate_discriminator, journal)
                faults = report_faults(dataset, faults, journal)
                stats = journal.tick(progress.seen, progress.tick, maintenance)
                suspects = check_finite(config, student, stats, suspects, tick_start, progress)
                maintenance = -time.perf_counter()
                progress.elapsed = stats["Timing/total_sec"]["mean"]
                progress.tick += 1
                if stopping and not done:
                    save(config, folder, dataset, student, latents, progress, faults)
                else:
                    saved = keep(config, folder, dataset, student, latents, progress, sheet, evaluator, journal, stop, faults, done)
                    stopping = stop.agreed(at_once=True)
                    if stopping and not saved:
                        save(config, folder, dataset, student, latents, progress, faults)
                maintenance += time.perf_counter()
                tick_start = progress.seen
            if stopping:
                say_stopped(journal, folder, progress, end)
                raise Stopped
    return stats


def say_stopped(journal: Journal, folder: Path, progress: Progress, end: int) -> None:
    journal.message(f"stopped as asked after {progress.seen / 1000:g} kimg, " +
                    ("the end of this run" if progress.seen >= end else f"with a checkpoint; go on with --resume {folder}"))


def iterate(student: Student, images: Iterator[Batch], latents: Latents, config: Config, world_size: int, progress: Progress,
            journal: Journal) -> Batch:
    """One iteration: G, D as often as it steps, their lazy regularization, the average. The images that D saw last."""
    gan, loss, settings, i = student.gan, config.loss, config.train, progress.iteration
    if config.optimizer.decay != "none":
        factor = config.optimizer.lr_factor((progress.seen - student.start_images) / (settings.kimg * 1000))
        for engine in student.engines.values():
            engine.scale_lr(factor)
        journal.record("Progress/lr_factor", factor)
    N, passes = settings.generator_images // world_size, settings.accumulate_generator
    guidance_weight = gan.guide.weight_at(progress.seen - student.start_images)
    steps.generator_step(gan, latents, loss, N, guidance_weight, journal.record, passes)
    if loss.path_length_interval and i % loss.path_length_interval == 0:
        steps.path_length_step(gan, latents, loss, N, journal.record, passes)
    passes = settings.accumulate_discriminator
    for step in range(settings.discriminator_steps):
        real, real_c = next(images)
        steps.discriminator_step(gan, real, real_c, latents, loss, journal.record, passes)
        if loss.r1_interval and (i * settings.discriminator_steps + step) % loss.r1_interval == 0:
            steps.r1_step(gan, real, real_c, loss, config.r1_gamma, journal.record, passes)

    progress.iteration += 1
    progress.seen += settings.batch * settings.discriminator_steps
    with gan.G.whole():
        ema.update(student.average, gan.G.module, beta(config, progress), gan.G.module.averaged_buffers)
    if student.average_D is not None:
        with gan.D.whole():
            ema.update(student.average_D, gan.D.module, beta(config, progress))
    return real, real_c


def beta(config: Config, progress: Progress) -> float:
    """What the step that ends now leaves of the averaged networks: by the images shown, or by the steps of G."""
    settings = config.train
    if settings.ema_decay is None:
        half_life = ema.half_life(progress.seen, settings.ema_kimg, settings.ema_rampup)
        return ema.beta_after(settings.batch * settings.discriminator_steps, half_life)
    # a run that starts from a snapshot has an average already
    return 0.0 if progress.iteration < settings.ema_start and config.start is None else settings.ema_decay


@torch.no_grad()
def record_teachers(student: Student, real: torch.Tensor, real_c: torch.Tensor, passes: int, journal: Journal) -> None:
    """The teachers' scores of real images, once a tick; those of fake images come with G's steps."""
    for i, teacher in enumerate(student.gan.guide.discriminators):
        training = teacher.training
        # to watch a teacher that learns must not turn the vectors of its spectral norm
        teacher.eval()
        for images, c in zip(real.chunk(passes), real_c.chunk(passes)):
            journal.record(f"Loss/scores/teacher{i}_real", teacher(images, c))
        teacher.train(training)


def report_faults(dataset: ImageDataset, known: Mapping[int, str], journal: Journal) -> Mapping[int, str]:
    """Name the images that were replaced since the last tick, and count those of the run. Called by all ranks.

    Args:
        known: What is wrong with those named before, by their number.

    Returns:
        The same of all ranks until now.

    Raises:
        DatasetError: They are too many.
    """
    if dataset.corrupt == "stop":
        return known
    faults = dict(sorted(pair for of_rank in gathered(dataset.faults) for pair in of_rank.items()))
    for i, fault in faults.items():
        if i not in known:
            journal.message(f"skipped: {fault}")
    journal.record("Data/skipped_files", float(len(faults)))
    dataset.check_faults(faults)
    return faults


def check_finite(config: Config, student: Student, stats: dict[str, Statistic], suspects: set[str], tick_start: int, progress: Progress) -> set[str]:
    """Stop a run that has diverged, before it is saved. Called by all ranks, which find the same.

    Blocks in 16 bits overflow now and then, and their gradients are bounded: there a loss may be infinite in one tick,
    but not in two.

    Args:
        suspects: Losses that were not finite in the tick before.

    Returns:
        Those of this tick.

    Raises:
        Diverged: Parameters, or losses or gradients that should be, are not finite.
    """
    found = {name for name, stat in stats.items() if name.startswith("Loss/") and not math.isfinite(stat["mean"])}
    in_16_bits = config.model.num_fp16_res > 0 or config.engine.precision != "fp32"
    losses = [f"{name} became {stats[name]['mean']}" for name in sorted(found & suspects if in_16_bits else found)]
    broken = not_finite("G_ema", student.average) | (set() if student.average_D is None else not_finite("D_ema", student.average_D))
    for name, engine in student.engines.items():
        with engine.whole():
            broken |= not_finite(name, engine.module)
    parameters = sorted(set().union(*gathered(broken)))
    # a loss scale finds its way by such steps
    left_out = [f"{engine.skipped_steps} step(s) of {name} were left out, in which a gradient was infinite or NaN"
                for name, engine in student.engines.items() if engine.skipped_steps and config.engine.precision != "fp16"]
    culprits = [kind[0] + (f" (and {len(kind) - 1} more)" if len(kind) > 1 else "") for kind in (losses, parameters, left_out) if kind]
    if culprits:
        raise Diverged(f"{'; '.join(culprits)}, between {tick_start / 1000:g} and {progress.seen / 1000:g} kimg, up to step {progress.iteration}: "
                       f"training has diverged; nothing of this tick was saved")
    return found


def not_finite(name: str, network: torch.nn.Module) -> set[str]:
    """A sentence for each parameter and buffer that is not finite."""
    kinds = {"parameter": network.named_parameters(), "buffer": network.named_buffers()}
    return {f"{name}'s {kind} {key} became infinite or NaN" for kind, tensors in kinds.items() for key, tensor in tensors
            if tensor.is_floating_point() and not tensor.isfinite().all()}


def keep(config: Config, folder: Path, dataset: ImageDataset, student: Student, latents: Latents, progress: Progress,
         sheet: SampleSheet, evaluator: Evaluator | None, journal: Journal, stop: StopRequest, faults: Mapping[int, str], done: bool) -> bool:
    """Write what is due after a tick: a sheet of samples, a snapshot, a checkpoint, metrics.

    Returns:
        Whether there is a checkpoint of this moment.
    """
    settings, snapshot = config.train, folder / snapshot_name(progress.seen)
    evaluating = evaluator is not None and due(settings.snapshot_ticks * config.metrics.every, progress, done)
    if due(settings.image_ticks, progress, done):
        first_rank_decides(lambda: sheet.save_fake(folder / sheet_name(progress.seen), student.average))
    if due(settings.snapshot_ticks, progress, done):
        with student.whole():
            first_rank_decides(lambda: checkpoints.save_snapshot(snapshot, student.networks, config, dataset, progress.seen))
        if settings.keep_snapshots != "all":
            first_rank_decides(lambda: checkpoints.remove_old_snapshots(snapshot, settings.keep_snapshots))
    saved = evaluating or due(settings.checkpoint_ticks, progress, done)
    if saved:
        save(config, folder, dataset, student, latents, progress, faults)
    # last, since they may take longest: what is interrupted then, resuming makes up for
    if evaluating:
        evaluator.evaluate(snapshot, config.metrics.names, progress.seen, journal, stop)
    return saved


def save(config: Config, folder: Path, dataset: ImageDataset, student: Student, latents: Latents, progress: Progress,
         faults: Mapping[int, str]) -> None:
    """Write a checkpoint of this moment. faults: What is wrong with the images that were replaced so far, on any rank."""
    state = {"student": student.state_dict(), "latents": latents.state_dict(), "progress": vars(progress), "faults": dict(faults),
             "labels": checkpoints.labels_of(dataset), "kernels": student.kernels.to_json(),
             "carried_by": {"engine.precision": config.engine.precision}}
    checkpoints.save_checkpoint(folder / checkpoints.CHECKPOINTS, student.engines, state, progress.seen, config.train.keep_checkpoints)


def due(every: int, progress: Progress, done: bool) -> bool:
    """Whether what is done every so many ticks, and at the end, is done after this tick."""
    return done or (every > 0 and progress.tick % every == 0)


def catch_up(evaluator: Evaluator, config: Config, folder: Path, progress: Progress, journal: Journal, stop: StopRequest, done: bool) -> None:
    """Compute what a run was interrupted in computing after the checkpoint that it now goes on from."""
    snapshot = folder / snapshot_name(progress.seen)
    first_rank_decides(lambda: evaluator.forget_after(snapshot, progress.seen))
    if due(config.train.snapshot_ticks * config.metrics.every, progress, done):
        names = first_rank_decides(lambda: evaluator.missing(snapshot, progress.seen))
        if names:
            evaluator.evaluate(snapshot, names, progress.seen, journal, stop)


def resume(student: Student, latents: Latents, progress: Progress, dataset: ImageDataset, checkpoint: Path, precision: str) -> dict[int, str]:
    """Everything back to the moment of the checkpoint.

    Returns:
        What is wrong with the images that had been replaced by then, by their numbers.

    Raises:
        CheckpointError: It is of a run of another `engine.precision`, or does not fit.
    """
    state = checkpoints.load_state(checkpoint)
    with checkpoints.loading(checkpoint, checkpoints.STATE):
        saved = str(state["carried_by"]["engine.precision"])[:50]
    if saved != precision:
        raise CheckpointError(f"{checkpoint}: was saved with engine.precision {saved}, this run has {precision}; continue with {saved}")
    check_labels(checkpoint, state, dataset)
    checkpoints.load_engines(checkpoint, student.engines)
    with checkpoints.loading(checkpoint, checkpoints.STATE):
        student.load_state_dict(state["student"])
        latents.load_state_dict(state["latents"])
        progress.load_state_dict(state["progress"])
        if not all(isinstance(i, int) and isinstance(fault, str) for i, fault in state["faults"].items()):
            raise ValueError("its faults are no sentences by the numbers of images")
        dataset.faults |= state["faults"]
    return state["faults"]


def check_labels(checkpoint: Path, state: Mapping[str, Any], dataset: ImageDataset) -> None:
    """Reject images whose labels mean something else than those the run began on.

    Raises:
        CheckpointError: They do; a checkpoint of before, which does not say, is taken at the word of the run's newest snapshot.
    """
    if "labels" in state:
        with checkpoints.loading(checkpoint, checkpoints.STATE):
            labels = {key: state["labels"][key] for key in ("kind", "dim", "names")}
            known = labels["kind"] in (None, *checkpoints.LABEL_KINDS) and type(labels["dim"]) is int and isinstance(labels["names"], (list, type(None)))
            if not known or not all(type(name) is str for name in labels["names"] or ()):
                raise ValueError(f"its labels are {str(state['labels'])!r:.50}")
        checkpoints.check_same_labels(str(checkpoint), labels, dataset)
    elif saved := checkpoints.saved_snapshots(checkpoint.parent.parent):
        try:
            snapshot = checkpoints.open_snapshot(saved[-1])
        except CheckpointError:
            # a damaged one tells nothing, and the run needs none to go on
            return
        checkpoints.check_same_images(snapshot, dataset)


def sheet_name(seen: int) -> str:
    """Of the sheet of samples after `seen` images."""
    return f"fakes{seen // 1000:06d}.png"


def snapshot_name(seen: int) -> str:
    """Of the snapshot after `seen` images."""
    return checkpoints.SNAPSHOT_NAME.format(seen // 1000)


def announce(config: Config, run: Run, dataset: ImageDataset, student: Student, teachers: Sequence[TeacherScores], journal: Journal,
             folder: Path) -> None:
    """Say what is about to run, and keep its settings."""
    device = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    named = ", ".join(f"{t.checkpoint} ({t.mode})" for t in config.guidance.teachers)
    guided = f"lambda {config.guidance.weight:g} from {named}" if named else "none"
    if config.guidance.features is not None:
        guided += f", features of {config.guidance.features.checkpoint}"
    checked = "".join(f"  teacher   {line}\n" for scores in teachers for line in said(scores))
    engine = config.engine
    carried = f"DeepSpeed ZeRO {engine.zero_stage}" if engine.kind == "deepspeed" else "PyTorch"
    micro_batches = {"G": config.train.generator_images // run.world_size // config.train.accumulate_generator,
                     "D": config.train.batch // run.world_size // config.train.accumulate_discriminator}
    with student.whole():
        parameters = {name: parameter_count(network) for name, network in student.networks.items()}
    started = "".join(f"  start     {line}\n" for line in student.taken)
    journal.message(f"\n{folder}\n"
                    f"  images    {len(dataset.source)} of {dataset.resolution}x{dataset.resolution}x{dataset.channels}"
                    f"{', each also mirrored' if dataset.mirror else ''}{labels_in_words(dataset)}, from {config.images.path}\n"
                    f"  networks  G {parameters['G']:,} and D {parameters['D']:,} parameters\n"
                    f"{started}"
                    f"  guidance  {guided}\n"
                    f"{checked}"
                    f"  length    {config.train.kimg:g} kimg from {student.start_images / 1000:g}, batch {config.train.batch} on {run.world_size} rank(s)\n"
                    f"  memory    {micro_batches['D']} images of D and {micro_batches['G']} of G at once on each rank\n"
                    f"{config.r1_in_words}"
                    f"  on        {device}, torch {torch.__version__}, {carried}, {engine.precision}, "
                    f"Adam by {ADAM[chosen_implementation(config.optimizer.implementation, run.device)]}\n"
                    f"  kernels   {student.kernels.sentence}\n")
    for warning in student.kernels.warnings:
        journal.message(f"warning: {warning}")
    for note in dataset.notes:
        journal.message(f"note: {note}")
    journal.write_options("training_options.json", configs.to_dict(config) | {
        "world_size": run.world_size, "effective_r1_gamma": config.effective_r1_gamma, "images_per_micro_batch": micro_batches,
        "training_images": len(dataset.source), "classes": dataset.class_names, "label_kind": dataset.label_kind})


def labels_in_words(dataset: ImageDataset) -> str:
    """Return what the labels are, behind a comma; nothing without labels."""
    if not dataset.label_dim:
        return ""
    if dataset.label_kind == VECTORS:
        return f", vectors of {dataset.label_dim} numbers as labels"
    names = dataset.class_names or ()
    shown = f" ({', '.join(names[:NAMES_SHOWN])}{', ...' if len(names) > NAMES_SHOWN else ''})" if names else ""
    return f", {dataset.label_dim} classes{shown}"


def said(scores: TeacherScores) -> Iterator[str]:
    """What people should know of a teacher before it teaches."""
    yield str(scores)
    if not scores.tells_apart:
        yield "warning: it scores real images no higher than its own fakes, and may mislead the student"
    if scores.note:
        yield f"note: {scores.note}"


def summary(config: Config, folder: Path, dataset: ImageDataset, student: Student, progress: Progress, stats: dict[str, Statistic],
            teachers: Sequence[TeacherScores]) -> Summary:
    """What a finished run is remembered by."""
    model, c_dim = config.model, dataset.label_dim
    image = torch.empty(1, model.channels, model.resolution, model.resolution)
    z, c = torch.empty(1, model.z_dim), torch.empty(1, c_dim)
    # not the student's own D, whose parameters ZeRO 3 keeps elsewhere
    networks = {"G": (student.average, z), "D": (models.discriminator(model.family, model.discriminator_arguments(c_dim)), image)}
    return Summary(
        stage=config.stage, name=config.description, folder=folder, kimg=progress.seen / 1000, seconds=progress.elapsed, stats=stats,
        parameters={name: parameter_count(network) for name, (network, _) in networks.items()},
        macs={name: macs(network, x, c) for name, (network, x) in networks.items()},
        snapshot=folder / snapshot_name(progress.seen), sheet=folder / sheet_name(progress.seen), teachers=teachers)


def table(summaries: Sequence[Summary]) -> str:
    """What the runs cost and where they ended, and where their images are."""
    header = ["run", "G params", "G MACs", "D params", "D MACs", "kimg", "seconds", "G loss", "D loss", "teacher scores", "pull", "guidance"]
    rows = [header]
    for s in summaries:
        def loss(name: str) -> str:
            return f"{s.stats[name]['mean']:.3f}" if name in s.stats else "-"
        rows.append([s.name, f"{s.parameters['G']:,}", f"{s.macs['G'] / 1e6:,.1f} M", f"{s.parameters['D']:,}", f"{s.macs['D'] / 1e6:,.1f} M",
                     f"{s.kimg:g}", f"{s.seconds:.0f}", loss("Loss/G/adversarial"), loss("Loss/D/loss"), teacher_cell(s), pull_cell(s), loss("Loss/G/guidance")])
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths)))
             for row in rows]
    if any(s.teachers for s in summaries):
        lines += ["", "teacher scores: a teacher's mean logits of real images / its own fakes / the student's; "
                      "pull: the teacher's share of G's gradient, relative to the student's own D"]
    lines += [""] + [f"{s.name}: images in {s.sheet}, networks in {s.snapshot}" for s in summaries]
    return "\n".join(lines)


def teacher_cell(s: Summary) -> str:
    """`+1.23/-2.34/-0.56` for each teacher: what it says of real images, of its own fakes before training, of the student's at the end."""
    def student(i: int) -> str:
        name = f"Loss/scores/teacher{i}_fake"
        return f"{s.stats[name]['mean']:+.2f}" if name in s.stats else "?"

    return ",".join(f"{scores.real:+.2f}/{scores.fake:+.2f}/{student(i)}" for i, scores in enumerate(s.teachers)) or "-"


def pull_cell(s: Summary) -> str:
    """`12.3%` for each teacher, in the last tick."""
    names = [f"Guidance/teacher{i}_pull" for i in range(len(s.teachers))]
    return ",".join(f"{100 * s.stats[name]['mean']:.1f}%" if name in s.stats else "?" for name in names) or "-"


def resolved(config: Config, finished: dict[str, Path]) -> Config:
    """`config` with each `stage:NAME` replaced by that stage's newest snapshot, of this call or an earlier one."""

    def snapshot(reference: str) -> str:
        stage = reference.removeprefix(STAGE_PREFIX)
        return str(checkpoints.open_snapshot(finished.get(stage) or newest_run(config, stage)).path)

    return config.with_references({key: snapshot(reference) for key, reference in config.references.items() if reference.startswith(STAGE_PREFIX)})


def fetched_references(config: Config, resumed: bool) -> dict[str, str]:
    """Where the snapshots that are given by an address lie, by the keys that name them; called by rank 0 alone, which fetches them.

    A resumed run needs no start.
    """
    return {key: str(checkpoints.local(reference)) for key, reference in config.references.items()
            if is_address(reference) and not (resumed and key == "start")}


def check_fetched(as_written: Config, config: Config, run: Run) -> None:
    """Every rank reads what rank 0 has fetched.

    Raises:
        TrainingError: This rank is on a machine from which it cannot be seen.
    """
    for key, reference in config.references.items():
        if reference != as_written.references[key] and not Path(reference).exists():
            raise TrainingError(f"{key}: {reference}, which rank 0 has fetched, is not there for rank {run.rank} on {socket.gethostname()}; "
                                f"set XDG_CACHE_HOME to a folder that all machines share")


def newest_run(config: Config, stage: str) -> Path:
    """The folder of the newest run of another stage of the same file that has left a snapshot."""
    description = config.model_copy(update={"stage": stage}).description
    runs = sorted(folder for folder in Path(config.outdir).glob(f"*-{description}")
                  if folder.name.removesuffix(f"-{description}").isdigit() and checkpoints.saved_snapshots(folder))
    if not runs:
        raise CheckpointError(f"{STAGE_PREFIX}{stage}: no run of that stage in {config.outdir}; run it first")
    return runs[-1]


def open_images(config: Config) -> ImageDataset:
    """The training set.

    Raises:
        DatasetError: It cannot be read, or is of another resolution than the config says.
        ConfigError: It is of another kind than the networks.
    """
    try:
        dataset = ImageDataset(config.images.path, resolution=config.model.resolution, labels=config.model.conditional, mirror=config.images.mirror,
                               corrupt=config.images.corrupt)
    except LabelsMissing as error:
        raise DatasetError(f"{error}; {config.without_labels}") from None
    check_images(config, dataset)
    return dataset


def begin_folder(config: Config, sheet: SampleSheet, student: Student) -> Path:
    """A new run folder, with what images look like before training."""
    folder = new_run_folder(config.outdir, config.description)
    sheet.save_real(folder / "reals.png")
    sheet.save_fake(folder / "fakes_init.png", student.average)
    return folder


def check_shared(folder: Path, run: Run) -> None:
    """Every rank goes to the run folder for checkpoints.

    Raises:
        TrainingError: This rank is on a machine, or in a folder, from which it cannot be seen.
    """
    if not folder.is_dir():
        raise TrainingError(f"{folder}, which rank 0 has made, is not there for rank {run.rank} on {socket.gethostname()}; "
                            f"outdir must be a folder that all machines share, by the same path")


def keep_config(folder: Path, config: Config) -> None:
    """The resolved config into the run folder, from which `--resume` reads it."""
    with atomically(folder / CONFIG_NAME) as unfinished:
        unfinished.write_text(configs.to_yaml(config), encoding="utf-8")


def check_files(plan: Sequence[Config]) -> None:
    """Find out before the first stage what would stop a later one: missing images and teachers, or teachers that know nothing."""
    for config in plan:
        try:
            dataset = open_images(config)
            check_references(config, dataset)
            # a single stage is about to ask by itself
            if len(plan) > 1 and not any(teacher.checkpoint.startswith(STAGE_PREFIX) for teacher in config.guidance.teachers):
                check_teachers(config, dataset, torch.device("cpu"))
        except CheckpointError as error:
            raise CheckpointError(f"{error}{without_a_teacher(config, plan)}") from None


def without_a_teacher(config: Config, plan: Sequence[Config]) -> str:
    """Return what to do where a teacher's file is not there, as behind a fresh copy of a config; nothing where all are."""
    missing = [(key, path) for key, path in config.references.items() if key != "start" and not path.startswith(STAGE_PREFIX) and not Path(path).exists()]
    if not missing:
        return ""
    key, path = missing[0]
    alone = [other.stage for other in plan if other.stage and not other.references]
    first = f", or leave it out and train the student by itself first: --stage {alone[0]}" if alone else ""
    return (f"; {f'stage {config.stage}' if config.stage else 'this run'} is taught by it: name a teacher by {key}=FILE "
            f"(docs/compress.md and the head of the config say how to get one){first}")


def check_metrics(plan: Sequence[Config], run: Run) -> None:
    """Find out before the first stage what would stop an evaluation of a later one: a missing detector, too few images."""
    for config in plan:
        if config.metrics.names:
            Evaluator(config, open_images(config), run)


def train_all(plan: Sequence[Config], run: Run) -> list[Summary]:
    """The stages of a file, one after the other, each in a run folder of its own."""
    for config in plan:
        config.check_world_size(run.world_size)
        check_implementation(config, run.device)
    first_rank_decides(lambda: check_files(plan))
    check_metrics(plan, run)
    summaries: list[Summary] = []
    for i, config in enumerate(plan):
        finished = {s.stage: s.folder for s in summaries}
        place = f"{i + 1}/{len(plan)}" if len(plan) > 1 else ""
        summaries.append(train(first_rank_decides(lambda: resolved(config, finished)), run, place=place))
    return summaries


class TrainCommand(click.Command):
    """A command that says how a value of the config is set to those who try an option for it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            word = error.option_name.lstrip("-")
            keys = [word] if "." in word else configs.keys_like(word)
            meant = f"did you mean {' or '.join(f'{key}=...' if '=' not in key else key for key in keys)}?" if keys else "docs/config.md has them all"
            raise click.UsageError(f"there is no option {error.option_name}: values of the config are set as train.batch=16, without dashes; {meant}", ctx) from None


@click.command(cls=TrainCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "config_path", type=UserPath(), help="What to train: a file such as configs/quickstart.yaml.")
@click.option("--resume", "resume_folder", type=UserPath(), help="Go on with the run in this folder instead.")
@click.option("--stage", help="Run this stage of the file only.")
@click.option("-n", "--dry-run", is_flag=True, help="Print the resolved config and exit.")
@click.option("--local_rank", hidden=True, help="Passed by the deepspeed launcher; the environment says the same.")
@click.argument("overrides", nargs=-1)
def main(config_path: Path | None, resume_folder: Path | None, stage: str | None, dry_run: bool, local_rank: str | None,
         overrides: tuple[str, ...]) -> None:
    """Train a StyleGAN2 or BigGAN, or compress one (DGL). OVERRIDES change single values of the config: train.batch=16."""
    if (config_path is None) == (resume_folder is None):
        raise click.UsageError("give either --config FILE or --resume RUN_FOLDER")
    if resume_folder is not None and stage is not None:
        raise click.UsageError("--resume goes on with the stage that its run folder holds; leave --stage out")
    try:
        if resume_folder is not None:
            check_resumable(resume_folder)
            plan = configs.read(resume_folder / CONFIG_NAME, overrides)
        else:
            plan = chosen(configs.read(config_path, overrides), stage, config_path)
        # what one rank cannot share, no number of them can
        for config in plan:
            config.check_world_size(1)
        if dry_run:
            click.echo("\n---\n".join(configs.to_yaml(config).rstrip() for config in plan))
            return
        run = start_run(max(config.engine.timeout for config in plan))
    except (ConfigError, CheckpointError) as error:
        raise click.ClickException(str(error)) from None

    try:
        with watched(run.peers):
            summaries = [train(plan[0], run, resumed=resume_folder)] if resume_folder else train_all(plan, run)
        if run.rank == 0:
            click.echo("\n" + table(summaries))
    except Stopped:
        # which the journal has told
        pass
    except (ConfigError, DatasetError, CheckpointError, DetectorError, FeatureError, TrainingError, OSError) as error:
        where = f" (rank {run.rank})" if run.world_size > 1 else ""
        click.echo(f"Error{where}: {error}", err=True)
        # without leaving the process group: the others may be waiting in it, for the launcher to end them
        sys.exit(1)
    end_run()


def check_resumable(folder: Path) -> None:
    """Reject what is no run folder with a checkpoint, and say what to give instead.

    Raises:
        CheckpointError: It is none.
    """
    def is_run(path: Path) -> bool:
        return bool(checkpoints.saved_checkpoints(path / checkpoints.CHECKPOINTS))

    if is_run(folder):
        return
    folder = Path(os.path.normpath(folder))
    if not folder.exists():
        raise CheckpointError(f"{folder}: no such folder; --resume takes the folder of a run, such as runs/00000-ffhq-student")
    above = next((path for path in list(folder.absolute().parents)[:2] if is_run(path)), None)
    if folder.is_file():
        begin = f"start={folder} begins a new run from the networks in it" if folder.name != CONFIG_NAME else f"--config {folder} begins the run again"
        resume = f"--resume {above} goes on with the run beside it, and " if above else ""
        raise CheckpointError(f"{folder}: is a file, and --resume takes the folder of a run; {resume}{begin}")
    if above is not None:
        raise CheckpointError(f"{folder}: is inside of the folder of a run; --resume {above} goes on from its newest checkpoint")
    runs = sorted((path for path in folder.iterdir() if path.is_dir() and is_run(path)), key=lambda path: path.stat().st_mtime)
    if runs:
        raise CheckpointError(f"{folder}: holds {len(runs)} run(s), of which --resume takes one; the newest is --resume {runs[-1]}")
    if checkpoints.saved_snapshots(folder):
        raise CheckpointError(f"{folder}: no training checkpoint to continue from, only snapshots; start={folder} begins a new run from the newest")
    checkpoints.newest_checkpoint(folder)


def chosen(plan: list[Config], stage: str | None, path: Path) -> list[Config]:
    """The stage asked for, or all."""
    if stage is None:
        return plan
    names = [config.stage for config in plan]
    if stage not in names:
        raise ConfigError(f"--stage {stage}: {path} has no such stage; it has {', '.join(filter(None, names)) or 'none'}")
    return [plan[names.index(stage)]]


if __name__ == "__main__":
    main()
