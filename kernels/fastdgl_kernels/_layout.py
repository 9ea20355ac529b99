"""The order of tensors in memory, as kernels need it. Nothing is copied that lies as it should."""

import torch
from torch import Tensor


def without_gaps(x: Tensor) -> Tensor:
    """`x` with its elements next to one another in memory, in the order they have."""
    step = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape) if size > 1):
        if stride != step:
            # empty_like keeps the order of the dimensions
            return torch.empty_like(x).copy_(x)
        step *= size
    return x


def in_order_of(x: Tensor, like: Tensor) -> Tensor:
    """`x` with its elements in memory in the order of those of `like`, which has the same shape and no gaps."""
    if all(a == b or size == 1 for a, b, size in zip(x.stride(), like.stride(), x.shape)):
        return x
    return torch.empty_like(like, dtype=x.dtype).copy_(x)
