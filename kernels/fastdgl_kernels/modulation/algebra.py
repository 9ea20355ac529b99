"""The modulated layer as Functions closed under differentiation: a convolution between two passes of our own.

    u = conv(x * s, w)          y = clamp(gain * lrelu(u * d + noise + b))

`Modulated` is the first, `Ended` the second. The first derivative runs fused. When the derivative is to be differentiated
again, backward computes the same from members of families that are closed: Conv and WeightGrad, Scale and Dot, Slope.
Which of the two, it reads off `torch.is_grad_enabled()`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .._dispatch import within
from .._layout import dense, dense_like
from .._operators import Function
from ..convolution.algebra import Plan, filtered
from ..resampling.kept import keep_filter
from ..resampling.op import filter_size, upfirdn2d

# the kernels are imported where they are launched, so that the package imports without Triton


class Tail(NamedTuple):
    """What follows the noise and the bias: v -> clamp(gain * v), after a slope of `alpha` for v < 0."""

    alpha: float = 1.0
    gain: float = 1.0
    clamp: float | None = None


def layer(
    x: Tensor, w: Tensor, s: Tensor, d: Tensor | None, noise: Tensor | None, bias: Tensor | None,
    f: Tensor | None, plan: Plan, tail: Tail,
) -> Tensor:  # fmt: skip
    """y from x `[N, I, H, W]`, dense, w, s `[N, I]`; and d `[N, O]`, noise `[N or 1, H' W']`, bias `[O]`, or None.

    w has the dtype of x.

    Of the images, only x and y are kept. What is to be differentiated again, PyTorch convolves in any case.
    """
    bare = d is None and noise is None and bias is None and tail == Tail()
    u = Modulated.apply(x, w, s, f, plan, bare)
    return u if bare else Ended.apply(u, d, noise, bias, x.detach(), w.detach(), s.detach(), f, plan, tail)


class Modulated(Function):
    """u = conv(x * s, w), or a tensor without numbers in its place, for `Ended`.

    `Ended` convolves itself, so that its tail may come in the pass of the convolution. All gradients of u meet here,
    also those that arrive by way of the gradient of d, and are convolved once.
    """

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor, s: Tensor, f: Tensor | None, plan: Plan, computed: bool) -> Tensor:
        from . import epilogue

        ctx.save_for_backward(x, w, s)
        ctx.filter, ctx.plan = keep_filter(f), plan
        if computed:
            return dense(plan.run(epilogue.scale(x, s), w, f))
        O = w.shape[1] if plan.conv.transposed else w.shape[0]
        return x.new_empty(1).expand(len(x), O, *plan.output_size(filter_size(f), x.shape[:1:-1]))

    @staticmethod
    def backward(ctx, du: Tensor):
        gradients = _composed_convolution if torch.is_grad_enabled() else _fused_convolution
        (x, w, s), f = ctx.saved_tensors, ctx.filter.get()
        dx, dw, ds = gradients(du, x, w, s, f, ctx.plan, ctx.needs_input_grad)
        return dx, *_like([dw, ds], [w, s]), None, None, None


class Ended(Function):
    """y = clamp(gain * lrelu(u * d + noise + bias)), of u as `Modulated` gives it, and x, w and s, without gradients."""

    @staticmethod
    def forward(
        ctx, u: Tensor, d: Tensor | None, noise: Tensor | None, bias: Tensor | None,
        x: Tensor, w: Tensor, s: Tensor, f: Tensor | None, plan: Plan, tail: Tail,
    ) -> Tensor:  # fmt: skip
        from . import epilogue

        y = _ended(epilogue.scale(x, s), w, d, noise, bias, f, plan, tail)
        ctx.save_for_backward(d, noise, bias, y)
        # it has no numbers, which hooks of saved tensors would make room for
        ctx.u, ctx.tail = u, tail
        return y

    @staticmethod
    def backward(ctx, dy: Tensor):
        gradients = _composed_tail if torch.is_grad_enabled() else _fused_tail
        d, noise, bias, y = ctx.saved_tensors
        du, dd, dnoise, dbias = gradients(dy, ctx.u, d, noise, bias, y, ctx.tail, ctx.needs_input_grad)
        return du, *_like([dd, _shared(dnoise, noise), dbias], [d, noise, bias]), *[None] * 6


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
        u = dense(plan.but_last.run(xs, w, f))
        try:
            return filters.upfirdn2d(u, f, last, filters.Tail(d, noise, bias, *tail))
        except NotImplementedError:
            impl = within(u, plan.asked)
            u = upfirdn2d(u, f, last.up, last.down, last.padding, last.flip_filter, last.gain, impl=impl)
    else:
        u = plan.run(xs, w, f)
    return epilogue.forward(dense(u), d, noise, bias, *tail)


def _fused_tail(dy, u, d, noise, bias, y, tail, wanted):
    from . import epilogue

    of_u, of_d, of_noise, of_bias = wanted[:4]
    asked = dict(of_u=of_u, of_d=of_d, of_noise=of_noise, of_bias=of_bias)
    return epilogue.backward(dense_like(dy, y), y, d, noise, bias, *tail, **asked)


def _composed_tail(dy, u, d, noise, bias, y, tail, wanted):
    of_u, of_d, of_noise, of_bias = wanted[:4]
    wide = torch.promote_types(y.dtype, torch.float32)
    # the slope is constant in y
    g = dy if tail == Tail() else Slope.apply(dy, y.detach(), tail)
    dbias = g.sum([0, 2, 3], dtype=wide) if of_bias else None
    dnoise = g.sum(1, dtype=wide).flatten(1) if of_noise else None
    dd = Dot.apply(g, Recovered.apply(u, y.detach(), d, noise, bias, tail)) if of_d else None
    du = (g if d is None else Scale.apply(g, d)) if of_u else None
    return du, dd, dnoise, dbias


def _fused_convolution(du, x, w, s, f, plan, wanted):
    from . import epilogue

    of_x, of_w, of_s = wanted[:3]
    dx = ds = dw = None
    du = plan.pulled(dense(du), f, x.shape[:1:-1])
    if of_x or of_s:
        t = plan.data_gradient(du, w, f, x.shape[:1:-1])
        dx, ds, xs = epilogue.scale_backward(dense_like(t, x), x, s, of_x=of_x, of_s=of_s, again=of_w)
    elif of_w:
        xs = epilogue.scale(x, s)
    if of_w:
        dw = plan.weight_gradient(du, xs, f)
    return dx, dw, ds


def _composed_convolution(du, x, w, s, f, plan, wanted):
    of_x, of_w, of_s = wanted[:3]
    plan = plan.again()
    dx = dw = ds = None
    du = plan.pulled(du, f, x.shape[:1:-1])
    if of_x or of_s:
        t = plan.data_gradient(du, w, f, x.shape[:1:-1])
        dx = Scale.apply(t, s) if of_x else None
        ds = Dot.apply(t, x) if of_s else None
    if of_w:
        dw = plan.weight_gradient(du, Scale.apply(x, s), f)
    return dx, dw, ds


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


class Recovered(Function):
    """The numbers of u, read off the output y: linear in u, whose gradient is passed on.

    They are right wherever the slope of the tail is not zero. Elsewhere they are multiplied by a gradient of zero.
    """

    @staticmethod
    def forward(
        ctx, u: Tensor, y: Tensor, d: Tensor, noise: Tensor | None, bias: Tensor | None, tail: Tail
    ) -> Tensor:  # fmt: skip
        wide = torch.promote_types(y.dtype, torch.float32)
        v = y.to(wide) / tail.gain
        if tail.alpha not in (0, 1):
            v = F.leaky_relu(v, 1 / tail.alpha)
        if noise is not None:
            v -= noise.reshape(-1, 1, *y.shape[2:])
        if bias is not None:
            v -= bias[:, None, None]
        v /= d[:, :, None, None]
        return v.to(y.dtype)

    @staticmethod
    def backward(ctx, du: Tensor):
        return du, None, None, None, None, None
