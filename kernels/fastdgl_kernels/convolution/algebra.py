"""Resampling convolutions as plans: filters, a convolution of `bilinear`, filters; each closed under differentiation."""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .._dispatch import within
from .._fallback import failure
from .._tuning import LIMITS, Limits, kept, limits
from ..resampling.geometry import Padding, Pair, Resample
from ..resampling.op import filter_size, upfirdn2d
from ..resampling.reference import split_padding
from .bilinear import Conv, WeightGrad, convolve, transposable, weight_gradient
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

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.before, self.conv, self.after, self.asked))

    def run(self, x: Tensor, w: Tensor, f: Tensor | None) -> Tensor:
        """The map."""
        return filtered(_convolved(filtered(x, f, self.before, self.asked), w, self.conv), f, self.after, self.asked)

    @cached_property
    def but_last(self) -> "Plan":
        """All but the last filter."""
        return replace(self, after=self.after[:-1])

    @kept
    def output_size(self, taps: Pair, size: Pair) -> Pair:
        """Height and width of what comes of images of `size`, (x, y)."""
        size = self.conv.output_size(self._convolved(taps, size))[::-1]
        for r in self.after:
            size = r.output_size(size, taps)
        return size[::-1]

    def pulled(self, dy: Tensor, f: Tensor | None, size: Pair) -> Tensor:
        """The gradient of what the convolution made, for images of `size`, (x, y): where both gradients below start."""
        if not self.after:
            return dy
        convolved = self.conv.output_size(self._convolved(filter_size(f), size))[::-1]
        return _unfiltered(dy, f, self.after, convolved, self.asked)

    def data_gradient(self, dy: Tensor, w: Tensor, f: Tensor | None, size: Pair) -> Tensor:
        """The gradient of `x`, from what `pulled` made."""
        dx = _convolved(dy, w, self.conv.adjoint(self._convolved(filter_size(f), size)))
        return _unfiltered(dx, f, self.before, size, self.asked)

    def weight_gradient(self, dy: Tensor, x: Tensor, f: Tensor | None) -> Tensor:
        """The gradient of `w`, from what `pulled` made."""
        x = filtered(x, f, self.before, self.asked)
        return WeightGrad.apply(x, dy, self.conv) if torch.is_grad_enabled() else weight_gradient(x, dy, self.conv)

    def again(self) -> "Plan":
        """For a derivative that is to be differentiated itself: PyTorch's convolutions, in any case."""
        conv = self.conv.again()
        return self if conv is self.conv else replace(self, conv=conv)

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


def _convolved(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    """Return the convolution, as a Function only where somebody may differentiate it."""
    return Conv.apply(x, w, geometry) if torch.is_grad_enabled() else convolve(x, w, geometry)


def _less(padding: Padding, x: int, y: int) -> Padding:
    """With columns and rows less at the end."""
    x0, x1, y0, y1 = padding
    return x0, x1 - x, y0, y1 - y


# channels of the smaller images up to which 6x6 taps take less time than 3x3 and a filter, as four times the products
# weigh against a way through memory: 79 on an H100, 50 on an A100, by their rates (bench/static). Not measured on a GPU
FEW_CHANNELS = 64



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
    _, reason = _own(_arrangement(w, spec, "auto"), x, w, f)
    return "convolves by a kernel of its own" if reason is None else f"leaves the convolution to PyTorch: {reason}"


@dataclass(frozen=True)
class Arrangement:
    """A resampling convolution as a plan, and how x and w are laid out for it: all that their shapes decide.

    Args:
        rest: What x is padded by first; None for nothing.
        flips: Whether the weight is turned round.
        groups: Of channels, where the weight goes to a transposed convolution; 0 where it does not.
        merged: The plan that merges weight and filter into one weight; None where they stay apart.
    """

    plan: Plan
    rest: Padding | None
    flips: bool
    groups: int
    merged: Plan | None = None

    def lay_out(self, x: Tensor, w: Tensor, f: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return x and w as the plan takes them."""
        if self.rest is not None:
            x = F.pad(x, self.rest)
        if self.flips:
            w = w.flip([2, 3])
        if self.groups == 1:
            w = w.transpose(0, 1)
        elif self.groups:
            w = transposable(w, self.groups)
        return x, w if self.merged is None else self.merged.merged_weight(w, f)


def arrange(x: Tensor, w: Tensor, f: Tensor | None, spec: Spec, asked: str = "auto", own: bool = False) -> Arrangement:
    """Return how a resampling convolution is computed, by kernels of our own where they are wanted and there are some."""
    found = _arrangement(w, spec, asked)
    if not own:
        return found
    plan, reason = _own(found, x, w, f)
    if reason is not None:
        return found
    return replace(found, plan=plan, merged=found.plan if plan.conv.kernel != found.plan.conv.kernel else None)


def _arrangement(w: Tensor, spec: Spec, asked: str) -> Arrangement:
    rest = None
    if spec.up == spec.down == 1:
        # a convolution pads alike on both sides
        (px, py), rest = split_padding(spec.padding)
        spec = spec._replace(padding=(px, px, py, py))
    # whoever traces may take the sizes of x for unknown, not these
    kh, kw = map(int, w.shape[2:])
    transposed = spec.up > 1 and (kh, kw) != (1, 1)
    found = replace(plan((kh, kw), spec), asked=asked)
    return Arrangement(found, rest if rest and any(rest) else None, spec.flip_weight == transposed, spec.groups if transposed else 0)


def _own(arrangement: Arrangement, x: Tensor, w: Tensor, f: Tensor | None) -> tuple[Plan, str | None]:
    """Return the plan by kernels of our own and None, or, where no such kernel exists, a plan and the reason."""
    N, I, H, W = map(int, x.shape)
    O, I_of_group, kh, kw = map(int, w.shape)
    if arrangement.rest is not None:
        x0, x1, y0, y1 = arrangement.rest
        H, W = H + y0 + y1, W + x0 + x1
    groups = arrangement.groups
    weight = (groups * I_of_group, O // groups, kh, kw) if groups else (O, I_of_group, kh, kw)
    own, reason = choice(arrangement.plan, x.dtype, (N, I, H, W), weight, filter_size(f), limits(x.device))
    return own, reason or failure("convolution", x.device)


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
    if not filters:
        return dy
    taps, sizes = filter_size(f), [size]
    for r in filters[:-1]:
        sizes.append(r.output_size(sizes[-1], taps))
    return filtered(dy, f, tuple(r.adjoint(size, taps) for r, size in zip(filters[::-1], sizes[::-1])), asked)
