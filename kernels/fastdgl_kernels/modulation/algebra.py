"""The modulated layer as Functions closed under differentiation: a convolution between two passes of our own.

    u = conv(x * s, w)          y = clamp(gain * lrelu(u * d + noise + b))

The first derivative runs fused. When the derivative is to be differentiated again, backward computes the same from
members of families that are closed: Conv and WeightGrad, Scale and Dot, Slope. Which of the two, it reads off
`torch.is_grad_enabled()`.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from .._dispatch import within
from .._layout import dense, dense_like
from ..convolution.algebra import Plan, filtered
from ..resampling.kept import keep_filter
from ..resampling.op import upfirdn2d

# the kernels are imported where they are launched, so that the package imports without Triton


class Tail(NamedTuple):
    """What follows the noise and the bias: v -> clamp(gain * v), after a slope of `alpha` for v < 0."""

    alpha: float = 1.0
    gain: float = 1.0
    clamp: float | None = None


class Layer(Function):
    """y from x `[N, I, H, W]`, dense, w, s `[N, I]`; and d `[N, O]`, noise `[N or 1, H' W']`, bias `[O]`, or None.

    w has the dtype of x.

    Of the images, only x and y are kept. What is to be differentiated again, PyTorch convolves in any case.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, w: Tensor, s: Tensor, d: Tensor | None, noise: Tensor | None, bias: Tensor | None,
        f: Tensor | None, plan: Plan, tail: Tail,
    ) -> Tensor:  # fmt: skip
        from . import epilogue

        ctx.bare = d is None and noise is None and bias is None and tail == Tail()
        xs = epilogue.scale(x, s)
        y = dense(plan.run(xs, w, f)) if ctx.bare else _ended(xs, w, d, noise, bias, f, plan, tail)
        ctx.save_for_backward(x, w, s, d, noise, bias, None if ctx.bare else y)
        ctx.filter, ctx.plan, ctx.tail = keep_filter(f), plan, tail
        return y

    @staticmethod
    def backward(ctx, dy: Tensor):
        gradients = _composed if torch.is_grad_enabled() else _fused
        return *gradients(ctx, dy, *ctx.saved_tensors, ctx.filter.get()), None, None, None


def _ended(xs, w, d, noise, bias, f, plan: Plan, tail: Tail) -> Tensor:
    """Convolution, filters and tail; the tail in the pass of whatever comes last, where that has a kernel with one."""
    from ..resampling import kernel as filters
    from . import epilogue

    if plan.conv.own and not plan.after:
        from ..convolution import kernel as convolution

        return convolution.convolve(
            dense(filtered(xs, f, plan.before, plan.asked)), dense(w), plan.conv, filters.Tail(d, noise, bias, *tail)
        )
    if plan.after and xs.dtype != torch.float64:
        *_, last = plan.after
        u = dense(replace(plan, after=plan.after[:-1]).run(xs, w, f))
        try:
            return filters.upfirdn2d(u, f, last, filters.Tail(d, noise, bias, *tail))
        except NotImplementedError:
            impl = within(u, plan.asked)
            u = upfirdn2d(u, f, last.up, last.down, last.padding, last.flip_filter, last.gain, impl=impl)
    else:
        u = plan.run(xs, w, f)
    return epilogue.forward(dense(u), d, noise, bias, *tail)


def _fused(ctx, dy, x, w, s, d, noise, bias, y, f):
    from . import epilogue

    of_x, of_w, of_s, of_d, of_noise, of_bias = ctx.needs_input_grad[:6]
    du, dd, dnoise, dbias = dense(dy), None, None, None
    if not ctx.bare:
        du, dd, dnoise, dbias = epilogue.backward(
            dense_like(dy, y), y, d, noise, bias, *ctx.tail,
            of_u=of_x or of_w or of_s, of_d=of_d, of_noise=of_noise, of_bias=of_bias,
        )  # fmt: skip
    dx = ds = dw = None
    if of_x or of_w or of_s:
        du = ctx.plan.pulled(du, f, x.shape[:1:-1])
    if of_x or of_s:
        t = ctx.plan.data_gradient(du, w, f, x.shape[:1:-1])
        dx, ds, xs = epilogue.scale_backward(dense_like(t, x), x, s, of_x=of_x, of_s=of_s, again=of_w)
    elif of_w:
        xs = epilogue.scale(x, s)
    if of_w:
        dw = ctx.plan.weight_gradient(du, xs, f)
    return dx, *_like([dw, ds, dd, _shared(dnoise, noise), dbias], [w, s, d, noise, bias])


def _composed(ctx, dy, x, w, s, d, noise, bias, y, f):
    of_x, of_w, of_s, of_d, of_noise, of_bias = ctx.needs_input_grad[:6]
    plan = ctx.plan.again()
    wide = torch.promote_types(x.dtype, torch.float32)
    # the slope is constant in y
    g = dy if ctx.tail == Tail() else Slope.apply(dy, y.detach(), ctx.tail)
    dbias = g.sum([0, 2, 3], dtype=wide) if of_bias else None
    dnoise = g.sum(1, dtype=wide).flatten(1) if of_noise else None
    xs = Scale.apply(x, s) if of_w or of_d else x
    # u was not kept
    dd = Dot.apply(g, plan.run(xs, w, f)) if of_d else None
    du = g if d is None else Scale.apply(g, d)
    dx = dw = ds = None
    if of_x or of_w or of_s:
        du = plan.pulled(du, f, x.shape[:1:-1])
    if of_x or of_s:
        t = plan.data_gradient(du, w, f, x.shape[:1:-1])
        dx = Scale.apply(t, s) if of_x else None
        ds = Dot.apply(t, x) if of_s else None
    if of_w:
        dw = plan.weight_gradient(du, xs, f)
    return dx, *_like([dw, ds, dd, _shared(dnoise, noise), dbias], [w, s, d, noise, bias])


def _like(gradients: list[Tensor | None], tensors: list[Tensor | None]) -> list[Tensor | None]:
    return [None if g is None else g.to(t.dtype) for g, t in zip(gradients, tensors)]


def _shared(dnoise: Tensor | None, noise: Tensor | None) -> Tensor | None:
    """The gradient of noise that all samples share is the sum of theirs."""
    return dnoise if dnoise is None or len(noise) == len(dnoise) else dnoise.sum(0, keepdim=True)


class Scale(Function):
    """x * s, for x `[N, C, H, W]` and s `[N, C]`."""

    @staticmethod
    def forward(ctx, x: Tensor, s: Tensor) -> Tensor:
        from . import epilogue

        ctx.save_for_backward(x, s)
        return epilogue.scale(dense(x), s)

    @staticmethod
    def backward(ctx, dy: Tensor):
        x, s = ctx.saved_tensors
        dx = Scale.apply(dy, s) if ctx.needs_input_grad[0] else None
        ds = Dot.apply(dy, x).to(s.dtype) if ctx.needs_input_grad[1] else None
        return dx, ds


class Dot(Function):
    """sum over the pixels of a * b, `[N, C]`, in fp32."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> Tensor:
        from . import epilogue

        # what is saved is what was given: the second derivative does not pass through a copy
        ctx.save_for_backward(a, b)
        b = dense(b)
        return epilogue.dot(dense_like(a, b), b)

    @staticmethod
    def backward(ctx, g: Tensor):
        a, b = ctx.saved_tensors
        da = Scale.apply(b, g) if ctx.needs_input_grad[0] else None
        db = Scale.apply(a, g) if ctx.needs_input_grad[1] else None
        return da, db


class Slope(Function):
    """dy times the slope of the tail, read off its output y: linear in dy and self-adjoint."""

    @staticmethod
    def forward(ctx, dy: Tensor, y: Tensor, tail: Tail) -> Tensor:
        from . import epilogue

        ctx.save_for_backward(y)
        ctx.tail = tail
        ask = dict(of_u=True, of_d=False, of_noise=False, of_bias=False)
        return epilogue.backward(dense_like(dy, y), y, None, None, None, *tail, **ask)[0]

    @staticmethod
    def backward(ctx, ddx: Tensor):
        (y,) = ctx.saved_tensors
        return Slope.apply(ddx, y, ctx.tail), None, None
