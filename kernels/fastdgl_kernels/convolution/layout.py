"""Which memory layout images have, and which they are given."""

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether neighbours in memory are channels; with one channel or one pixel it is both, and called first."""
    return x.stride(1) == 1 and not x.is_contiguous()


def dense(x: Tensor) -> Tensor:
    """`x` without gaps: channels last in 16 bits, which is what tensor cores take, else in the layout it has.

    Autograd hands over gradients in any layout, expanded ones among them.
    """
    channels_last = x.element_size() == 2 or is_channels_last(x)
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def dense_like(x: Tensor, like: Tensor) -> Tensor:
    """`x` without gaps, in the layout of `like`, which has none."""
    memory_format = torch.channels_last if is_channels_last(like) else torch.contiguous_format
    return x.contiguous(memory_format=memory_format)
