"""The sections of the report, each from what is known of the networks."""

import io
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..grids import sheet_of
from .charts import Bars, Line, bar_chart, line_chart
from .document import Block, Cell, Command, Picture, Section, Table, Text
from .measurements import Latency
from .records import METRIC, Measured
from .subjects import Subject

# side by side in one row of images
COLUMNS = 8
# pixels; a larger image is shown at this size, or nobody could send the page
LARGEST_IMAGE = 512
# below it, an image is shown larger than it is, and its pixels are what was drawn
LARGEST_PIXELATED = 64

CONVENTION = ("Parameters are all trainable numbers of the averaged generator. Multiply-accumulates (MACs) are those of one image, from z on: of the linear "
              "and convolution layers and of attention's products; a transposed convolution counts at the resolution of its input; resampling filters, noise, "
              "normalizations and activations do not count. One MAC is two floating-point operations.")


@dataclass(frozen=True)
class Drawing:
    """What drawing one batch took, by network: None where a sentence in `problems` says why not."""

    batch: int
    latencies: Sequence[Latency | None]
    peaks: Sequence[int | None]


@dataclass(frozen=True)
class Measurements:
    """What was measured, where, and what could not be.

    where: Device, versions, and the state of the machine; empty if nothing was to be measured.
    """

    drawings: Sequence[Drawing]
    rounds: int
    where: str
    problems: Sequence[str]


@dataclass(frozen=True)
class Seen:
    """Images of the same seeds by each network.

    images: Of each network `[N, H, W, C]`, uint8.
    """

    seeds: Sequence[int]
    classes: Sequence[Sequence[str]]
    truncation: float | None
    images: Sequence[np.ndarray]


@dataclass(frozen=True)
class Quantity:
    """Something that every network has an amount of."""

    name: str
    short: str
    small: Sequence[str]
    amounts: Sequence[float | None]
    shown: Callable[[float], str]
    notes: Sequence[Sequence[str]] = ()

    def ratios(self) -> list[float | None]:
        """Of each student to the teacher."""
        first = self.amounts[0]
        return [amount / first if amount is not None and first else None for amount in self.amounts[1:]]

    def row(self) -> list[Cell]:
        cells = []
        for i, amount in enumerate(self.amounts):
            ratio = self.ratios()[i - 1] if i else None
            small = [] if ratio is None else [f"{as_ratio(ratio)} × teacher"]
            small += self.notes[i] if self.notes else []
            cells.append(Cell("not measured" if amount is None else self.shown(amount), small))
        return [Cell(self.name, self.small), *cells]


def as_ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def as_count(count: float) -> str:
    return f"{count:,.0f}"


def as_macs(count: float) -> str:
    return f"{count / 1e9:,.2f} G" if count >= 1e9 else f"{count / 1e6:,.2f} M"


def as_bytes(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.2f} MB"


def as_time(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 10 else f"{seconds * 1e3:,.1f} ms"


def as_number(value: float) -> str:
    return f"{value:.4g}"


def heads(subjects: Sequence[Subject], first: str = "") -> list[Cell]:
    return [Cell(first), *(Cell(subject.role, [subject.name]) for subject in subjects)]


def sizes(subjects: Sequence[Subject]) -> list[Quantity]:
    """What the networks cost anywhere."""
    return [
        Quantity("parameters of G", "parameters", [], [s.parameters for s in subjects], as_count),
        Quantity("MACs of G", "MACs", ["of one image"], [s.macs for s in subjects], as_macs),
        Quantity("averaged generator", "size of G", ["its parameters and buffers alone, fp32"], [s.generator_bytes for s in subjects], as_bytes),
        Quantity("snapshot on disk", "snapshot", ["with whatever else is in it"], [s.file_bytes for s in subjects], as_bytes,
                 [[", ".join(s.snapshot.names)] for s in subjects]),
    ]


def speeds(measurements: Measurements) -> list[Quantity]:
    """What drawing takes on this device."""
    rows = []
    for drawing in measurements.drawings:
        images = images_in_words(drawing.batch)
        spread = [[] if one is None else [f"{as_time(one.low)} to {as_time(one.high)}"] for one in drawing.latencies]
        rows.append(Quantity(f"time of {images}", f"time of {images}", [f"median of {measurements.rounds}", "and their middle half"],
                             [one and one.median for one in drawing.latencies], as_time, spread))
    for drawing in measurements.drawings:
        images = images_in_words(drawing.batch)
        rows.append(Quantity(f"memory for {images}", f"memory for {images}", ["at its peak, weights included"], drawing.peaks, as_bytes))
    return rows


def images_in_words(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def capital(words: str) -> str:
    return words[0].upper() + words[1:]


def lead(subjects: Sequence[Subject], measurements: Measurements) -> list[Text]:
    """The report in three sentences for each student."""
    teacher, *students = subjects
    texts = []
    for i, student in enumerate(students, start=1):
        gained = (f"{capital(student.the)} has {student.parameters / teacher.parameters:.0%} of the teacher’s parameters and needs "
                  f"{student.macs / teacher.macs:.0%} of its multiply-accumulates.")
        times = []
        for drawing in measurements.drawings:
            slow, fast = drawing.latencies[0], drawing.latencies[i]
            if slow and fast:
                share = f"{fast.median / slow.median:.0%} of the time for {images_in_words(drawing.batch)}"
                times.append(f"{share}, which is within the spread" if slow.as_spread_as(fast) else share)
        if times:
            gained += f" On the device below it takes {', and '.join(times)}."
        texts.append(Text(f"{gained} {cost(teacher, student)}"))
    return texts


def cost(teacher: Subject, student: Subject) -> str:
    """What compression cost in quality, as far as that is known."""
    pairs = [(a, b) for b in student.metrics.numbers for a in teacher.metrics.numbers if a.name == b.name and a.better]
    told = [f"{a.name} goes from {as_number(a.value)} to {as_number(b.value)} ({a.better})" for a, b in pairs if a.comparable_with(b)]
    if told:
        return "In quality, " + "; ".join(told) + "."
    if pairs:
        return "What that cost in quality is not known: the metrics of the two were computed differently, and cannot be compared."
    missing = [subject.the for subject in (teacher, student) if not subject.metrics.numbers]
    return f"What that cost in quality is not known: {' and '.join(missing)} {'was' if len(missing) == 1 else 'were'} not evaluated." if missing else \
        "What that cost in quality is not known: no metric was computed of both."


def glance(subjects: Sequence[Subject], measurements: Measurements) -> Section:
    """All ratios in one picture."""
    quantities = [*sizes(subjects)[:3], *speeds(measurements)]
    groups = [Bars(quantity.short, quantity.ratios()) for quantity in quantities if any(ratio is not None for ratio in quantity.ratios())]
    told = "; ".join(f"{group.label} {', '.join('-' if r is None else as_ratio(r) for r in group.ratios)}" for group in groups)
    students = [subject.role for subject in subjects[1:]]
    description = f"{' and '.join(students)} / teacher: {told}"
    return Section("At a glance", [Picture("ratios", "What a student takes, as a part of what the teacher takes", bar_chart(groups, students, description))])


def samples(subjects: Sequence[Subject], seen: Seen, warnings: Sequence[str]) -> Section:
    """The same seeds, a row for each network."""
    blocks: list[Block] = [Text(sentence, warning=True) for sentence in warnings]
    how = "without truncation" if seen.truncation is None else f"at truncation {seen.truncation:g}"
    same = "" if warnings else " In each column all networks draw from the same z" + (" and class" if subjects[0].G.c_dim else "") + "."
    blocks.append(Text(f"Images of the averaged generators, {how}.{same}"))
    reduced = sorted({images.shape[1] for images in seen.images if images.shape[1] > LARGEST_IMAGE})
    if reduced:
        blocks.append(Text(f"They are {' and '.join(map(str, reduced))} pixels wide and are shown at {LARGEST_IMAGE}; "
                           f"fastdgl generate with the same seeds writes them as they are."))
    for first in range(0, len(seen.seeds), COLUMNS):
        some = slice(first, first + COLUMNS)
        for i, subject in enumerate(subjects):
            caption = f"{subject.role}: seeds {', '.join(map(str, seen.seeds[some]))}"
            if seen.classes[i]:
                caption += f"; classes {', '.join(seen.classes[i][some])}"
            images = np.stack([small(image) for image in seen.images[i][some]])
            blocks.append(Picture(f"samples-{first // COLUMNS}-{subject.role.replace(' ', '-')}", caption, sheet=png(sheet_of(images, COLUMNS)),
                                  columns=COLUMNS,
                                  pixelated=images.shape[1] <= LARGEST_PIXELATED))
    return Section("The same seeds", blocks)


def small(image: np.ndarray) -> np.ndarray:
    """`[H, W, C]` at LARGEST_IMAGE pixels at most."""
    if image.shape[1] <= LARGEST_IMAGE:
        return image
    reduced = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).resize((LARGEST_IMAGE, LARGEST_IMAGE), Image.Resampling.LANCZOS)
    return np.asarray(reduced).reshape(LARGEST_IMAGE, LARGEST_IMAGE, -1)


def png(image: np.ndarray) -> bytes:
    """The file of an image `[H, W, C]`."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(file, format="PNG", optimize=True)
    return file.getvalue()


def quality(subjects: Sequence[Subject]) -> Section:
    """Metrics: numbers in one row are comparable, and numbers that are not are in rows of their own."""
    blocks: list[Block] = [Text(sentence, warning=True) for student in subjects[1:] for sentence in incomparable(subjects[0], student)]
    rows = metric_rows(subjects)
    ways = {tuple(conditions(number)) for row in rows for number in row.values()}
    if len(ways) == 1:
        blocks.append(Text(f"All numbers came about in the same way: {'; '.join(*ways)}."))
    elif rows:
        blocks.append(Text("Numbers in one row came about in the same way, which stands below their name; others cannot be compared."))
    if rows:
        blocks.append(Table("Metrics of the averaged generators", heads(subjects), [metric_row(row, subjects, len(ways) > 1) for row in rows]))
    for subject in subjects:
        metrics = subject.metrics
        if not metrics.numbers:
            beside = f"; {metrics.elsewhere} lines beside it are of other snapshots" if metrics.elsewhere else ""
            blocks += [Text(f"{capital(subject.the)} was not evaluated{beside}. This would do it, with the real images for DATA:"),
                       Command(f"fastdgl evaluate --network {shlex.quote(str(subject.snapshot.path))} --data DATA")]
        if metrics.unreadable:
            blocks.append(Text(f"{metrics.unreadable} lines in metric-*.jsonl beside {subject.the} could not be read, and are left out.", warning=True))
    return Section("Quality", blocks)


def metric_rows(subjects: Sequence[Subject]) -> list[dict[int, Measured]]:
    """Numbers that go into one row, by the index of their network."""
    rows: list[dict[int, Measured]] = []
    for i, subject in enumerate(subjects):
        for number in subject.metrics.numbers:
            fitting = [row for row in rows if i not in row and all(number.name == other.name and number.comparable_with(other) for other in row.values())]
            if fitting:
                fitting[0][i] = number
            else:
                rows.append({i: number})
    return sorted(rows, key=lambda row: next(iter(row.values())).name)


def metric_row(row: Mapping[int, Measured], subjects: Sequence[Subject], with_conditions: bool) -> list[Cell]:
    one = next(iter(row.values()))
    small = ([one.better] if one.better else []) + (conditions(one) if with_conditions else [])
    cells = [Cell(one.name, small)]
    for i in range(len(subjects)):
        change = [f"teacher {row[i].value - row[0].value:+.3g}".replace("-", "−", 1)] if i and i in row and 0 in row else []
        cells.append(Cell(as_number(row[i].value) if i in row else "–", change))
    return cells


def conditions(number: Measured) -> list[str]:
    """How a number came about, line by line."""
    said = {key: "not said" if value is None else f"{value:,}" if isinstance(value, int) else str(value) for key, value in number.conditions.items()}
    return [f"detector {number.detector}, SHA-256 {said['detector_sha256'][:8]}",
            f"fakes: {said['num_fake']}", f"real images: {said['num_real']} of {said['data']}", f"resizing: {said['resizing']}"]


def incomparable(teacher: Subject, student: Subject) -> list[str]:
    """A sentence for each metric that both have and that cannot be compared."""
    sentences = []
    for name in sorted({a.name for a in teacher.metrics.numbers} & {b.name for b in student.metrics.numbers}):
        pairs = [(a, b) for a in teacher.metrics.numbers for b in student.metrics.numbers if a.name == b.name == name]
        if not any(a.comparable_with(b) for a, b in pairs):
            closest = min((a.differences(b) for a, b in pairs), key=len)
            sentences.append(f"Not comparable: {name} of the teacher and of {student.the}. Not the same, or not said: {', '.join(closest)}.")
    return sentences


def costs(subjects: Sequence[Subject]) -> Section:
    return Section("Size and arithmetic", [Table("Size and arithmetic", heads(subjects), [quantity.row() for quantity in sizes(subjects)]), Text(CONVENTION)])


def speed(subjects: Sequence[Subject], measurements: Measurements) -> Section:
    """What drawing takes here, or why that is not known."""
    if not measurements.where:
        return Section("Speed and memory", [Text("Not measured: the report was asked for with --rounds 0.")])
    table = Table("Speed and memory on this device", heads(subjects), [quantity.row() for quantity in speeds(measurements)])
    return Section("Speed and memory on this device", [
        Text(measurements.where),
        *(Text(problem, warning=True) for problem in measurements.problems),
        table,
        Text("Time is from z on the device to images on the device, without truncation. The networks draw in turns, after a warm-up, so that whatever else the "
             "machine does falls on all alike. Memory is of a fresh process for each network and batch: on CUDA what PyTorch allocates at most, else by how "
             "much the process’s resident memory grows from before the network is loaded to the peak of its first draw, the peak of loading left out; a few MB of that "
             "are PyTorch’s own, and the same for all.")])


PANELS = [
    ("Loss of G", [("Loss/G/loss", "", False)]),
    ("Loss of D", [("Loss/D/loss", "", False)]),
    ("Guidance, before its weight", [("Loss/G/guidance", "", False)]),
    ("Scores of the own D", [("Loss/scores/real", " real", False), ("Loss/scores/fake", " fake", True)]),
    ("Scores of the first teacher’s D", [("Loss/scores/teacher0_real", " real", False), ("Loss/scores/teacher0_fake", " fake", True)]),
]


def training(subjects: Sequence[Subject]) -> Section:
    """Curves of the runs that the snapshots lie in."""
    blocks: list[Block] = []
    for subject in subjects:
        if not subject.curves:
            blocks.append(Text(f"No curves of {subject.the}: beside its file there is no stats.jsonl of a run that went beyond its first step."))
    metrics = sorted({name for subject in subjects for name in subject.curves if name.startswith(METRIC)})
    panels = [*PANELS, *((name.removeprefix(METRIC), [(name, "", False)]) for name in metrics)]
    for i, (title, names) in enumerate(panels):
        lines = [Line(subject.role + suffix, colour, subject.curves.get(name, ()), dashed)
                 for colour, subject in enumerate(subjects) for name, suffix, dashed in names]
        lines = [line for line in lines if line.drawn]
        if lines:
            ends = "; ".join(f"{line.label} ends at {line.drawn[-1][1]:.3g}" for line in lines)
            blocks.append(Picture(f"curve-{i}", title, line_chart(lines, "kimg", f"{title} over thousands of images: {ends}")))
    if any(subject.curves for subject in subjects):
        blocks.insert(0, Text("Means of each tick, over thousands of real images shown (kimg); a run’s first line, of a single step, is left out. "
                              "Losses of networks of different sizes against different discriminators are not a measure of quality."))
    return Section("Training", blocks)


def provenance(subjects: Sequence[Subject]) -> Section:
    """Which files these are."""
    rows = [
        [Cell("file"), *(Cell(str(s.snapshot.path)) for s in subjects)],
        [Cell("SHA-256"), *(Cell(s.checksum or "a folder") for s in subjects)],
        [Cell("family"), *(Cell(s.snapshot.family) for s in subjects)],
        [Cell("images"), *(Cell(s.images) for s in subjects)],
        [Cell("numbers in z"), *(Cell(as_count(s.G.z_dim)) for s in subjects)],
        [Cell("real images seen", ["as far as the file says"]), *(Cell(as_count(s.snapshot.seen) if s.snapshot.seen else "not said") for s in subjects)],
    ]
    notes = [Text(f"{s.role}: {note}.") for s in subjects for note in s.snapshot.notes]
    return Section("The networks", [Table("Which files these are", heads(subjects), rows), *notes])
