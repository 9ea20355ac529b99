"""upfirdn2d as it is defined, in plain PyTorch. Arguments are checked at the public door, not here."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import Pair, Padding, Resample


def upfirdn2d(x: Tensor, f: Tensor | None, resample: Resample) -> Tensor:
    """Insert zeros, pad or crop, filter, decimate; as convolutions of each channel for itself."""
    # 16-bit images are filtered in fp32 and rounded once
    wide = torch.promote_types(x.dtype, torch.float32)
    f = x.new_ones([1, 1], dtype=wide) if f is None else f.to(torch.promote_types(f.dtype, torch.float32))
    if not resample.flip_filter:
        f = f.flip(list(range(f.ndim)))
    # the gain in the precision of the filter, as the field has it: results then agree in fp64 as well
    f, scaled = f.to(wide), (f * resample.gain).to(wide)
    y = x.to(wide)
    if f.ndim == 2:
        y = _resample(y, scaled, resample.up, resample.down, resample.padding)
    else:
        (ux, uy), (dx, dy), (x0, x1, y0, y1) = resample.up, resample.down, resample.padding
        y = _resample(y, scaled[None, :], (ux, 1), (dx, 1), (x0, x1, 0, 0))
        y = _resample(y, f[:, None], (1, uy), (1, dy), (0, 0, y0, y1))
    return _like(y.to(x.dtype), x)


def _resample(x: Tensor, k: Tensor, up: Pair, down: Pair, padding: Padding) -> Tensor:
    """Insert zeros, pad, correlate with `k` `[h, w]`, decimate."""
    if up == (1, 1):
        return _correlate(x, k, down, padding)
    y = _upsample(x, k, up, padding)
    return y if down == (1, 1) else y[:, :, :: down[1], :: down[0]]


def _correlate(x: Tensor, k: Tensor, down: Pair, padding: Padding) -> Tensor:
    C = x.shape[1]
    inside, rest = split_padding(padding)
    x = F.pad(x, rest) if any(rest) else x
    # one convolution of C groups: on CPU 20 to 100 times faster than N * C images of one channel
    return F.conv2d(x, k.expand(C, 1, *k.shape), stride=down[::-1], padding=inside[::-1], groups=C)


def _upsample(x: Tensor, k: Tensor, up: Pair, padding: Padding) -> Tensor:
    """A transposed convolution, which never touches the inserted zeros."""
    C = x.shape[1]
    h, w = k.shape
    x0, x1, y0, y1 = padding
    # uncropped, it has padded the upsampled image by w - 1 before, and by w - up after
    crop = (w - 1 - x0, w - up[0] - x1, h - 1 - y0, h - up[1] - y1)
    inside, rest = split_padding(crop)
    y = F.conv_transpose2d(
        x, k.flip([0, 1]).expand(C, 1, h, w), stride=up[::-1], padding=inside[::-1], groups=C
    )
    return F.pad(y, [-n for n in rest]) if any(rest) else y


def split_padding(padding: Padding) -> tuple[Pair, Padding]:
    """What a convolution can pad itself, alike on both sides and not negative, and the rest."""
    x0, x1, y0, y1 = padding
    x, y = max(min(x0, x1), 0), max(min(y0, y1), 0)
    return (x, y), (x0 - x, x1 - x, y0 - y, y1 - y)


def _like(y: Tensor, x: Tensor) -> Tensor:
    """`y` in the memory format of `x`."""
    channels_last = x.stride(1) == 1 and not x.is_contiguous()
    return y.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
