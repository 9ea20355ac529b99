"""Sheets of sample images, with the same latents from the first to the last of a run."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .grids import grid_shape, save_image_grid, to_uint8
from .images import ImageDataset

BATCH = 32


class SampleSheet:
    """One sheet of images to watch a run by: each row one class, if there are classes.

    Args:
        seed: Chooses the latents and the real images.
        z_dim: Of the generator.
    """

    def __init__(self, dataset: ImageDataset, z_dim: int, seed: int, device: torch.device):
        self.columns, rows = grid_shape(dataset.resolution)
        random = np.random.RandomState(seed)
        self.real, c = self._choose(dataset, rows, random)
        self.c = c.to(device)
        self.z = torch.from_numpy(random.randn(len(c), z_dim)).float().to(device)

    def _choose(self, dataset: ImageDataset, rows: int, random: np.random.RandomState) -> tuple[np.ndarray, Tensor]:
        """Real images `[N, H, W, C]`, uint8, and their labels `[N, c_dim]`; a class without images has no row."""
        order = random.permutation(len(dataset))
        if dataset.label_dim:
            labels = dataset.all_labels()
            # the mirrored images follow the others, in the same order
            classes = (labels if labels.ndim == 1 else labels.argmax(axis=1))[order % len(labels)]
            chosen = [np.resize(order[classes == c], self.columns) for c in np.unique(classes)[:rows]]
            indices = np.concatenate(chosen)
        else:
            indices = np.resize(order, self.columns * rows)
        images, labels = zip(*(dataset[int(i)] for i in indices))
        return np.stack(images).transpose(0, 2, 3, 1), torch.from_numpy(np.stack(labels))

    def save_real(self, path: Path) -> None:
        save_image_grid(path, self.real, self.columns)

    @torch.no_grad()
    def save_fake(self, path: Path, G: nn.Module) -> None:
        """What `G` makes of the sheet's latents, with constant noise and no truncation."""
        batches = zip(self.z.split(BATCH), self.c.split(BATCH))
        images = [to_uint8(G(z, c, noise_mode="const")) for z, c in batches]
        save_image_grid(path, np.concatenate(images), self.columns)
