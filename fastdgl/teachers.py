"""What a teacher is worth before it teaches: how it scores real images, and its own fakes."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .assembly import open_teacher
from .checkpoints import CheckpointError, Snapshot
from .config import Config, Teacher
from .images import ImageDataset
from .samples import draw

# of each kind, at least; the mean of their logits is then known to an eighth of their spread
IMAGES = 64
# drawn and scored at once, about: no more memory than training takes
BATCH = 8


@dataclass(frozen=True)
class TeacherScores:
    """The mean logits of a teacher.

    name: Of the discriminator in its file, D or D_ema.
    note: What is to be said of the file, a sentence; empty for nothing.
    """

    path: str
    name: str
    real: float
    fake: float
    note: str = ""

    @property
    def tells_apart(self) -> bool:
        """Whether real images score higher than the teacher's own fakes; False where a score is NaN."""
        return self.real > self.fake

    def __str__(self) -> str:
        return f"{self.path} ({self.name}) scores real images {self.real:+.3g}, its own fakes {self.fake:+.3g}"


def check_teachers(config: Config, dataset: ImageDataset, device: torch.device, world_size: int = 1, resumed: bool = False) -> list[TeacherScores]:
    """Return the scores of each of a run's teachers, in the order of the config. Random numbers stay as they are.

    Args:
        resumed: Accept every teacher: the run has learned from it before.

    Raises:
        ConfigError: A rank's batch cannot form the groups of a teacher's minibatch standard deviation.
        CheckpointError: A frozen teacher cannot tell real images from its own fakes, and its `check` is `reject`; or it is missing, or of
            other networks or images.
        DatasetError: An image cannot be read.
    """
    found = []
    for i, teacher in enumerate(config.guidance.teachers):
        scores = teacher_scores(open_teacher(teacher.checkpoint, config, dataset, world_size), teacher, dataset, device)
        if teacher.mode == "frozen" and teacher.check == "reject" and not scores.tells_apart and not resumed:
            raise CheckpointError(f"guidance.teachers.{i}: {scores}, and so cannot tell them apart; expected a teacher that scores real images higher: "
                                  f"train it longer or take another snapshot, or set guidance.teachers.{i}.check to warn to use it all the same")
        found.append(scores)
    return found


@torch.no_grad()
def teacher_scores(snapshot: Snapshot, teacher: Teacher, dataset: ImageDataset, device: torch.device) -> TeacherScores:
    """Score real images spread evenly over the training set, and images of the same classes that the teacher's averaged generator draws.

    Both kinds are rounded to 8 bits, and scored apart from each other.

    Raises:
        CheckpointError: The file does not hold the networks that it should.
        DatasetError: An image cannot be read.
    """
    name, group = snapshot.teacher_name(teacher.average), snapshot.minibatch_group
    batch = group * max(BATCH // group, 1)
    N = batch * math.ceil(IMAGES / batch)
    images, labels = zip(*(dataset[int(i)] for i in np.linspace(0, len(dataset) - 1, N)))
    # networks are made with random weights, which the run's own random numbers must not miss
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        G = snapshot.averaged_generator(device)
        # in fp32 on a CPU, as the generator
        changes = {"num_fp16_res": 0} if device.type == "cpu" and "num_fp16_res" in snapshot.arguments["D"] else {}
        D = snapshot.network(name, **changes).to(device)
    c = torch.from_numpy(np.stack(labels)).to(device)
    z = torch.randn(N, G.z_dim, generator=torch.Generator().manual_seed(0)).to(device)
    real, fake = torch.from_numpy(np.stack(images)), torch.from_numpy(draw(G, z, c, batch=batch)).permute(0, 3, 1, 2)
    note = f"{snapshot.path} holds no averaged discriminator: its last one teaches" if teacher.average and name == "D" else ""
    return TeacherScores(str(snapshot.path), name, mean_logit(D, real, c, batch), mean_logit(D, fake, c, batch), note)


def mean_logit(D: nn.Module, images: Tensor, c: Tensor, batch: int) -> float:
    """Return the mean logit of images `[N, C, H, W]`, uint8, of classes `[N, c_dim]`, `batch` at a time."""
    logits = [D(part.to(c.device).float() / 127.5 - 1, part_c) for part, part_c in zip(images.split(batch), c.split(batch))]
    return float(torch.cat(logits).double().mean())
