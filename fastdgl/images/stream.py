"""The images of a dataset as batches without end, in an order that is a function of the position alone."""

import atexit
import itertools
import os
import signal
from collections.abc import Iterable, Iterator
from types import FrameType

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
    timeout: float = 0,
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
        workers, timeout: As of `batches`.

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
    loaded = batches(dataset, indices, workers, torch.device(device), timeout)
    return ((pixels.to(torch.float32) / 127.5 - 1, labels) for pixels, labels in loaded)


def batches(dataset: ImageDataset, index_batches: Iterable[list[int]], workers: int, device: torch.device,
            timeout: float = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """The images of each list of indices, as they were recorded. What was wrong with those replaced is added to `dataset.faults`.

    Args:
        workers: Processes that decode; 0 decodes in this one.
        timeout: Seconds to wait for the next batch of the workers; 0 waits for ever.

    Returns:
        An iterator over images, `uint8 [N, C, H, W]`, and labels, `float32 [N, label_dim]`, both on `device`. Closing it ends the workers.
        It raises a DatasetError that names the files being read where no batch comes in time, or a worker has died.
    """
    by_batch = _Batches(dataset, workers)
    loader = torch.utils.data.DataLoader(
        by_batch,
        sampler=index_batches,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=by_batch.leave_signals_to_the_trainer,
        timeout=timeout if workers else 0,
        pin_memory=device.type == "cuda",
        # the loader draws a seed for its workers: not from the global generator, whose state belongs to the run
        generator=torch.Generator(),
    )
    loaded = iter(loader)
    # before multiprocessing ends what a program that leaves this open has left
    atexit.register(by_batch.end)
    try:
        while True:
            try:
                found = next(loaded)
            except StopIteration:
                return
            except RuntimeError as error:
                raise by_batch.fault(error, timeout) from None
            if isinstance(found, DatasetError):
                raise found
            pixels, labels, faults = found
            dataset.faults |= faults
            yield pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)
    finally:
        by_batch.end()
        atexit.unregister(by_batch.end)


class _Batches(torch.utils.data.Dataset):
    """A dataset by the batch.

    A fault is returned, not raised: raised in a worker it would reach the user wrapped in the worker's traceback.
    """

    def __init__(self, dataset: ImageDataset, workers: int):
        self.dataset = dataset
        # the image each worker is at, or -1: seen by all processes, for the one that waits in vain
        self.reading = torch.full([max(workers, 1)], -1).share_memory_()
        # whether nobody waits for images any more: seen likewise, for the workers to know
        self.over = torch.tensor(False).share_memory_()

    def end(self) -> None:
        """Nobody waits for images any more."""
        self.over.fill_(True)

    def leave_signals_to_the_trainer(self, worker: int) -> None:
        """Read on through SIGTERM and SIGINT, which launchers and terminals send to workers too: the process that reads from
        this one decides what they mean. Once nobody waits for images, they end a worker that has stalled."""
        def end_if_over(number: int, frame: FrameType | None) -> None:
            if self.over:
                # as PyTorch's own handler does: who ends it would take death by a signal for an accident
                os._exit(0)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end_if_over)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor, dict[int, str]] | DatasetError:
        worker = torch.utils.data.get_worker_info()
        reading = self.reading[worker.id if worker else 0]
        found = []
        try:
            for i in indices:
                reading.fill_(i)
                found.append(self.dataset.usable(i))
        except DatasetError as error:
            return error
        finally:
            reading.fill_(-1)
        pixels, labels, faults = zip(*found)
        return torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.stack(labels)), {i: fault for more in faults for i, fault in more.items()}

    def fault(self, error: RuntimeError, timeout: float) -> Exception:
        """What the loader says of its workers, as a sentence with the files they are at; what else it raises as it is."""
        source = self.dataset.source
        at = ", ".join(source.name(i % len(source)) for i in self.reading.tolist() if i >= 0) or "none"
        if str(error).startswith("DataLoader timed out"):
            return DatasetError(f"{source.path}: no images came within {timeout:g} seconds; being read: {at}; "
                                "check the disk or network they are on, or raise images.timeout")
        if str(error).startswith("DataLoader worker"):
            return DatasetError(f"{source.path}: a process that reads images has died; being read: {at}; "
                                "where memory ran out, set fewer images.workers")
        return error


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
