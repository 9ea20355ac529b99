"""upfirdn2d as it is defined, in plain PyTorch. Arguments are checked at the public door, not here.

The filter has no gradient. PyTorch's second derivative of a convolution computes one all the same, group by group: for
each channel a convolution with a kernel as large as the image. `_Filtered` leaves that out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from .._layout import memory_format
from .._operators import Function, without_autocast
from .geometry import Padding, Pair, Resample


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
        y = _filtered(y, scaled, Resample(resample.up, resample.down, resample.padding))
    else:
        (ux, uy), (dx, dy), (x0, x1, y0, y1) = resample.up, resample.down, resample.padding
        y = _filtered(y, scaled[None, :], Resample((ux, 1), (dx, 1), (x0, x1, 0, 0)))
        y = _filtered(y, f[:, None], Resample((1, uy), (1, dy), (0, 0, y0, y1)))
    return _like(y.to(x.dtype), x)


def _filtered(x: Tensor, k: Tensor, resample: Resample, backwards: bool = False) -> Tensor:
    """`_resample`, differentiable with respect to x any number of times."""
    # PyTorch's own graph serves forward mode, where a filter may have a tangent, and torch.jit.trace, which cannot save
    # a Function
    if not torch.is_grad_enabled() or forward_ad._current_level >= 0 or torch.jit.is_tracing():
        return _resample(x, k, resample, backwards)
    return _Filtered.apply(x, k, resample, backwards)


class _Filtered(Function):
    """`_resample`, a linear map of x. Its derivative is its adjoint, which is a resampling too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, k, resample, backwards):
        return _resample(x, k, resample, backwards)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, k, resample, ctx.backwards = inputs
        ctx.save_for_backward(k)
        ctx.adjoint = resample.adjoint((x.shape[3], x.shape[2]), (k.shape[1], k.shape[0]))

    @staticmethod
    def backward(ctx, dy):
        (k,) = ctx.saved_tensors
        # the adjoint correlates with the flipped filter
        return _filtered(dy, k.flip([0, 1]), ctx.adjoint, not ctx.backwards), None, None, None


def _resample(x: Tensor, k: Tensor, resample: Resample, backwards: bool) -> Tensor:
    """Insert zeros, pad, correlate with `k` `[h, w]`, decimate.

    Args:
        resample: Gives the sizes alone.
        backwards: Whether x is a gradient. A CPU then sums in the order in which PyTorch's own derivative does.
    """
    with without_autocast(x.device):
        up, down, padding = resample.up, resample.down, resample.padding
        if up == (1, 1) and not (backwards and down == (1, 1) and x.is_cpu):
            return _correlate(x, k, down, padding)
        y = _upsample(x, k, up, padding)
        return y if down == (1, 1) else y[:, :, :: down[1], :: down[0]]


def _correlate(x: Tensor, k: Tensor, down: Pair, padding: Padding) -> Tensor:
    C = x.shape[1]
    inside, rest = split_padding(padding)
    x = _padded(x, rest)
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
    return _padded(y, tuple(-n for n in rest))


def _padded(x: Tensor, padding: Padding) -> Tensor:
    """Pad with zeros, then crop: F.pad crops first, and fails where that leaves nothing to pad."""
    if min(padding) < 0 < max(padding):
        x = F.pad(x, [max(n, 0) for n in padding])
        padding = tuple(min(n, 0) for n in padding)
    return F.pad(x, padding) if any(padding) else x


def split_padding(padding: Padding) -> tuple[Pair, Padding]:
    """What a convolution can pad itself, alike on both sides and not negative, and the rest."""
    x0, x1, y0, y1 = padding
    x, y = max(min(x0, x1), 0), max(min(y0, y1), 0)
    return (x, y), (x0 - x, x1 - x, y0 - y, y1 - y)


def _like(y: Tensor, x: Tensor) -> Tensor:
    """`y` in the memory format of `x`."""
    return y.contiguous(memory_format=memory_format(x))
