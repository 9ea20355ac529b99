"""The average generator, which is the one that is kept."""

import copy

import torch
from torch import nn


def half_life(seen: int, ema_kimg: float, ema_rampup: float | None) -> float:
    """Half-life of the average, in images: `ema_kimg` thousand, or less while training is young."""
    images = ema_kimg * 1000
    return images if ema_rampup is None else min(images, seen * ema_rampup)


def averaged_copy(network: nn.Module) -> nn.Module:
    """An fp32 copy of `network` that follows it through `update` and takes no gradients."""
    return copy.deepcopy(network).float().eval().requires_grad_(False)


@torch.no_grad()
def update(average: nn.Module, network: nn.Module, images: int, half_life: float) -> None:
    """Move `average` towards `network` after a step on `images` images.

        beta = 0.5 ** (images / half_life)

    Buffers, such as the mean of w, are copied.
    """
    beta = 0.5 ** (images / max(half_life, 1e-8))
    parameters = list(average.parameters())
    torch._foreach_lerp_(parameters, [p.to(q.dtype) for p, q in zip(network.parameters(), parameters)], 1 - beta)
    for mine, theirs in zip(average.buffers(), network.buffers()):
        mine.copy_(theirs)
