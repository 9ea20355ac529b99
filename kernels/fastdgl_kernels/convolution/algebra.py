"""Convolutions by PyTorch (cuDNN on a GPU, oneDNN on a CPU), as two Functions closed under differentiation; filters around them.

PyTorch differentiates its convolutions twice as well, but the second time by convolutions with kernels as large as the
image. Here every derivative of every order is one of three: a convolution, a transposed one, a weight gradient.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from ..resampling.geometry import Padding, Pair, Resample
from ..resampling.op import filter_size, upfirdn2d
from .layout import dense, dense_like


@dataclass(frozen=True)
class Geometry:
    """What a convolution is besides its numbers. Pairs are (y, x), as PyTorch's convolutions have them.

    Args:
        kernel: Height and width.
        stride: Of both axes.
        padding: Zeros on either side; of a transposed convolution, what is cropped.
        transposed: Whether this is the map from the output of the convolution to its input.
        output_padding: Of a transposed convolution: rows and columns at the end that no output has seen.
    """

    kernel: Pair
    stride: int = 1
    padding: Pair = (0, 0)
    transposed: bool = False
    output_padding: Pair = (0, 0)

    def output_size(self, size: Pair) -> Pair:
        """Height and width of what comes of an image of `size`."""
        return tuple(
            (n - 1) * self.stride - 2 * p + k + o if self.transposed else (n + 2 * p - k) // self.stride + 1
            for n, k, p, o in zip(size, self.kernel, self.padding, self.output_padding)
        )

    def adjoint(self, size: Pair) -> "Geometry":
        """The transposed map, of the same weight, which takes an output's gradient to its input's, of `size`."""
        if self.transposed:
            return Geometry(self.kernel, self.stride, self.padding)
        reached = Geometry(self.kernel, self.stride, self.padding, True).output_size(self.output_size(size))
        unseen = (size[0] - reached[0], size[1] - reached[1])
        return Geometry(self.kernel, self.stride, self.padding, True, unseen)


class Conv(Function):
    """y = w * x, or the transposed map; bilinear. The weight is `[O, I, h, w]`; transposed it takes O channels to I."""

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        return convolve(x, w, geometry)

    @staticmethod
    def backward(ctx, dy: Tensor):
        x, w = ctx.saved_tensors
        dx = Conv.apply(dy, w, ctx.geometry.adjoint(x.shape[2:])) if ctx.needs_input_grad[0] else None
        dw = WeightGrad.apply(x, dy, ctx.geometry) if ctx.needs_input_grad[1] else None
        return dx, dw, None


class WeightGrad(Function):
    """The gradient of w, from x and the gradient of y; bilinear too."""

    @staticmethod
    def forward(ctx, x: Tensor, dy: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, dy)
        ctx.geometry = geometry
        return weight_gradient(x, dy, geometry)

    @staticmethod
    def backward(ctx, ddw: Tensor):
        x, dy = ctx.saved_tensors
        dx = Conv.apply(dy, ddw, ctx.geometry.adjoint(x.shape[2:])) if ctx.needs_input_grad[0] else None
        ddy = Conv.apply(x, ddw, ctx.geometry) if ctx.needs_input_grad[1] else None
        return dx, ddy, None


def convolve(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    """The map itself."""
    x = dense(x)
    w = dense_like(w, x)
    # the dtype was chosen by the caller: autocast is not to choose again
    with torch.autocast(x.device.type, enabled=False):
        if geometry.transposed:
            return F.conv_transpose2d(x, w, None, geometry.stride, geometry.padding, geometry.output_padding)
        return F.conv2d(x, w, None, geometry.stride, geometry.padding)


def weight_gradient(x: Tensor, dy: Tensor, geometry: Geometry) -> Tensor:
    """`[O, I, h, w]`."""
    # seen from the weight, a transposed convolution is a convolution of dy whose output has the gradient x
    if geometry.transposed:
        x, dy = dy, x
    x = dense(x)
    dy = dense_like(dy, x)
    like = x.new_empty(1).expand(dy.shape[1], x.shape[1], *geometry.kernel)
    stride, padding = [geometry.stride] * 2, list(geometry.padding)
    with torch.autocast(x.device.type, enabled=False):
        return torch.ops.aten.convolution_backward(
            dy, x, like, None, stride, padding, [1, 1], False, [0, 0], 1, [False, True, False]
        )[1]


@dataclass(frozen=True)
class Plan:
    """A resampling convolution in the order that is least work: filters, the convolution at the smaller size, filters.

    A linear map of images, and of the weight. All its parts can be differentiated any number of times.
    """

    before: tuple[Resample, ...]
    conv: Geometry
    after: tuple[Resample, ...]

    def run(self, x: Tensor, w: Tensor, f: Tensor | None) -> Tensor:
        """The map."""
        return _filtered(Conv.apply(_filtered(x, f, self.before), w, self.conv), f, self.after)

    def gradients(
        self, dy: Tensor, x: Tensor, w: Tensor, f: Tensor | None, *, of_x: bool, of_w: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of `x` and `w`, those asked for."""
        size, taps = (x.shape[3], x.shape[2]), filter_size(f)
        wide, high = _filtered_size(size, taps, self.before)
        dy = _unfiltered(dy, f, self.after, self.conv.output_size((high, wide))[::-1])
        dx = dw = None
        if of_x:
            dx = _unfiltered(Conv.apply(dy, w, self.conv.adjoint((high, wide))), f, self.before, size)
        if of_w:
            dw = WeightGrad.apply(_filtered(x, f, self.before), dy, self.conv)
        return dx, dw


def plan(kernel: Pair, up: int, down: int, padding: Padding) -> Plan:
    """How to resample by `up` and `down` around a convolution.

    Args:
        kernel: Height and width. For `up` > 1 and a kernel of more than one tap, the convolution is a transposed one,
            and takes a weight that is flipped, `[I, O, h, w]`.
        padding: For the upsampled image, with what the filters need; alike on both sides for `up` = `down` = 1.
    """
    decimate = (Resample(down=(down, down)),) if down > 1 else ()
    x0, x1, y0, y1 = padding
    kh, kw = kernel
    if up > 1 and kernel == (1, 1):
        return Plan((), Geometry(kernel), (Resample((up, up), (1, 1), padding, gain=up**2), *decimate))
    if up > 1:
        # the transposed convolution has padded the upsampled image by k - 1 before, and by k - up after
        rest = (x0 - kw + 1, x1 - kw + up, y0 - kh + 1, y1 - kh + up)
        return Plan((), Geometry(kernel, up, transposed=True), (Resample(padding=rest, gain=up**2), *decimate))
    if down > 1 and kernel == (1, 1):
        return Plan((Resample((1, 1), (down, down), padding),), Geometry(kernel), ())
    if down > 1:
        return Plan((Resample(padding=padding),), Geometry(kernel, down), ())
    return Plan((), Geometry(kernel, 1, (y0, x0)), ())


def _filtered(x: Tensor, f: Tensor | None, filters: tuple[Resample, ...]) -> Tensor:
    for r in filters:
        x = upfirdn2d(x, f, r.up, r.down, r.padding, r.flip_filter, r.gain, impl="auto")
    return x


def _unfiltered(dy: Tensor, f: Tensor | None, filters: tuple[Resample, ...], size: Pair) -> Tensor:
    """The transposed map of `_filtered` for images of `size`, (x, y)."""
    taps, sizes = filter_size(f), [size]
    for r in filters[:-1]:
        sizes.append(r.output_size(sizes[-1], taps))
    return _filtered(dy, f, tuple(r.adjoint(size, taps) for r, size in zip(filters[::-1], sizes[::-1])))


def _filtered_size(size: Pair, taps: Pair, filters: tuple[Resample, ...]) -> Pair:
    for r in filters:
        size = r.output_size(size, taps)
    return size
