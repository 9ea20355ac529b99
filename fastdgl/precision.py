"""What a network does so that 16 bits serve it as well as 32."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def at_precision(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` in `dtype`; channels_last but for fp32 on a GPU, which is how the fast kernels, and a CPU, want it.

    The weights of fp32 layers are channels first, and a convolution of mixed layouts copies them in every direction.
    """
    memory_format = torch.contiguous_format if dtype == torch.float32 and x.is_cuda else torch.channels_last
    return x.to(dtype=dtype, memory_format=memory_format)


def widened(x: Tensor) -> Tensor:
    """`x` in fp32, or in fp64 where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Fp32Buffers(nn.Module):
    """A module whose own buffers stay fp32 where `bfloat16()` casts the network.

    They are running averages: one that moves by half a percent stands still in 16 bits.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Fp32Buffers":
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            applied = self._buffers[name]
            if applied is not None and applied.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(applied.device)
        return self
