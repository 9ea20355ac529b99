"""conv2d_resample in plain PyTorch. Arguments are checked at the public door, not here."""

import torch.nn.functional as F
from torch import Tensor

from ..resampling.geometry import Padding, Resample
from ..resampling.reference import split_padding, upfirdn2d


def conv2d_resample(
    x: Tensor,
    w: Tensor,
    f: Tensor | None,
    up: int,
    down: int,
    padding: Padding,
    groups: int,
    flip_weight: bool,
    flip_filter: bool,
) -> Tensor:
    """Zero insertion, padding, filter, convolution, decimation; in the order that is least work.

    Filter and convolution are both linear and shift-invariant, so their order is free: the image is padded once,
    the convolution runs at the smaller size.
    """
    if up > 1:
        x = _conv_then_up(x, w, f, up, padding, groups, flip_weight, flip_filter)
        return upfirdn2d(x, f, Resample(down=(down, down), flip_filter=flip_filter)) if down > 1 else x
    if down > 1 and w.shape[2:] == (1, 1):
        x = upfirdn2d(x, f, Resample((1, 1), (down, down), padding, flip_filter))
        return _conv(x, w, groups, flip_weight)
    if down > 1:
        x = upfirdn2d(x, f, Resample(padding=padding, flip_filter=flip_filter))
        return _conv(x, w, groups, flip_weight, stride=down)
    return _conv(x, w, groups, flip_weight, padding=padding)


def _conv_then_up(
    x: Tensor,
    w: Tensor,
    f: Tensor | None,
    up: int,
    padding: Padding,
    groups: int,
    flip_weight: bool,
    flip_filter: bool,
) -> Tensor:
    if w.shape[2:] == (1, 1):
        x = _conv(x, w, groups, flip_weight)
        return upfirdn2d(x, f, Resample((up, up), (1, 1), padding, flip_filter, up**2))
    x = _transposed_conv(x, w, up, groups, flip_weight)
    kh, kw = w.shape[2:]
    x0, x1, y0, y1 = padding
    # the transposed convolution has padded the upsampled image by k - 1 before, and by k - up after
    rest = (x0 - kw + 1, x1 - kw + up, y0 - kh + 1, y1 - kh + up)
    return upfirdn2d(x, f, Resample(padding=rest, flip_filter=flip_filter, gain=up**2))


def _conv(
    x: Tensor, w: Tensor, groups: int, flip_weight: bool, stride: int = 1, padding: Padding = (0, 0, 0, 0)
) -> Tensor:
    if not flip_weight:
        w = w.flip([2, 3])
    inside, rest = split_padding(padding)
    x = F.pad(x, rest) if any(rest) else x
    return F.conv2d(x, w, stride=stride, padding=inside[::-1], groups=groups)


def _transposed_conv(x: Tensor, w: Tensor, up: int, groups: int, flip_weight: bool) -> Tensor:
    """Zero insertion and convolution in one, uncropped."""
    if flip_weight:
        w = w.flip([2, 3])
    O, I, kh, kw = w.shape
    # from [O, I, h, w] to the layout of transposed convolutions, group by group
    w = w.reshape(groups, O // groups, I, kh, kw).transpose(1, 2).reshape(groups * I, O // groups, kh, kw)
    return F.conv_transpose2d(x, w, stride=up, groups=groups)
