"""Resampling convolutions as plans: filters, a convolution of `bilinear`, filters; each closed under differentiation."""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .._dispatch import within
from .._fallback import failure
from .._tuning import LIMITS, Limits, limits
from ..resampling.geometry import Padding, Pair, Resample
from ..resampling.op import filter_size, upfirdn2d
from ..resampling.reference import split_padding
from .bilinear import Conv, WeightGrad, transposable
from .spec import Geometry, Spec, rest_of_padding


@dataclass(frozen=True)
class Plan:
    """A resampling convolution in the order that is least work: filters, the convolution at the smaller size, filters.

    A linear map of images, and of the weight. All its parts can be differentiated any number of times.

    Args:
        asked: What the filters are asked to run as, see `_dispatch.asked`.
    """

    before: tuple[Resample, ...]
    conv: Geometry
    after: tuple[Resample, ...]
    asked: str = "auto"

    def run(self, x: Tensor, w: Tensor, f: Tensor | None) -> Tensor:
        """The map."""
        return filtered(Conv.apply(filtered(x, f, self.before, self.asked), w, self.conv), f, self.after, self.asked)

    def output_size(self, taps: Pair, size: Pair) -> Pair:
        """Height and width of what comes of images of `size`, (x, y)."""
        size = self.conv.output_size(self._convolved(taps, size))[::-1]
        for r in self.after:
            size = r.output_size(size, taps)
        return size[::-1]

    def pulled(self, dy: Tensor, f: Tensor | None, size: Pair) -> Tensor:
        """The gradient of what the convolution made, for images of `size`, (x, y): where both gradients below start."""
        convolved = self.conv.output_size(self._convolved(filter_size(f), size))[::-1]
        return _unfiltered(dy, f, self.after, convolved, self.asked)

    def data_gradient(self, dy: Tensor, w: Tensor, f: Tensor | None, size: Pair) -> Tensor:
        """The gradient of `x`, from what `pulled` made."""
        dx = Conv.apply(dy, w, self.conv.adjoint(self._convolved(filter_size(f), size)))
        return _unfiltered(dx, f, self.before, size, self.asked)

    def weight_gradient(self, dy: Tensor, x: Tensor, f: Tensor | None) -> Tensor:
        """The gradient of `w`, from what `pulled` made."""
        return WeightGrad.apply(filtered(x, f, self.before, self.asked), dy, self.conv)

    def again(self) -> "Plan":
        """For a derivative that is to be differentiated itself: PyTorch's convolutions, in any case."""
        return replace(self, conv=self.conv.again())

    def evened(self, taps: Pair, size: Pair) -> "Plan":
        """The same map for images of `size`, (x, y), its convolution of stride 2 beside larger images of even sides.

        They are given a last row and a last column that come to nothing.
        """
        if self.conv.transposed:
            h, w = (n % 2 for n in self.conv.output_size(size[::-1]))
            first, *rest = self.after
            after = replace(first, padding=_less(first.padding, w, h)), *rest
            return replace(self, conv=replace(self.conv, output_padding=(h, w)), after=after)
        h, w = (n % 2 for n in self._convolved(taps, size))
        *rest, last = self.before
        return replace(self, before=(*rest, replace(last, padding=_less(last.padding, -w, -h))))

    def merged(self, taps: Pair) -> "Plan | None":
        """The same map by one convolution of 6x6 taps, of the weight that `merged_weight` makes.

        It multiplies four times as much as 3x3 taps and the filter next to them, and saves what lies between the two a
        way through memory. None where filter and padding do not make such a convolution.
        """
        conv, first, last = replace(self.conv, kernel=(6, 6), padding=(2, 2)), self.before[-1:], self.after[:1]
        padding = last[0].padding if conv.transposed else tuple(p - 1 for p in first[0].padding)
        if taps != (4, 4) or padding != (1, 1, 1, 1):
            return None
        if conv.transposed:
            return replace(self, before=(), conv=conv, after=self.after[1:])
        return replace(self, before=self.before[:-1], conv=conv, after=())

    def merged_weight(self, w: Tensor, f: Tensor) -> Tensor:
        """w and the filter next to the convolution in one: w'[t] = gain * sum over r of w[r] f[t - r], 6x6 taps."""
        r = self.after[0] if self.conv.transposed else self.before[-1]
        # a transposed convolution turns what comes after it
        flip_filter = r.flip_filter == self.conv.transposed
        return upfirdn2d(w, f, padding=3, flip_filter=flip_filter, gain=r.gain, impl=within(w, self.asked))

    def _convolved(self, taps: Pair, size: Pair) -> Pair:
        """Height and width of what the convolution sees."""
        for r in self.before:
            size = r.output_size(size, taps)
        return size[::-1]


def _less(padding: Padding, x: int, y: int) -> Padding:
    """With columns and rows less at the end."""
    x0, x1, y0, y1 = padding
    return x0, x1 - x, y0, y1 - y


# channels of the smaller images up to which 6x6 taps take less time than 3x3 and a filter, as four times the products
# weigh against a way through memory: 79 on an H100, 50 on an A100, by their rates (bench/static). Not measured on a GPU
FEW_CHANNELS = 64


def owned(plan: Plan, x: Tensor, w: Tensor, f: Tensor | None) -> tuple[Plan, Tensor]:
    """The plan by kernels of our own, and its weight; what was given, where there are none for it."""
    shapes = (tuple(map(int, t.shape)) for t in (x, w))
    own, reason = choice(plan, x.dtype, *shapes, filter_size(f), limits(x.device))
    if reason is not None or failure("convolution", x.device):
        return plan, w
    return own, plan.merged_weight(w, f) if own.conv.kernel != plan.conv.kernel else w


@lru_cache(maxsize=1024)
def choice(
    plan: Plan, dtype: torch.dtype, shape: tuple[int, ...], weight: tuple[int, ...], taps: Pair,
    device: Limits = LIMITS[90],
) -> tuple[Plan, str | None]:
    """The plan by kernels of our own, and None; where there are none for it, the plan, and the reason.

    Args:
        shape: Of x, `[N, I, H, W]`.
        weight: Shape of w, as the plan takes it.
        taps: Width and height of the filter.
        device: Limits of the GPU.
    """
    from . import kernel

    size, (few, O) = shape[:1:-1], (weight[0], weight[1 if plan.conv.transposed else 0])
    candidates = [plan]
    if plan.conv.stride == 2 and plan.conv.kernel == (3, 3) and plan.conv.groups == 1:
        candidates = [plan.evened(taps, size)]
        if few <= FEW_CHANNELS and (merged := plan.merged(taps)):
            candidates.insert(0, merged)
    for own in candidates:
        reason = kernel.why_not(dtype, (*shape[:2], *own._convolved(taps, size)), O, own.conv, device)
        if reason is None:
            return replace(own, conv=replace(own.conv, own=True)), None
    return plan, reason


def remark(x: Tensor, w: Tensor, f: Tensor | None, spec: Spec) -> str:
    """Whose convolution it is that runs as "triton", in words."""
    device, failed = limits(x.device), failure("convolution", x.device)
    x, w, plan = arranged(x.to("meta"), w.to("meta"), spec)
    _, reason = choice(plan, x.dtype, tuple(x.shape), tuple(w.shape), filter_size(f), device)
    reason = reason or failed
    return "convolves by a kernel of its own" if reason is None else f"leaves the convolution to PyTorch: {reason}"


def arranged(x: Tensor, w: Tensor, spec: Spec, asked: str = "auto") -> tuple[Tensor, Tensor, Plan]:
    """The arguments of a resampling convolution as a plan, and x and w as it takes them."""
    if spec.up == spec.down == 1:
        # a convolution pads alike on both sides
        (px, py), rest = split_padding(spec.padding)
        x, spec = F.pad(x, rest) if any(rest) else x, spec._replace(padding=(px, px, py, py))
    # whoever traces may take the sizes of x for unknown, not these
    kh, kw = map(int, w.shape[2:])
    transposed = spec.up > 1 and (kh, kw) != (1, 1)
    if spec.flip_weight == transposed:
        w = w.flip([2, 3])
    return x, transposable(w, spec.groups) if transposed else w, replace(plan((kh, kw), spec), asked=asked)


def plan(kernel: Pair, spec: Spec) -> Plan:
    """How to resample by `up` and `down` around a convolution.

    Args:
        kernel: Height and width. For `up` > 1 and a kernel of more than one tap, the convolution is a transposed one,
            and takes a weight that is flipped, `[I, O / groups, h, w]`.
        spec: Padding is alike on both sides for `up` = `down` = 1.
    """
    up, down, padding, groups, _, flip_filter = spec
    decimate = (Resample(down=(down, down), flip_filter=flip_filter),) if down > 1 else ()
    same = Geometry(kernel, groups=groups)
    if up > 1 and kernel == (1, 1):
        return Plan((), same, (Resample((up, up), (1, 1), padding, flip_filter, up**2), *decimate))
    if up > 1:
        filtered = Resample(padding=rest_of_padding(padding, kernel, up), flip_filter=flip_filter, gain=up**2)
        return Plan((), replace(same, stride=up, transposed=True), (filtered, *decimate))
    if down > 1 and kernel == (1, 1):
        return Plan((Resample((1, 1), (down, down), padding, flip_filter),), same, ())
    if down > 1:
        return Plan((Resample(padding=padding, flip_filter=flip_filter),), replace(same, stride=down), ())
    return Plan((), replace(same, padding=(padding[2], padding[0])), ())


def filtered(x: Tensor, f: Tensor | None, filters: tuple[Resample, ...], asked: str) -> Tensor:
    """The filters, one after another."""
    for r in filters:
        x = upfirdn2d(x, f, r.up, r.down, r.padding, r.flip_filter, r.gain, impl=within(x, asked))
    return x


def _unfiltered(dy: Tensor, f: Tensor | None, filters: tuple[Resample, ...], size: Pair, asked: str) -> Tensor:
    """The transposed map of `filtered` for images of `size`, (x, y)."""
    taps, sizes = filter_size(f), [size]
    for r in filters[:-1]:
        sizes.append(r.output_size(sizes[-1], taps))
    return filtered(dy, f, tuple(r.adjoint(size, taps) for r, size in zip(filters[::-1], sizes[::-1])), asked)
