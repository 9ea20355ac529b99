"""What the kernels of upfirdn2d compute, in plain PyTorch: for GPUs that reject one of them. Nothing here knows of autograd."""

import torch
from torch import Tensor

from .._layout import is_channels_last
from . import reference
from .geometry import Resample


def upfirdn2d(x: Tensor, f: Tensor | None, resample: Resample, tail=None) -> Tensor:
    """Insert zeros, pad or crop, filter, decimate, and finish by the tail, if there is one; rounded once."""
    y = reference.upfirdn2d(x.float(), f, resample)
    if tail is not None:
        y = ended(y, tail)
    memory_format = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return y.to(x.dtype).contiguous(memory_format=memory_format)


def ended(u: Tensor, tail) -> Tensor:
    """clamp(gain * lrelu(u * demod + noise + bias)), in the dtype of u; each pixel has one number of noise."""
    if tail.demod is not None:
        u = u * tail.demod.to(u.dtype)[:, :, None, None]
    if tail.noise is not None:
        u = u + tail.noise.to(u.dtype).reshape(len(tail.noise), 1, *u.shape[2:])
    if tail.bias is not None:
        u = u + tail.bias.to(u.dtype)[:, None, None]
    if tail.alpha != 1:
        u = torch.where(u > 0, u, u * tail.alpha)
    u = u * tail.gain
    return u if tail.clamp is None else u.clamp(-tail.clamp, tail.clamp)
