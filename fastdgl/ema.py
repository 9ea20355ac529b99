"""The average generator, which is the one that is kept."""

import copy
import weakref
from collections.abc import Collection

import torch
from torch import Tensor, nn

# average -> of each constant buffer, by its name: what was copied, and the version that both sides had afterwards
_copied: weakref.WeakKeyDictionary[nn.Module, dict[str, tuple[weakref.ref[Tensor], int, int]]] = weakref.WeakKeyDictionary()


def half_life(seen: int, ema_kimg: float, ema_rampup: float | None) -> float:
    """Half-life of the average, in images: `ema_kimg` thousand, or less while training is young."""
    images = ema_kimg * 1000
    return images if ema_rampup is None else min(images, seen * ema_rampup)


def averaged_copy(network: nn.Module) -> nn.Module:
    """An fp32 copy of `network` that follows it through `update` and takes no gradients."""
    return copy.deepcopy(network).float().eval().requires_grad_(False)


def beta_after(images: int, half_life: float) -> float:
    """What a step on `images` images leaves of the average: 0.5 ** (images / half_life)."""
    return 0.5 ** (images / max(half_life, 1e-8))


@torch.no_grad()
def update(average: nn.Module, network: nn.Module, beta: float, averaged_buffers: Collection[str] = ()) -> None:
    """Move `average` towards `network`: beta * average + (1 - beta) * network.

    Buffers, such as the mean of w, are copied, all together. Those that `network.constant_buffers` names, such as filters, are copied the
    first time, and after that where something has written to either side.

    Args:
        averaged_buffers: Names, without their modules', of buffers that are averaged as parameters are. Those of batch
            norm are: the network's own belong to weights that the average does not have, and to first order the mean of
            statistics belongs to the mean of weights. The vectors of spectral norm are not: a mean of unit vectors is
            none, and a step of power iteration from the newest finds the average's own.
    """
    constant, copied = getattr(network, "constant_buffers", ()), _copied.setdefault(average, {})
    mine, theirs = list(average.parameters()), list(network.parameters())
    stale, newer = [], []
    for (name, buffer), newest in zip(average.named_buffers(), network.buffers()):
        kind = name.rpartition(".")[2]
        if kind in averaged_buffers:
            mine.append(buffer)
            theirs.append(newest)
        elif kind not in constant or not _is_copy(buffer, newest, copied.get(name)):
            stale.append(buffer)
            newer.append(newest)
    if stale:
        torch._foreach_copy_(stale, newer)
    torch._foreach_lerp_(mine, [x.to(y.dtype) for x, y in zip(theirs, mine)], 1 - beta)

    for (name, buffer), newest in zip(average.named_buffers(), network.buffers()):
        # an inference tensor has no version
        if name.rpartition(".")[2] in constant and not (buffer.is_inference() or newest.is_inference()):
            copied[name] = (weakref.ref(newest), newest._version, buffer._version)


def _is_copy(buffer: Tensor, newest: Tensor, seen: tuple[weakref.ref[Tensor], int, int] | None) -> bool:
    """Return whether nothing was written to either since one was copied into the other."""
    if seen is None or buffer.is_inference() or newest.is_inference():
        return False
    source, version, own_version = seen
    return source() is newest and newest._version == version and buffer._version == own_version
