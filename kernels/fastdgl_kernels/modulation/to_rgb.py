"""ToRGB as Functions closed under differentiation: every derivative of every order is one of three kernels.

    y = clamp(gain * lrelu(u + b))          u[n, o] = sum over i of w[n, o, i] x[n, i]
"""

import torch
from torch import Tensor

from .._layout import dense_like, is_channels_last
from .._operators import Function
from .algebra import Slope, Tail

# the kernels are imported where they are launched, so that the package imports without Triton

# output channels that a program can keep the sums of
MOST = 4


class ToRGB(Function):
    """y `[N, O, H, W]`, channels first, from x `[N, I, H, W]`, w `[N, O, I]`, fp32, and bias `[O]` or None."""

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor, bias: Tensor | None, tail: Tail) -> Tensor:
        from . import to_rgb_kernel

        y = to_rgb_kernel.forward(dense_like(x, x), w, bias, *tail)
        ctx.save_for_backward(x, w, bias, None if tail == Tail() else y)
        ctx.tail = tail
        return y

    @staticmethod
    def backward(ctx, dy: Tensor):
        x, w, bias, y = ctx.saved_tensors
        of_x, of_w, of_bias, _ = ctx.needs_input_grad
        # the slope is constant in y
        g = dy if y is None else Slope.apply(dy, y.detach(), ctx.tail)
        dx = Spread.apply(g, w, is_channels_last(x)) if of_x else None
        dw = Correlate.apply(g, x) if of_w else None
        dbias = g.sum([0, 2, 3], dtype=torch.float32).to(bias.dtype) if of_bias else None
        return dx, dw, dbias, None


class Spread(Function):
    """dx[n, i] = sum over o of w[n, o, i] dy[n, o]; bilinear."""

    @staticmethod
    def forward(ctx, dy: Tensor, w: Tensor, channels_last: bool) -> Tensor:
        from . import to_rgb_kernel

        ctx.save_for_backward(dy, w)
        return to_rgb_kernel.data_gradient(dy, w, channels_last)

    @staticmethod
    def backward(ctx, ddx: Tensor):
        dy, w = ctx.saved_tensors
        ddy = ToRGB.apply(ddx, w, None, Tail()) if ctx.needs_input_grad[0] else None
        dw = Correlate.apply(dy, ddx) if ctx.needs_input_grad[1] else None
        return ddy, dw, None


class Correlate(Function):
    """dw[n, o, i] = sum over the pixels of dy[n, o] x[n, i], in fp32; bilinear."""

    @staticmethod
    def forward(ctx, dy: Tensor, x: Tensor) -> Tensor:
        from . import to_rgb_kernel

        ctx.save_for_backward(dy, x)
        return to_rgb_kernel.weight_gradient(dy, dense_like(x, x))

    @staticmethod
    def backward(ctx, ddw: Tensor):
        dy, x = ctx.saved_tensors
        ddy = ToRGB.apply(x, ddw, None, Tail()) if ctx.needs_input_grad[0] else None
        dx = Spread.apply(dy, ddw, is_channels_last(x)) if ctx.needs_input_grad[1] else None
        return ddy, dx
