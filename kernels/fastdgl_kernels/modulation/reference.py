"""modulated_conv2d in plain PyTorch. Arguments are checked at the public door, not here."""

from math import sqrt

import torch
from torch import Tensor

from ..convolution.reference import conv2d_resample
from ..resampling.geometry import Padding


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None,
    up: int,
    down: int,
    padding: Padding,
    resample_filter: Tensor | None,
    demodulate: bool,
    flip_weight: bool,
) -> Tensor:
    """Scale the input by the styles, convolve with shared weights, scale the output to unit variance.

    This equals a convolution with weights of each sample's own, `[N, O, I, h, w]`, and never builds them.
    """
    if demodulate:
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, styles = weight.to(wide), styles.to(wide)
        if x.dtype != wide:
            weight, styles = _small(weight), _small(styles)
        d = _demodulation(weight, styles).to(x.dtype)                           # [N, O]
    x = x * styles.to(x.dtype)[:, :, None, None]
    y = conv2d_resample(x, weight.to(x.dtype), resample_filter, up, down, padding, 1, flip_weight, False)
    if demodulate:
        y = y * d[:, :, None, None]
    return y if noise is None else y + noise.to(y.dtype)


def _demodulation(weight: Tensor, styles: Tensor) -> Tensor:
    """d[n, o] = 1 / sqrt(sum over i, h, w of (weight[o, i, h, w] * styles[n, i])^2)."""
    return (styles.square() @ weight.square().sum([2, 3]).T + 1e-8).rsqrt()


def _small(t: Tensor) -> Tensor:
    """The rows of `t`, scaled so that sums of products with them stay within 16 bits.

    The largest magnitude becomes 1, or 1 / sqrt(I h w) in a weight. Demodulation divides any such scale out
    again, to all orders of derivative, so none has to be taken of it.
    """
    rows = list(range(1, t.ndim))
    largest = t.detach().abs().amax(rows, keepdim=True)
    largest = largest.masked_fill(largest == 0, 1)
    return t / largest if t.ndim == 2 else t / (largest * sqrt(t[0].numel()))
