"""The order of tensors in memory, as kernels need it. Nothing is copied that lies as it should.

PyTorch may keep the sign of a view aside (`torch._neg_view`, the imaginary part of a conjugate): kernels read memory, so
each function here applies it. `resolve_neg` returns all other tensors as they are.
"""

from math import prod

import torch
from torch import Tensor

from ._tuning import kept


def without_gaps(x: Tensor) -> Tensor:
    """`x` with its elements next to one another in memory, in the order they have."""
    x = x.resolve_neg()
    if x.is_contiguous() or x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x
    step = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape) if size > 1):
        if stride != step:
            # empty_like keeps the order of the dimensions
            return torch.empty_like(x).copy_(x)
        step *= size
    return x


def in_order_of(x: Tensor, like: Tensor) -> Tensor:
    """`x` with its elements in memory in the order of those of `like`, which has the same shape and no gaps."""
    x = x.resolve_neg()
    if x.stride() == like.stride() or all(a == b or size == 1 for a, b, size in zip(x.stride(), like.stride(), x.shape)):
        return x
    return torch.empty_like(like, dtype=x.dtype).copy_(x)


def is_channels_last(x: Tensor) -> bool:
    """Whether neighbours in memory are channels; with one channel or one pixel it is both, and called first."""
    return x.stride(1) == 1 and not x.is_contiguous()


def memory_format(x: Tensor) -> torch.memory_format:
    """Of images without gaps; where both formats fit, PyTorch's own is meant."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


@kept
def format_of(shape: torch.Size, stride: tuple[int, ...]) -> torch.memory_format | None:
    """Return the memory format of images without gaps, as `memory_format` does; None where there are gaps."""
    if _follows(shape, stride, (3, 2, 1, 0)):
        return torch.contiguous_format
    return torch.channels_last if stride[1] == 1 and _follows(shape, stride, (1, 3, 2, 0)) else None


def _follows(shape: torch.Size, stride: tuple[int, ...], order: tuple[int, ...]) -> bool:
    """Return whether elements are next to one another, with the dimensions in this order from the innermost on."""
    step = 1
    for i in order:
        if shape[i] != 1 and stride[i] != step:
            return 0 in shape
        step *= shape[i]
    return True


def dense(x: Tensor) -> Tensor:
    """`x` without gaps: channels last in 16 bits, which is what tensor cores take, else in the layout it has.

    Autograd hands over gradients in any layout, expanded ones among them.
    """
    if x.is_neg():
        x = x.resolve_neg()
    return x.contiguous(memory_format=torch.channels_last if x.element_size() == 2 else memory_format(x))


def dense_like(x: Tensor, like: Tensor) -> Tensor:
    """`x` without gaps, in the layout of `like`, which has none."""
    if x.is_neg():
        x = x.resolve_neg()
    return x.contiguous(memory_format=memory_format(like))


def small(*tensors: Tensor | None) -> list[Tensor | None]:
    """Tensors of less than an image, contiguous: they may come expanded or as slices."""
    return [t if t is None or t.is_contiguous() and not t.is_neg() else t.resolve_neg().contiguous() for t in tensors]


def sample_stride(t: Tensor | None) -> int:
    """Of contiguous `[N, ...]`, from one sample to the next; 0 where all share one, or have none."""
    return 0 if t is None or t.shape[0] == 1 else prod(t.shape[1:])


def layout(x: Tensor) -> str:
    """Return the class of a layout, as verdicts know it: "NHWC" where neighbours in memory are channels, else "NCHW"."""
    return "NHWC" if x.ndim > 1 and is_channels_last(x) else "NCHW"


def layer(x: Tensor, O: int) -> str:
    """Return how verdicts and tables spell a layer: "512>256 @64 N=32 float16 NHWC".

    Powers of two stand for the longer side of x, and for its batch, up to the next power.

    Args:
        x: `[N, I, ...]`.
        O: Channels of the output.
    """
    N, I, *sides = (*x.shape, 1, 1)[: max(x.ndim, 3)]
    return f"{I}>{O} @{_power(*sides)} N={_power(N)} {str(x.dtype)[6:]} {layout(x)}"


def _power(*sizes: int | torch.SymInt) -> int | str:
    """The largest power of two that one of them reaches; none where who traces takes them for unknown."""
    return 1 << max(sizes).bit_length() >> 1 if all(isinstance(n, int) for n in sizes) else "any"
