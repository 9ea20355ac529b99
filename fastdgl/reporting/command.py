"""`fastdgl report`: what compression cost and gained, as a page to send."""

import datetime
from collections.abc import Sequence
from pathlib import Path

import click
import torch

from .. import __version__
from ..atomic_files import atomically
from ..checkpoints import CheckpointError, open_snapshot
from ..drawing import Seeds, averaged_generator, check_options, device_of, latents
from ..images import VECTORS
from ..paths import UserPath
from ..requested_labels import requested_labels
from ..samples import draw
from . import sections
from .charts import MOST_COLOURS
from .document import Document
from .measurements import DoesNotFit, MeasurementError, latencies, load, peak_memory, precision, this_device, versions
from .sections import Drawing, Measurements, Seen
from .subjects import Subject, named, unlike

BATCHES = (1, 16)
MOST_SEEDS = 64
HTML, MARKDOWN = "report.html", "report.md"


@click.command("report")
@click.option("--teacher", required=True, help="A snapshot, a run folder for its newest, or what `convert` reads.")
@click.option("--student", "students", required=True, multiple=True, help="The same; may be given up to four times.")
@click.option("--seeds", type=Seeds(), default="0-7", show_default=True, help="Of the images that are shown, as for `generate`.")
@click.option("--class", "chosen", multiple=True,
              help="Classes of the images, by number or name, in turn; all in turn by default.")
@click.option("--trunc", "truncation", type=float, help="Of the images that are shown, as for `generate`. Default: no truncation.")
@click.option("--rounds", type=click.IntRange(min=0), default=20, show_default=True,
              help="So often each network draws each batch to be timed; 0 measures neither time nor memory.")
@click.option("--outdir", type=UserPath(), required=True, help=f"Where {HTML}, {MARKDOWN} and their pictures go.")
def report_command(teacher: str, students: tuple[str, ...], seeds: list[int], chosen: tuple[str, ...], truncation: float | None, rounds: int,
                   outdir: Path) -> None:
    """Teacher and students side by side: size, arithmetic, speed and memory here, metrics, images, curves.

    report.html needs no other file and no network; report.md says the same.
    """
    if len(students) >= MOST_COLOURS:
        raise click.UsageError(f"{len(students)} students are given; expected at most {MOST_COLOURS - 1} on one page")
    if len(seeds) > MOST_SEEDS:
        raise click.UsageError(f"--seeds asks for {len(seeds)} images of each network; expected at most {MOST_SEEDS}: `fastdgl generate` draws more")
    if rounds == 1:
        raise click.UsageError("--rounds 1: of one round there is no spread; expected at least 2, or 0 to measure nothing")
    try:
        opened = [(snapshot, averaged_generator(snapshot)) for snapshot in map(open_snapshot, (teacher, *students))]
        subjects = named(opened[0], opened[1:])
        seen = images_of(subjects, seeds, chosen, truncation)
        outdir.mkdir(parents=True, exist_ok=True)
        document = compared(subjects, measured(subjects, rounds), seen)
        write(document, outdir)
    except CheckpointError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename or outdir}: {error.strerror or error}; no report was written") from None
    click.echo(f"{outdir / HTML} to send, {outdir / MARKDOWN} with {len(document.pictures)} pictures beside it")


def images_of(subjects: Sequence[Subject], seeds: Sequence[int], chosen: Sequence[str], truncation: float | None) -> Seen:
    """Images of the seeds by each network; classes in turn."""
    labels, images = [], []
    for subject in subjects:
        G, names = subject.G, subject.snapshot.class_names
        check_options(G, subject.snapshot.family, seeds[0], truncation, None, None)
        if chosen and not G.c_dim:
            raise click.UsageError(f"--class {chosen[0]}: {subject.the} has no classes; leave it out")
        kind = subject.snapshot.label_kind
        if kind == VECTORS and not chosen:
            raise click.UsageError(f"{subject.the} takes vectors of {G.c_dim} numbers, and none is given; name some by --class, as --class {','.join(['0.5'] * G.c_dim):.40}")
        # a class for each image, in turn
        vectors = [label.vector for label in requested_labels(chosen, len(chosen), G.c_dim, kind, names)] if chosen else list(torch.eye(G.c_dim))
        chosen_vectors = [vectors[i % len(vectors)] for i in range(len(seeds))] if G.c_dim else []
        c = torch.stack(chosen_vectors) if G.c_dim else torch.zeros(len(seeds), 0)
        labels.append([_called(vector, kind, names) for vector in chosen_vectors])
        images.append(draw(G, latents(G, seeds, truncation), c.to(device_of(G)), truncation))
    return Seen(seeds, labels, truncation, images)


def _called(vector: torch.Tensor, kind: str | None, names: Sequence[str] | None) -> str:
    """Return what the page calls a label."""
    if kind == VECTORS:
        return ", ".join(f"{number:g}" for number in vector.tolist())
    i = int(vector.argmax())
    return names[i] if names else str(i)


def measured(subjects: Sequence[Subject], rounds: int) -> Measurements:
    """Time and memory of drawing on the device of the networks."""
    if rounds == 0:
        return Measurements([], 0, "", [])
    device = device_of(subjects[0].G)
    busy, drawings, problems = load(), [], []
    for batch in BATCHES:
        peaks, fits = [], []
        for i, subject in enumerate(subjects):
            click.echo(f"drawing {batch} with {subject.the}: memory", err=True)
            try:
                peaks.append(peak_memory(subject.snapshot.path, batch, device))
            except MeasurementError as error:
                peaks.append(None)
                problems.append(f"Memory of {subject.the} at batch {batch} was not measured: {error}.")
                if isinstance(error, DoesNotFit):
                    continue
            fits.append(i)
        click.echo(f"drawing {batch}: time, {rounds} rounds", err=True)
        times = dict(zip(fits, latencies([subjects[i].G for i in fits], batch, device, rounds)))
        drawings.append(Drawing(batch, [times.get(i) for i in range(len(subjects))], peaks))
    where = (f"Measured on {this_device(device)}, {precision(device, subjects[0].snapshot)}; {versions()}, fastdgl {__version__}. {busy}")
    return Measurements(drawings, rounds, where, problems)


def compared(subjects: Sequence[Subject], measurements: Measurements, seen: Seen) -> Document:
    """The whole report."""
    teacher, *students = subjects
    warnings = [sentence for student in students for sentence in unlike(teacher, student, seen.truncation)]
    return Document(
        title="What compression cost and gained",
        subtitle=f"{'; '.join(student.name for student in students)}, beside {teacher.name}",
        lead=sections.lead(subjects, measurements),
        sections=[sections.glance(subjects, measurements), sections.samples(subjects, seen, warnings), sections.quality(subjects),
                  sections.costs(subjects), sections.speed(subjects, measurements), sections.training(subjects), sections.provenance(subjects)],
        made=f"Made by fastdgl {__version__} on {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC.")


def write(document: Document, outdir: Path) -> None:
    """Pictures first, so that report.md never names one that is not there."""
    files = {picture.file: picture.content for picture in document.pictures}
    files |= {MARKDOWN: document.as_markdown().encode(), HTML: document.as_html().encode()}
    for name, content in files.items():
        with atomically(outdir / name) as unfinished:
            unfinished.write_bytes(content)
