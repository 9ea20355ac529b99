"""What the kernels of convolutions compute, by PyTorch's: for GPUs that reject one of them. Nothing here knows of autograd."""

from dataclasses import replace

import torch
from torch import Tensor

from ..resampling.formulas import ended
from ..resampling.tail import Tail
from . import bilinear
from .spec import Geometry


def convolve(x: Tensor, w: Tensor, geometry: Geometry, tail: Tail = Tail(), blocks=None, strip=None) -> Tensor:
    """clamp(gain * lrelu(d * conv(x, w) + noise + b)), or the transposed convolution; see the function of the kernel."""
    geometry = replace(geometry, own=False)
    if w.ndim == 5:
        y = torch.cat([bilinear.convolve(x[n : n + 1], w[n], geometry) for n in range(len(x))])
    else:
        y = bilinear.convolve(x, w, geometry)
    if tail != Tail():
        y = ended(y.float(), tail).to(x.dtype)
    return y.contiguous(memory_format=torch.channels_last)


def weight_gradient(x: Tensor, dy: Tensor, geometry: Geometry, blocks=None) -> Tensor:
    """The gradient of w, in fp32, channels last."""
    dw = bilinear.weight_gradient(x, dy, replace(geometry, own=False))
    return dw.float().contiguous(memory_format=torch.channels_last)
