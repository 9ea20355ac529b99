"""What the GPU can do at most, as PyTorch's copy and matrix product reach it."""

from functools import partial

import torch
from torch import Tensor

from .timing import cuda_stopwatch, times

COPIED = 2 * 2**30  # bytes read, and as many written
SIZE = 8192


def copy(device: torch.device) -> dict:
    """Of two large tensors in turn: `{"us", "bytes"}`."""
    pairs = [torch.empty(2, COPIED, dtype=torch.uint8, device=device) for _ in range(2)]
    return times({"copy": [partial(_copy, pair) for pair in pairs]}, cuda_stopwatch)["copy"] | {"bytes": 2 * COPIED}


def _copy(pair: Tensor) -> None:
    pair[1].copy_(pair[0])


def matmul(device: torch.device, name: str) -> dict:
    """Of two square matrices of float16, bfloat16, or float32 rounded to "tf32": `{"us", "flops"}`."""
    dtype = torch.float32 if name == "tf32" else getattr(torch, name)
    a, b = torch.randn(2, SIZE, SIZE, device=device, dtype=dtype)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        found = times({name: [partial(torch.matmul, a, b)]}, cuda_stopwatch)[name]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    return found | {"flops": 2 * SIZE**3}
