"""modulated_conv2d in plain PyTorch. Arguments are checked at the public door, not here."""

from math import sqrt

import torch
from torch import Tensor

from ..activation.reference import bias_act
from ..convolution.reference import conv2d_resample
from ..convolution.spec import Spec


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None,
    f: Tensor | None,
    spec: Spec,
    demodulate: bool,
) -> Tensor:
    """Scale the input by the styles, convolve with shared weights, scale the output to unit variance.

    This equals a convolution with weights of each sample's own, `[N, O, I, h, w]`, and never builds them.
    """
    d = None
    if demodulate:
        weight, styles, d = demodulated(weight, styles, x.dtype)
    x = x * styles.to(x.dtype)[:, :, None, None]
    y = conv2d_resample(x, weight.to(x.dtype), f, spec)
    if d is not None:
        y = y * d.to(y.dtype)[:, :, None, None]
    return y if noise is None else y + noise.to(y.dtype)


def modulated_conv2d_bias_act(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None,
    bias: Tensor | None,
    f: Tensor | None,
    spec: Spec,
    demodulate: bool,
    act: str,
    alpha: float,
    gain: float,
    clamp: float | None,
) -> Tensor:
    """One after the other."""
    y = modulated_conv2d(x, weight, styles, noise, f, spec, demodulate)
    return bias_act(y, None if bias is None else bias.to(y.dtype), 1, act, alpha, gain, clamp)


def demodulated(weight: Tensor, styles: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """weight and styles, both in at least fp32 and scaled to suit layers of `dtype`, and what to scale the output by.

        d[n, o] = 1 / sqrt(sum over i, h, w of (weight[o, i, h, w] * styles[n, i])^2)
    """
    wide = torch.promote_types(dtype, torch.float32)
    weight, styles = weight.to(wide), styles.to(wide)
    if dtype != wide:
        weight, styles = _normalized(weight), _normalized(styles)
    d = (styles.square() @ weight.square().sum([2, 3]).T + 1e-8).rsqrt()       # [N, O]
    return weight, styles, d


def _normalized(t: Tensor) -> Tensor:
    """The rows of `t`, scaled so that sums of products with them stay within 16 bits.

    The largest magnitude becomes 1, or 1 / sqrt(I h w) in a weight. Demodulation divides any such scale out
    again, to all orders of derivative, so none has to be taken of it.
    """
    rows = list(range(1, t.ndim))
    largest = t.detach().abs().amax(rows, keepdim=True)
    largest = largest.masked_fill(largest == 0, 1)
    return t / largest if t.ndim == 2 else t / (largest * sqrt(t[0].numel()))
