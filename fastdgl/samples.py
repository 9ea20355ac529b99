"""Sheets of sample images: of a run, with the same latents from the first to the last; of all classes; from one sample to another."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .grids import SHEET_HEIGHT, grid_shape, save_image_grid, to_uint8
from .images import ImageDataset

BATCH = 32
# images of an interpolation, both ends included; the custom of the field
STEPS = 10
INTERPOLATIONS = ("z", "class", "both", "w")


@torch.no_grad()
def draw(G: nn.Module, z: Tensor, c: Tensor, truncation: float | None = None, *, batch: int = BATCH, **options: str) -> np.ndarray:
    """Images of a trained generator, a few at a time: `[N, H, W, C]`, uint8.

    Args:
        z: `[N, z_dim]`, from `G.sample_z` with the same truncation.
        c: `[N, c_dim]`.
        truncation, options: Of `G.sample_images`.
        batch: Images at once.
    """
    batches = zip(z.split(batch), c.split(batch))
    return np.concatenate([to_uint8(G.sample_images(z, c, truncation, **options)) for z, c in batches])


@torch.no_grad()
def draw_w(G: nn.Module, ws: Tensor, noise_mode: str = "const") -> np.ndarray:
    """Images of a StyleGAN2's w `[N, num_ws, w_dim]`, a few at a time: `[N, H, W, C]`, uint8."""
    return np.concatenate([to_uint8(G.synthesis(some, noise_mode=noise_mode)) for some in ws.split(BATCH)])


def class_grid(z: Tensor, c_dim: int, resolution: int) -> tuple[Tensor, Tensor, int]:
    """A sheet of all classes, each class with the same latents side by side.

    Args:
        z: `[S, z_dim]`.

    Returns:
        Latents `[c_dim * S, z_dim]`, classes `[c_dim * S, c_dim]`, and the columns of the sheet: S, for a row to each class;
        a multiple of it, for a sheet about as wide as high, where the rows of so many classes would not fit an 8K screen.
    """
    S, beside = len(z), 1
    if c_dim * resolution > SHEET_HEIGHT:
        beside = max(round((c_dim / S) ** 0.5), 1)
    return z.repeat(c_dim, 1), torch.eye(c_dim, device=z.device).repeat_interleave(S, dim=0), beside * S


def between(starts: Tensor, ends: Tensor, steps: int = STEPS) -> Tensor:
    """Even steps on the straight line from each start to its end: `[R, ...]`, `[R, ...]` -> `[R * steps, ...]`, row by row."""
    t = torch.linspace(0, 1, steps, device=starts.device).reshape(-1, *[1] * (starts.ndim - 1))
    return torch.lerp(starts[:, None], ends[:, None], t).flatten(0, 1)


def interpolation(z: Tensor, c: Tensor, what: str, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    """The inputs of a sheet of interpolations, `steps` images to a row: linear in z, and in the label.

    Args:
        z: `[S, z_dim]`.
        c: `[1, c_dim]`, the class of all; or `[2, c_dim]`, the first and the last class of each row.
        what: "z" goes from each z to the next, "class" from the first class to the last at each z, "both" does both at once.

    Returns:
        Latents `[N, z_dim]` and classes `[N, c_dim]`.
    """
    starts, ends = (z, z) if what == "class" else (z[:-1], z[1:])
    latents = between(starts, ends, steps)
    return latents, between(c[:1], c[-1:], steps).repeat(len(starts), 1)


class SampleSheet:
    """One sheet of images to watch a run by: each row one class, if there are classes.

    Args:
        seed: Chooses the latents and the real images.
        z_dim: Of the generator.
        batch: Fake images at once: where training fits into memory, its sheets do too.
    """

    def __init__(self, dataset: ImageDataset, z_dim: int, seed: int, device: torch.device, batch: int = BATCH):
        self.batch = min(batch, BATCH)
        self.columns, rows = grid_shape(dataset.resolution)
        random = np.random.RandomState(seed)
        self.real, c = self._choose(dataset, rows, random)
        self.c = c.to(device)
        self.z = torch.from_numpy(random.randn(len(c), z_dim)).float().to(device)

    def _choose(self, dataset: ImageDataset, rows: int, random: np.random.RandomState) -> tuple[np.ndarray, Tensor]:
        """Real images `[N, H, W, C]`, uint8, and their labels `[N, c_dim]`; a class without images has no row."""
        order = random.permutation(len(dataset))
        if dataset.label_dim:
            recorded = dataset.all_labels()
            # the mirrored images follow the others, in the same order
            classes = (recorded if recorded.ndim == 1 else recorded.argmax(axis=1))[order % len(recorded)]
            chosen = [np.resize(order[classes == c], self.columns) for c in np.unique(classes)[:rows]]
            indices = np.concatenate(chosen)
        else:
            indices = np.resize(order, self.columns * rows)
        images, labels = zip(*(dataset[int(i)] for i in indices))
        return np.stack(images).transpose(0, 2, 3, 1), torch.from_numpy(np.stack(labels))

    def save_real(self, path: Path) -> None:
        save_image_grid(path, self.real, self.columns)

    def save_fake(self, path: Path, G: nn.Module) -> None:
        """What `G` makes of the sheet's latents, with constant noise and no truncation."""
        save_image_grid(path, draw(G, self.z, self.c, batch=self.batch), self.columns)
