"""Convolutions by PyTorch (cuDNN on a GPU, oneDNN on a CPU), as two Functions closed under differentiation; filters around them.

PyTorch differentiates its convolutions twice as well, but the second time by convolutions with kernels as large as the
image. Here every derivative of every order is one of three: a convolution, a transposed one, a weight gradient.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .._dispatch import within
from ..resampling.geometry import Padding, Pair, Resample
from ..resampling.op import filter_size, upfirdn2d
from ..resampling.reference import split_padding
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
        groups: Of channels.
    """

    kernel: Pair
    stride: int = 1
    padding: Pair = (0, 0)
    transposed: bool = False
    output_padding: Pair = (0, 0)
    groups: int = 1

    def output_size(self, size: Pair) -> Pair:
        """Height and width of what comes of an image of `size`."""
        return tuple(
            (n - 1) * self.stride - 2 * p + k + o if self.transposed else (n + 2 * p - k) // self.stride + 1
            for n, k, p, o in zip(size, self.kernel, self.padding, self.output_padding)
        )

    def adjoint(self, size: Pair) -> "Geometry":
        """The transposed map, of the same weight, which takes an output's gradient to its input's, of `size`."""
        if self.transposed:
            return replace(self, transposed=False, output_padding=(0, 0))
        backwards = replace(self, transposed=True)
        reached = backwards.output_size(self.output_size(size))
        return replace(backwards, output_padding=(size[0] - reached[0], size[1] - reached[1]))


class Conv(Function):
    """y = w * x, or the transposed map; bilinear. The weight is `[O, I / groups, h, w]`; transposed it takes O channels to I."""

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
            return F.conv_transpose2d(
                x, w, None, geometry.stride, geometry.padding, geometry.output_padding, geometry.groups
            )
        return F.conv2d(x, w, None, geometry.stride, geometry.padding, groups=geometry.groups)


def weight_gradient(x: Tensor, dy: Tensor, geometry: Geometry) -> Tensor:
    """`[O, I / groups, h, w]`."""
    # seen from the weight, a transposed convolution is a convolution of dy whose output has the gradient x
    if geometry.transposed:
        x, dy = dy, x
    x = dense(x)
    dy = dense_like(dy, x)
    like = x.new_empty(1).expand(dy.shape[1], x.shape[1] // geometry.groups, *geometry.kernel)
    stride, padding = [geometry.stride] * 2, list(geometry.padding)
    with torch.autocast(x.device.type, enabled=False):
        return torch.ops.aten.convolution_backward(
            dy, x, like, None, stride, padding, [1, 1], False, [0, 0], geometry.groups, [False, True, False]
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

    def pulled(self, dy: Tensor, f: Tensor | None, size: Pair) -> Tensor:
        """The gradient of what the convolution made, for images of `size`, (x, y): both gradients below start from it."""
        return _unfiltered(dy, f, self.after, self.conv.output_size(self._convolved(f, size))[::-1])

    def data_gradient(self, dy: Tensor, w: Tensor, f: Tensor | None, size: Pair) -> Tensor:
        """The gradient of `x`, from what `pulled` made."""
        return _unfiltered(Conv.apply(dy, w, self.conv.adjoint(self._convolved(f, size))), f, self.before, size)

    def weight_gradient(self, dy: Tensor, x: Tensor, f: Tensor | None) -> Tensor:
        """The gradient of `w`, from what `pulled` made."""
        return WeightGrad.apply(_filtered(x, f, self.before), dy, self.conv)

    def _convolved(self, f: Tensor | None, size: Pair) -> Pair:
        """Height and width of what the convolution sees."""
        for r in self.before:
            size = r.output_size(size, filter_size(f))
        return size[::-1]


def arranged(
    x: Tensor,
    w: Tensor,
    up: int,
    down: int,
    padding: Padding,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> tuple[Tensor, Tensor, Plan]:
    """The arguments of a resampling convolution as a plan, and x and w as it takes them. `padding` is the whole one."""
    if up == down == 1:
        # a convolution pads alike on both sides
        (px, py), rest = split_padding(padding)
        x, padding = F.pad(x, rest) if any(rest) else x, (px, px, py, py)
    O, I, kh, kw = w.shape
    transposed = up > 1 and (kh, kw) != (1, 1)
    if flip_weight == transposed:
        w = w.flip([2, 3])
    if transposed:
        w = w.reshape(groups, O // groups, I, kh, kw).transpose(1, 2).reshape(groups * I, O // groups, kh, kw)
    return x, w, plan((kh, kw), up, down, padding, groups, flip_filter)


def plan(kernel: Pair, up: int, down: int, padding: Padding, groups: int = 1, flip_filter: bool = False) -> Plan:
    """How to resample by `up` and `down` around a convolution.

    Args:
        kernel: Height and width. For `up` > 1 and a kernel of more than one tap, the convolution is a transposed one,
            and takes a weight that is flipped, `[I, O / groups, h, w]`.
        padding: For the upsampled image, with what the filters need; alike on both sides for `up` = `down` = 1.
    """
    decimate = (Resample(down=(down, down), flip_filter=flip_filter),) if down > 1 else ()
    same = Geometry(kernel, groups=groups)
    x0, x1, y0, y1 = padding
    kh, kw = kernel
    if up > 1 and kernel == (1, 1):
        return Plan((), same, (Resample((up, up), (1, 1), padding, flip_filter, up**2), *decimate))
    if up > 1:
        # the transposed convolution has padded the upsampled image by k - 1 before, and by k - up after
        rest = (x0 - kw + 1, x1 - kw + up, y0 - kh + 1, y1 - kh + up)
        filtered = Resample(padding=rest, flip_filter=flip_filter, gain=up**2)
        return Plan((), replace(same, stride=up, transposed=True), (filtered, *decimate))
    if down > 1 and kernel == (1, 1):
        return Plan((Resample((1, 1), (down, down), padding, flip_filter),), same, ())
    if down > 1:
        return Plan((Resample(padding=padding, flip_filter=flip_filter),), replace(same, stride=down), ())
    return Plan((), replace(same, padding=(y0, x0)), ())


def _filtered(x: Tensor, f: Tensor | None, filters: tuple[Resample, ...]) -> Tensor:
    for r in filters:
        x = upfirdn2d(x, f, r.up, r.down, r.padding, r.flip_filter, r.gain, impl=within(x))
    return x


def _unfiltered(dy: Tensor, f: Tensor | None, filters: tuple[Resample, ...], size: Pair) -> Tensor:
    """The transposed map of `_filtered` for images of `size`, (x, y)."""
    taps, sizes = filter_size(f), [size]
    for r in filters[:-1]:
        sizes.append(r.output_size(sizes[-1], taps))
    return _filtered(dy, f, tuple(r.adjoint(size, taps) for r, size in zip(filters[::-1], sizes[::-1])))
