"""PPL: how far an image moves, as seen by a detector, for a small step in w."""

import copy

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..engines import Run
from ..images import ImageDataset
from ..models.stylegan2 import Generator as StyleGAN2
from .detectors import Detector
from .features import gathered, labels_of, noise_of, shares

EPSILON = 1e-4
# what larger images are scaled down to, pixels
MOST_PIXELS = 256


@torch.no_grad()
def path_lengths(G: StyleGAN2, dataset: ImageDataset, count: int, detector: Detector, run: Run, batch: int) -> Tensor | None:
    """The perceptual length of a step from the end of each of `count` paths in w. All ranks call it together, with TF32 off.

        d(G(w_0), G(lerp(w_0, w_1, epsilon))) / epsilon^2,  d the squared distance of `detector.lpips`

    Path i goes from the w of seed 2 i to that of seed 2 i + 1, both of one class, drawn as of fakes; the images before and after the step
    have the same noise. Everything is computed in fp32, which the step needs.

    Args:
        batch: Images at once on each rank; a path takes two.

    Returns:
        `[count]`, float64, in order; on rank 0 alone.

    Raises:
        DetectorError: The detector has no LPIPS, or fails.

    Source: Karras et al. 2019, "A Style-Based Generator Architecture for Generative Adversarial Networks", section 4.1, equation 3 with
    t = 0, as in NVIDIA's `ppl2_wend`.
    """
    G, lengths = in_fp32(G), []
    with tqdm(total=count, desc="paths", unit="path", disable=None if run.rank == 0 else True) as bar:
        for paths, N in shares(count, max(batch // 2, 1), run):
            first, second = [2 * path for path in paths], [2 * path + 1 for path in paths]
            z = torch.cat([G.sample_z(seed) for seed in first + second])
            c = labels_of(paths + paths, count, dataset)
            start, end = G.mapping(z.to(run.device), c.to(run.device)).chunk(2)
            images = G.synthesis(torch.cat([start, start.lerp(end, EPSILON)]), noise_mode="random", normal=noise_of(first + first))
            before, after = detector.lpips((scaled_down(images) + 1) * (255 / 2)).chunk(2)
            moved = (before - after).square().sum(dim=1, dtype=torch.float64) / EPSILON**2
            lengths.append(gathered(moved, N, run).cpu())
            bar.update(N)
    return torch.cat(lengths) if run.rank == 0 else None


def perceptual_path_length(lengths: Tensor) -> float:
    """The mean of `lengths`, `[N]`, that lie in the range of their 1st to 99th percentile.

    Both ends are in it: of percentiles between two lengths, the outer one is taken.
    """
    values = lengths.numpy()
    low, high = np.percentile(values, 1, method="lower"), np.percentile(values, 99, method="higher")
    return float(values[(low <= values) & (values <= high)].mean())


def in_fp32(G: StyleGAN2) -> StyleGAN2:
    """A copy whose blocks all compute in fp32."""
    G = copy.deepcopy(G)
    for block in G.synthesis.blocks:
        block.dtype = torch.float32
    return G


def scaled_down(images: Tensor) -> Tensor:
    """Means over squares of pixels, so that 256 x 256 are left; images that are no larger stay."""
    factor = images.shape[2] // MOST_PIXELS
    return nn.functional.avg_pool2d(images, factor) if factor > 1 else images
