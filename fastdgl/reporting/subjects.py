"""A network of the report, and what is known of it without drawing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from ..checkpoints import BEST_NAME, SNAPSHOT_PATTERN, Snapshot
from ..images.files import sha256_of_file
from ..models.cost import macs, parameter_count
from .records import Metrics, curves_of, metrics_of


@dataclass(frozen=True)
class Subject:
    """The teacher, or a student.

    role: `teacher`, `student`, or `student 1` and so on where there are several.
    G: The averaged generator.
    """

    role: str
    snapshot: Snapshot
    G: nn.Module

    @property
    def the(self) -> str:
        """The role in a sentence: `the student`, but `student 1`."""
        return self.role if self.role[-1].isdigit() else f"the {self.role}"

    @property
    def name(self) -> str:
        """As people call it: a run by its folder and how far it was, anything else by its file."""
        path = self.snapshot.path.absolute()
        of_run = path.match(SNAPSHOT_PATTERN) or path.name == BEST_NAME
        return f"{path.parent.name}, {self.snapshot.seen / 1000:g} kimg" if of_run else path.name

    @cached_property
    def parameters(self) -> int:
        return parameter_count(self.G)

    @cached_property
    def macs(self) -> int:
        """Of one image, from z on."""
        return macs(self.G, torch.empty(1, self.G.z_dim), torch.empty(1, self.G.c_dim))

    @cached_property
    def file_bytes(self) -> int:
        """Of the snapshot: its file, or all files of its folder."""
        path = self.snapshot.path
        return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())

    @cached_property
    def generator_bytes(self) -> int:
        """Of the averaged generator's parameters and buffers, as a file holds them."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.G.state_dict().values())

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of the file; empty for a folder."""
        return "" if self.snapshot.path.is_dir() else sha256_of_file(self.snapshot.path)

    @cached_property
    def metrics(self) -> Metrics:
        return metrics_of(self.snapshot)

    @cached_property
    def curves(self) -> Mapping[str, Sequence[tuple[float, float | None]]]:
        return curves_of(self.snapshot)

    @property
    def images(self) -> str:
        """What it draws, such as `32x32, grey, 10 classes`."""
        G = self.G
        colours = {1: "grey", 3: "RGB"}.get(G.img_channels, f"{G.img_channels} channels")
        return f"{G.img_resolution}x{G.img_resolution}, {colours}, {f'{G.c_dim} classes' if G.c_dim else 'no classes'}"


def named(teacher: tuple[Snapshot, nn.Module], students: Sequence[tuple[Snapshot, nn.Module]]) -> list[Subject]:
    """Teacher first."""
    roles = ["student"] if len(students) == 1 else [f"student {i + 1}" for i in range(len(students))]
    return [Subject("teacher", *teacher), *(Subject(role, *student) for role, student in zip(roles, students))]


def unlike(teacher: Subject, student: Subject, truncation: float | None) -> list[str]:
    """Why the two are compared with care: a sentence for each reason; none for a student as DGL makes them."""
    a, b, sentences = teacher.G, student.G, []
    if a.z_dim != b.z_dim:
        sentences.append(f"The teacher draws from z of {a.z_dim} numbers and {student.the} from z of {b.z_dim}: a seed means another z to each, "
                         f"so images under each other have only the number of their seed in common.")
    elif truncation is not None and teacher.snapshot.family != student.snapshot.family:
        sentences.append(f"Truncation {truncation:g} bounds the z of a BigGAN and pulls on the w of a StyleGAN2: the teacher and {student.the} "
                         f"are of different families, and do not draw from the same z.")
    if a.c_dim != b.c_dim:
        sentences.append(f"The teacher has {a.c_dim or 'no'} classes and {student.the} {b.c_dim or 'none'}: "
                         f"images under each other need not show the same class.")
    else:
        pairs = enumerate(zip(teacher.snapshot.class_names or (), student.snapshot.class_names or ()))
        differing = [(i, x, y) for i, (x, y) in pairs if x != y]
        for i, x, y in differing[:1]:
            sentences.append(f"The classes differ: class {i} is {x!r} to the teacher and {y!r} to {student.the}.")
    if (a.img_resolution, a.img_channels) != (b.img_resolution, b.img_channels):
        sentences.append(f"The teacher draws images of {teacher.images}, and {student.the} of {student.images}: "
                         f"what they cost is not for the same image.")
    return sentences
