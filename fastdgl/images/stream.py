"""The images of a dataset as batches without end, in an order that is a function of the position alone."""

import itertools
import signal
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from .dataset import ImageDataset
from .errors import DatasetError


def stream(
    dataset: ImageDataset,
    batch: int,
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    workers: int = 2,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end, the images of each epoch in a new order.

    The order is a function of `seed` and the position alone. So a run that stopped after `seen` images goes on exactly with
    `start=seen`, and the ranks together see what one process would: rank `r` gets `batch[r::world_size]`, which puts the same
    images into one group of minibatch-stddev however many ranks there are. A batch may span the border of two epochs.

    Args:
        batch: Images per step, over all ranks.
        seed: What the orders are drawn from, 0 or more.
        start: Images already seen, over all ranks.
        workers: Processes that decode; 0 decodes in this one.

    Returns:
        An iterator over images, `float32 [batch / world_size, C, H, W]` in [-1, 1], and labels,
        `float32 [batch / world_size, label_dim]`, both on `device`. Closing it ends the workers.
    """
    if batch < 1 or batch % world_size:
        raise ValueError(f"batch must be a multiple of the {world_size} ranks, got {batch}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to {world_size - 1}, got {rank}")
    if seed < 0 or start < 0:
        raise ValueError(f"seed and start must not be negative, got {seed} and {start}")
    indices = _index_batches(len(dataset), batch, seed, rank, world_size, start)
    return ((pixels.to(torch.float32) / 127.5 - 1, labels) for pixels, labels in batches(dataset, indices, workers, torch.device(device)))


def batches(dataset: ImageDataset, index_batches: Iterable[list[int]], workers: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The images of each list of indices, as they were recorded.

    Args:
        workers: Processes that decode; 0 decodes in this one.

    Returns:
        An iterator over images, `uint8 [N, C, H, W]`, and labels, `float32 [N, label_dim]`, both on `device`. Closing it ends the workers.
    """
    loader = torch.utils.data.DataLoader(
        _Batches(dataset),
        sampler=index_batches,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=leave_signals_to_the_trainer,
        pin_memory=device.type == "cuda",
        # the loader draws a seed for its workers: not from the global generator, whose state belongs to the run
        generator=torch.Generator(),
    )
    for loaded in loader:
        if isinstance(loaded, DatasetError):
            raise loaded
        pixels, labels = (x.to(device, non_blocking=True) for x in loaded)
        yield pixels, labels


def leave_signals_to_the_trainer(worker: int) -> None:
    """Read on through SIGTERM and SIGINT, which launchers and terminals send to workers too: the process that reads from
    this one decides what they mean, and a worker ends with it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class _Batches(torch.utils.data.Dataset):
    """A dataset by the batch.

    A fault is returned, not raised: raised in a worker it would reach the user wrapped in the worker's traceback.
    """

    def __init__(self, dataset: ImageDataset):
        self.dataset = dataset

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor] | DatasetError:
        try:
            pixels, labels = zip(*(self.dataset[i] for i in indices))
        except DatasetError as error:
            return error
        return torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.stack(labels))


def _index_batches(length, batch, seed, rank, world_size, start) -> Iterator[list[int]]:
    epoch, order = None, []
    for first in itertools.count(start, batch):
        indices = []
        for position in range(first + rank, first + batch, world_size):
            if position // length != epoch:
                epoch = position // length
                order = _permutation(length, seed, epoch)
            indices.append(order[position % length])
        yield indices


def _permutation(length: int, seed: int, epoch: int) -> list[int]:
    # torch's CPU generator uses the low 32 bits of its seed only, so the two numbers are mixed into 32
    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    return torch.randperm(length, generator=torch.Generator().manual_seed(mixed)).tolist()
