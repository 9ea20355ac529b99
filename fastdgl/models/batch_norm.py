"""Batch normalization with the ReLU that follows it, plain or by class, over one rank or all; and its statistics.

Parameter and buffer names are those of BigGAN-PyTorch, so that its state dicts load strictly.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function

from fastdgl_kernels import scale_shift_act

from ..precision import Fp32Buffers, widened
from .spectral_norm import Embedding, Linear

EPS = 1e-5
# of the stored statistics, how much a batch counts
MOMENTUM = 0.1


class BatchNorm(Fp32Buffers):
    """The statistics of a batch norm, `stored_mean` and `stored_var`; its scale and shift are a subclass's.

    In training mode a batch is normalized by its own mean and variance, and moves the stored ones towards them, the
    variance without bias; in evaluation by the stored ones. All of it in fp32.

    Args:
        sync: In training mode, normalize over the batches of all ranks, which are of one size. Without, the stored
            statistics of the ranks drift apart; `average_over_ranks(running_statistics(G))` brings them together.

    Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015.
    """

    def __init__(self, channels: int, sync: bool):
        super().__init__()
        self.sync = sync
        self.momentum = MOMENTUM
        self.register_buffer("stored_mean", torch.zeros(channels))
        self.register_buffer("stored_var", torch.ones(channels))

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance `[C]` to normalize `x` by."""
        if not self.training:
            return self.stored_mean, self.stored_var
        var, mean = torch.var_mean(widened(x), dim=(0, 2, 3), correction=0)
        count = x.numel() // x.shape[1]
        if self.sync and dist.is_initialized() and dist.get_world_size() > 1:
            count *= dist.get_world_size()
            means, variances = gathered(torch.stack([mean, var])).unbind(dim=1)           # [ranks, C]
            mean = means.mean(dim=0)
            var = (variances + (means - mean).square()).mean(dim=0)
        with torch.no_grad():
            self.stored_mean.lerp_(mean.to(self.stored_mean.dtype), self.momentum)
            self.stored_var.lerp_((var * count / (count - 1)).to(self.stored_var.dtype), self.momentum)
        return mean, var

    def normalized_relu(self, x: Tensor, gain: Tensor, bias: Tensor, up: int = 1) -> Tensor:
        """relu((x - mean) / sqrt(var + eps) * gain + bias), each pixel repeated `up` x `up`.

        Args:
            x: `[N, C, H, W]`.
            gain, bias: `[C]`, or `[N, C]`.
        """
        mean, var = self.statistics(x)
        scale = gain * (var + EPS).rsqrt()
        return scale_shift_act(x, scale, bias - mean * scale, act="relu", up=up)


class BatchNormReLU(BatchNorm):
    """Batch norm with a learnt gain and bias, then ReLU."""

    def __init__(self, channels: int, sync: bool):
        super().__init__(channels, sync)
        self.gain = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:                               # [N, C, H, W] -> [N, C, H, W]
        return self.normalized_relu(x, widened(self.gain), widened(self.bias))


class ConditionalBatchNormReLU(BatchNorm):
    """Batch norm whose gain and bias depend on the sample's condition, ReLU, and optionally nearest upsampling.

    Args:
        features: Of the condition.
        shared: The condition is an embedding that other layers share, and gain and bias are linear in it;
            otherwise it is the class itself, and they are embeddings of this layer's own.
        eps: Of spectral norm.

    Source: de Vries et al., "Modulating early visual processing by language", NeurIPS 2017.
    """

    def __init__(self, channels: int, features: int, shared: bool, eps: float, sync: bool):
        super().__init__(channels, sync)
        self.gain = Linear(features, channels, eps, bias=False) if shared else Embedding(features, channels)
        self.bias = Linear(features, channels, eps, bias=False) if shared else Embedding(features, channels)

    def forward(self, x: Tensor, y: Tensor, up: int = 1) -> Tensor:
        """`[N, C, H, W]`, `[N, features]` -> `[N, C, H * up, W * up]`."""
        return self.normalized_relu(x, 1 + self.gain(y), self.bias(y), up)


class SumOverRanks(Function):
    """The sum of a tensor over the ranks, on each of them; it is its own adjoint."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        return SumOverRanks.apply(dy)


def gathered(x: Tensor) -> Tensor:
    """`x` of every rank, `[ranks, ...]`. Its gradient reaches the rank that it came from, any number of times."""
    rows = [x if rank == dist.get_rank() else torch.zeros_like(x) for rank in range(dist.get_world_size())]
    return SumOverRanks.apply(torch.stack(rows))


def batch_norms(network: nn.Module) -> list[BatchNorm]:
    return [layer for layer in network.modules() if isinstance(layer, BatchNorm)]


def running_statistics(network: nn.Module) -> Iterator[Tensor]:
    """The stored means and variances of every batch norm, fp32, to average over ranks that do not share them."""
    for norm in batch_norms(network):
        yield from (norm.stored_mean, norm.stored_var)


@contextmanager
def untracked(network: nn.Module) -> Iterator[None]:
    """Batches leave the stored statistics of `network` where they are."""
    norms = batch_norms(network)
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm in norms:
            norm.momentum = MOMENTUM


@torch.no_grad()
def standing_statistics(G: nn.Module, draws: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Replace the stored statistics of G by the mean of those of some batches, for evaluation at the weights G has now.

    Batches are normalized by their own statistics, on this rank alone, while everything else is in evaluation mode:
    the same latents leave the same statistics, on every rank that is given them. G is left in the mode it was in.

    Args:
        G: A generator.
        draws: Batches of latents and classes `(z, c)`, each of which counts the same.

    Raises:
        ValueError: There are no draws.

    Source: Brock et al., "Large Scale GAN Training for High Fidelity Natural Image Synthesis", ICLR 2019, section 3.1.
    """
    draws = list(draws)
    if not draws:
        raise ValueError("standing statistics are a mean over draws, and there are none: expected at least one batch (z, c)")
    modes = [(module, module.training) for module in G.modules()]
    norms = batch_norms(G)
    synced = [norm.sync for norm in norms]
    try:
        G.eval()
        for norm in norms:
            norm.training, norm.sync = True, False
            norm.stored_mean.zero_()
            norm.stored_var.zero_()
        for seen, (z, c) in enumerate(draws):
            for norm in norms:
                norm.momentum = 1 / (seen + 1)
            G(z, c)
    finally:
        for module, training in modes:
            module.training = training
        for norm, sync in zip(norms, synced):
            norm.sync, norm.momentum = sync, MOMENTUM
