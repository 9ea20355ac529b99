"""The features of real images and of fakes, gathered from all ranks in the order of the images.

So what is computed of them does not depend on how many ranks there are, but for how a detector or generator rounds in batches of
another size.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from ..engines import Run
from ..grids import to_levels
from ..images import ImageDataset, batches
from ..models.stylegan2 import Generator as StyleGAN2
from .detectors import Detector
from .moments import Moments

# features kept one by one: of more images, evenly spaced ones are
MAX_BANK = 200_000
# images `uint8 [n, C, R, R]` of this rank, and how many a batch has over all ranks
Batch = tuple[Tensor, int]


@dataclass
class Features:
    """What metrics take of a set of images; on rank 0 alone.

    moments: Of the features of all images.
    bank: Features `[n, d]`, float32, of at most MAX_BANK images, in order.
    probabilities: `[N, classes]`, float32.
    path_lengths: Of fakes that are not those of the other parts, `[N]`, float64.
    """

    moments: Moments | None = None
    bank: Tensor | None = None
    probabilities: Tensor | None = None
    path_lengths: Tensor | None = None


@torch.no_grad()
def collect(images: Iterator[Batch], count: int, detector: Detector, wanted: Collection[str], run: Run, what: str) -> Features:
    """What the detector sees in `count` images. All ranks call it together.

    Args:
        wanted: Names of the fields of `Features` to fill, of moments, bank and probabilities.
        what: What to call the images beside the progress bar, which is on standard error.
    """
    kept = np.zeros(count, bool)
    size = min(count, MAX_BANK)
    kept[np.arange(size) * count // size] = True
    found, bank, probabilities, seen = Features(), [], [], 0
    with tqdm(total=count, desc=what, unit="img", disable=None if run.rank == 0 else True) as bar:
        for share, N in images:
            outputs = {name: gathered(output, N, run) for name, output in seen_in(share, detector, wanted).items()}
            if run.rank == 0 and "moments" in wanted:
                moments = Moments.of(outputs["features"])
                found.moments = moments if found.moments is None else found.moments + moments
            if run.rank == 0 and "bank" in wanted:
                bank.append(outputs["features"][torch.from_numpy(kept[seen:seen + N])].cpu())
            if run.rank == 0 and "probabilities" in wanted:
                probabilities.append(outputs["probabilities"].cpu())
            seen += N
            bar.update(N)
    found.bank = torch.cat(bank) if bank else None
    found.probabilities = torch.cat(probabilities) if probabilities else None
    return found


def seen_in(images: Tensor, detector: Detector, wanted: Collection[str]) -> dict[str, Tensor]:
    """What these fields of `Features` are made of, as the detector sees it in images `uint8 [N, C, R, R]`: "features" `[N, d]`,
    "probabilities" `[N, classes]`, or both."""
    outputs = {}
    if {"moments", "bank"} & set(wanted):
        outputs["features"] = detector.features(images)
    if "probabilities" in wanted:
        outputs["probabilities"] = detector.probabilities(images)
    return outputs


def shares(count: int, batch: int, run: Run) -> Iterator[tuple[list[int], int]]:
    """This rank's indices of each batch of `range(count)`, and how many images that batch has over all ranks.

    Shares are equally long on all ranks: where it does not come out even, the last image is taken more than once.

    Args:
        batch: Images at once on each rank.
    """
    for first in range(0, count, batch * run.world_size):
        whole = list(range(first, min(first + batch * run.world_size, count)))
        padded = whole + whole[-1:] * (-len(whole) % run.world_size)
        yield padded[run.rank::run.world_size], len(whole)


def gathered(share: Tensor, N: int, run: Run) -> Tensor:
    """The rows of all ranks in the order of the batch, `[N, d]`."""
    if run.world_size == 1:
        return share
    parts = [torch.empty_like(share) for _ in range(run.world_size)]
    dist.all_gather(parts, share.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)[:N]


def real_images(dataset: ImageDataset, run: Run, batch: int, workers: int, count: int | None = None) -> Iterator[Batch]:
    """Images of a dataset, in order: all, or `count` of them, evenly spaced."""
    total = len(dataset) if count is None else count
    chosen, counts = zip(*shares(total, batch, run))
    indices = [[i * len(dataset) // total for i in some] for some in chosen]
    for (pixels, _), N in zip(batches(dataset, indices, workers, run.device), counts):
        yield pixels, N


def fake_images(G: nn.Module, dataset: ImageDataset, count: int, run: Run, batch: int, truncation: float | None = None) -> Iterator[Batch]:
    """Images of seeds 0 to count - 1, of classes drawn from the dataset with their frequency; by default without truncation.

    A StyleGAN2 adds random noise, as in NVIDIA's metrics; that of a seed is the same in any batch and on any rank, but not on devices
    of another kind.
    """
    for seeds, N in shares(count, batch, run):
        z = torch.cat([G.sample_z(seed, truncation) for seed in seeds]).to(run.device)
        c = labels_of(seeds, count, dataset).to(run.device)
        options = {"noise_mode": "random", "normal": noise_of(seeds)} if isinstance(G, StyleGAN2) else {}
        yield to_levels(G.sample_images(z, c, truncation, **options)), N


def labels_of(fakes: Sequence[int], count: int, dataset: ImageDataset) -> Tensor:
    """The labels of some of `count` fakes, `float32 [N, label_dim]`, which are drawn from the dataset with their frequency."""
    drawn = np.random.RandomState(0).randint(len(dataset), size=count)
    return torch.from_numpy(np.stack([dataset.label(drawn[fake]) for fake in fakes]))


def noise_of(seeds: Sequence[int]) -> Callable[..., Tensor]:
    """A source of standard normal numbers `[N, ...]`, of which each seed has a stream of its own."""
    generators: list[torch.Generator] = []

    def normal(size: list[int], device: torch.device) -> Tensor:
        if not generators:
            generators.extend(torch.Generator(device).manual_seed(seed) for seed in seeds)
        return torch.stack([torch.randn(size[1:], generator=generator, device=device) for generator in generators])

    return normal
