"""modulated_conv2d in plain PyTorch. Arguments are checked at the public door, not here."""

from math import inf, sqrt

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

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
    return weight, styles, demodulation(weight, styles)


def demodulation(weight: Tensor, styles: Tensor) -> Tensor:
    """Return d `[N, O]` of weight `[O, I, h, w]` and styles `[N, I]`, see `demodulated`."""
    squares = weight.square().sum([2, 3])
    # PyTorch's own graph serves forward mode and torch.jit.trace, neither of which knows a Function
    if not torch.is_grad_enabled() or forward_ad._current_level >= 0 or torch.jit.is_tracing():
        return Demodulation.forward(weight, styles, squares)
    return Demodulation.apply(weight, styles, squares)


class Demodulation(Function):
    """d = rsqrt(s^2 Q^T + 1e-8), Q the sums of w^2 over the taps; its gradient takes half the launches of PyTorch's own.

        g = dd d^3,   ds = -s (g Q),   dw = -w (g^T s^2)

    The factors of 2 and 1/2 cancel, so the numbers are those of PyTorch's derivative, bit for bit. Q comes along to be
    used again; the gradient that reaches w is the whole one, and none passes through Q.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, styles: Tensor, squares: Tensor) -> Tensor:
        return (styles.square() @ squares.T + 1e-8).rsqrt()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx, dd: Tensor):
        weight, styles, squares, d = ctx.saved_tensors
        g, dw, ds = dd * d.pow(3), None, None
        if torch.is_grad_enabled():
            # to be differentiated again: PyTorch records this, and knows what Q was made of
            g = -g
            if ctx.needs_input_grad[0]:
                dw = weight * (g.T @ styles.square())[:, :, None, None]
            if ctx.needs_input_grad[1]:
                ds = styles * (g @ squares)
            return dw, ds, None
        if ctx.needs_input_grad[0]:
            dw = weight * torch.addmm(squares, g.T, styles.square(), beta=0, alpha=-1)[:, :, None, None]
        if ctx.needs_input_grad[1]:
            ds = styles * torch.addmm(styles, g, squares, beta=0, alpha=-1)
        return dw, ds, None


def _normalized(t: Tensor) -> Tensor:
    """The rows of `t`, scaled so that sums of products with them stay within 16 bits.

    The largest magnitude becomes 1, or 1 / sqrt(I h w) in a weight. Demodulation divides any such scale out
    again, to all orders of derivative, so none has to be taken of it.
    """
    rows = list(range(1, t.ndim))
    largest = torch.linalg.vector_norm(t.detach(), inf, rows, keepdim=True)
    # rows of zeros stay zeros, and their gradient finite
    largest = largest.masked_fill(largest == 0, 1)
    return t / largest if t.ndim == 2 else t / (largest * sqrt(t[0].numel()))
