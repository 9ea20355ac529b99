"""Convolutions by PyTorch (cuDNN on a GPU, oneDNN on a CPU) or by kernels of our own, as two Functions closed under
differentiation.

PyTorch differentiates its convolutions twice as well, but the second time by convolutions with kernels as large as the
image. Here every derivative of every order is one of three: a convolution, a transposed one, a weight gradient.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from .._layout import dense, dense_like
from .._operators import Function, without_autocast
from .spec import Geometry


def conv(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    """Return the map of x and w, differentiable any number of times, in every mode of PyTorch."""
    # PyTorch's own graph serves forward mode, which a Function has not, and torch.jit.trace, which cannot save a Function
    if not torch.is_grad_enabled() or forward_ad._current_level >= 0 or torch.jit.is_tracing():
        return convolve(x, w, geometry)
    return Conv.apply(x, w, geometry)


class Conv(Function):
    """y = w * x, or the transposed map, from O channels to I; bilinear. The weight is `[O, I / groups, h, w]`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        return convolve(x, w, geometry)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, w, ctx.geometry = inputs
        ctx.save_for_backward(x, w)

    @staticmethod
    def backward(ctx, dy: Tensor):
        (x, w), geometry = ctx.saved_tensors, ctx.geometry.again()
        of_x, of_w, _ = ctx.needs_input_grad
        again = torch.is_grad_enabled()
        if not (again or geometry.own) and (of_x and of_w or not geometry.dense):
            # nobody differentiates these again: PyTorch computes both at once
            if geometry.dense:
                x = dense(x)
                w, dy = dense_like(w, x), dense_like(dy, x)
            return *gradients(x, w, dy, geometry, (of_x, of_w)), None
        if again:
            dx = Conv.apply(dy, w, geometry.adjoint(x.shape[2:])) if of_x else None
            dw = WeightGrad.apply(x, dy, geometry) if of_w else None
        else:
            dx = convolve(dy, w, geometry.adjoint(x.shape[2:])) if of_x else None
            dw = weight_gradient(x, dy, geometry) if of_w else None
        return dx, dw, None


class WeightGrad(Function):
    """The gradient of w, from x and the gradient of y; bilinear too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, dy: Tensor, geometry: Geometry) -> Tensor:
        return weight_gradient(x, dy, geometry)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, dy, ctx.geometry = inputs
        ctx.save_for_backward(x, dy)

    @staticmethod
    def backward(ctx, ddw: Tensor):
        (x, dy), geometry = ctx.saved_tensors, ctx.geometry.again()
        dx = Conv.apply(dy, ddw, geometry.adjoint(x.shape[2:])) if ctx.needs_input_grad[0] else None
        ddy = Conv.apply(x, ddw, geometry) if ctx.needs_input_grad[1] else None
        return dx, ddy, None


def convolve(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    """The map itself."""
    if geometry.dense:
        x = dense(x)
        w = dense_like(w, x)
    if geometry.own:
        from . import kernel

        return kernel.convolve(x, w, geometry)
    with without_autocast(x.device):
        if geometry.transposed:
            return F.conv_transpose2d(
                x, w, None, geometry.stride, geometry.padding, geometry.output_padding, geometry.groups
            )
        return F.conv2d(x, w, None, geometry.stride, geometry.padding, groups=geometry.groups)


def weight_gradient(x: Tensor, dy: Tensor, geometry: Geometry) -> Tensor:
    """`[O, I / groups, h, w]`."""
    # seen from the weight, a transposed convolution is a convolution of dy whose output has the gradient x
    if geometry.transposed:
        x, dy = dy, x
    if geometry.dense:
        x = dense(x)
        dy = dense_like(dy, x)
    if geometry.own:
        from . import kernel

        return kernel.weight_gradient(x, dy, geometry).to(x.dtype)
    like = x.new_empty(1).expand(dy.shape[1], x.shape[1] // geometry.groups, *geometry.kernel)
    return gradients(x, like, dy, geometry.of_weight, (False, True))[1]


def gradients(x: Tensor, w: Tensor, dy: Tensor, geometry: Geometry, wanted: Sequence[bool]) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of x and w, by PyTorch; None for one that is not wanted."""
    g = geometry
    with without_autocast(x.device):
        dx, dw, _ = torch.ops.aten.convolution_backward(
            dy, x, w, None, [g.stride] * 2, g.padding, [1, 1], g.transposed, g.output_padding, g.groups, [*wanted, False]
        )
    return dx, dw


def transposable(w: Tensor, groups: int) -> Tensor:
    """`[O, I / groups, h, w]` as PyTorch's transposed convolutions take it, `[I, O / groups, h, w]`."""
    # whoever traces may take the sizes of images for unknown, not these
    O, I, kh, kw = map(int, w.shape)
    return w.reshape(groups, O // groups, I, kh, kw).transpose(1, 2).reshape(groups * I, O // groups, kh, kw)
