"""conv2d_resample in plain PyTorch. Arguments are checked at the public door, not here.

Its convolution is a Function: PyTorch's second derivative of one convolves by kernels as large as the image (`bilinear`).
"""

import torch.nn.functional as F
from torch import Tensor

from ..resampling.geometry import Padding, Resample
from ..resampling.reference import split_padding, upfirdn2d
from .bilinear import conv, transposable
from .spec import Geometry, Spec, rest_of_padding


def conv2d_resample(x: Tensor, w: Tensor, f: Tensor | None, spec: Spec) -> Tensor:
    """Zero insertion, padding, filter, convolution, decimation; in the order that is least work.

    Filter and convolution are both linear and shift-invariant, so their order is free: the image is padded once,
    the convolution runs at the smaller size.
    """
    up, down, padding, groups, flip_weight, flip_filter = spec
    if up > 1:
        x = _conv_then_up(x, w, f, spec)
        return upfirdn2d(x, f, Resample(down=(down, down), flip_filter=flip_filter)) if down > 1 else x
    if down > 1 and w.shape[2:] == (1, 1):
        x = upfirdn2d(x, f, Resample((1, 1), (down, down), padding, flip_filter))
        return _conv(x, w, groups, flip_weight)
    if down > 1:
        x = upfirdn2d(x, f, Resample(padding=padding, flip_filter=flip_filter))
        return _conv(x, w, groups, flip_weight, stride=down)
    return _conv(x, w, groups, flip_weight, padding=padding)


def _conv_then_up(x: Tensor, w: Tensor, f: Tensor | None, spec: Spec) -> Tensor:
    up, _, padding, groups, flip_weight, flip_filter = spec
    if w.shape[2:] == (1, 1):
        x = _conv(x, w, groups, flip_weight)
        return upfirdn2d(x, f, Resample((up, up), (1, 1), padding, flip_filter, up**2))
    x = _transposed_conv(x, w, up, groups, flip_weight)
    rest = rest_of_padding(padding, w.shape[2:], up)
    return upfirdn2d(x, f, Resample(padding=rest, flip_filter=flip_filter, gain=up**2))


def _conv(
    x: Tensor, w: Tensor, groups: int, flip_weight: bool, stride: int = 1, padding: Padding = (0, 0, 0, 0)
) -> Tensor:
    if not flip_weight:
        w = w.flip([2, 3])
    inside, rest = split_padding(padding)
    x = F.pad(x, rest) if any(rest) else x
    return conv(x, w, Geometry(tuple(w.shape[2:]), stride, inside[::-1], groups=groups, dense=False))


def _transposed_conv(x: Tensor, w: Tensor, up: int, groups: int, flip_weight: bool) -> Tensor:
    """Zero insertion and convolution in one, uncropped."""
    if flip_weight:
        w = w.flip([2, 3])
    return conv(x, transposable(w, groups), Geometry(tuple(w.shape[2:]), up, transposed=True, groups=groups, dense=False))
