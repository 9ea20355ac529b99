"""Triton kernels of upfirdn2d, and their launches. Nothing here knows of autograd.

Along each axis, with k the filter turned so that it correlates:

    y[o] = sum_i k[i * up - o * down + pad] x[i]

so that inserted zeros are never touched.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple
from weakref import ReferenceType, ref

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .._fallback import or_else
from .._launch import launch
from .._layout import format_of, is_channels_last, memory_format, sample_stride, small
from .._operators import opaque
from .._tuning import architecture, cdiv, kept, next_power_of_2, tuned
from . import formulas
from .geometry import Pair, Resample
from .kept import version
from .tail import Tail


@triton.constexpr_function
def _first(o, UP, DOWN, PAD):
    """The first input that output o reads."""
    return -((PAD - o * DOWN) // UP)


@triton.constexpr_function
def _last(o, UP, DOWN, PAD, TAPS):
    return (o * DOWN - PAD + TAPS - 1) // UP


@triton.constexpr_function
def _tap(i, o, UP, DOWN, PAD):
    """The tap between input i and output o; none where it lies outside of the filter."""
    return i * UP - o * DOWN + PAD


@triton.jit
def _taps(f, scale, TAPS: tl.constexpr, FLIP: tl.constexpr):
    k = ()
    for t in tl.static_range(0, TAPS):
        k = k + (tl.load(f + (t if FLIP else TAPS - 1 - t)) * scale,)
    return k


@triton.jit
def _filtered_row(
    x, iy, H, W, pixel, col, offset, inside, kx,
    UP: tl.constexpr, DOWN: tl.constexpr, PAD: tl.constexpr, TAPS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """One input row, filtered along x: a tile for each of SLOTS neighbouring outputs.

    `pixel` is the distance of neighbouring pixels in memory.
    """
    FIRST: tl.constexpr = _first(0, UP, DOWN, PAD)
    LAST: tl.constexpr = _last(SLOTS - 1, UP, DOWN, PAD, TAPS)
    # a row that does not exist has no pixels
    end = tl.where((iy >= 0) & (iy < H), W, 0)
    row = x + (iy.to(tl.int64) * W) * pixel
    pixels = ()
    for i in tl.static_range(FIRST, LAST + 1):
        there = (col + i >= 0) & (col + i < end)
        values = tl.load(row + i * pixel + offset, mask=there[:, None] & inside[None, :], other=0)
        pixels = pixels + (values.to(tl.float32),)
    slots = ()
    for s in tl.static_range(0, SLOTS):
        h = tl.zeros(offset.shape, tl.float32)
        for i in tl.static_range(_first(s, UP, DOWN, PAD), _last(s, UP, DOWN, PAD, TAPS) + 1):
            h += pixels[i - FIRST] * kx[_tap(i, s, UP, DOWN, PAD)]
        slots = slots + (h,)
    return slots


@triton.jit
def separable_kernel(
    x, fx, fy, y, demod, noise, bias, noise_stride, H, W, groups, OH, OW, scale, alpha, gain, clamp,
    UP: tl.constexpr, DOWN: tl.constexpr, PAD_X: tl.constexpr, PAD_Y: tl.constexpr,
    TAPS_X: tl.constexpr, TAPS_Y: tl.constexpr, FLIP: tl.constexpr, TAIL: tl.constexpr, CLAMP: tl.constexpr,
    GROUP: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    SLOTS: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, COLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """upfirdn2d with a separable filter, dense images, one factor for both axes.

    A program makes ROWS * STEPS rows of SLOTS * COLS pixels of CHANNELS channels. It walks down the rows and keeps
    in registers those it has filtered along x and needs again. What a program does at which row and column is
    known to the compiler: UP divides ROWS and SLOTS.

    TAIL: y = clamp(gain * lrelu(y * demod + noise + bias)) on the way out; demod, noise and bias may be None.
    """
    # in groups of 8, if channels are last: the compiler then knows that 16 bytes may be moved at once
    C = groups * GROUP
    blocks_c, blocks_x, blocks_y = tl.cdiv(C, CHANNELS), tl.cdiv(OW, SLOTS * COLS), tl.cdiv(OH, ROWS * STEPS)
    program = tl.program_id(0)
    c0 = (program % blocks_c) * CHANNELS
    c = c0 + tl.arange(0, CHANNELS)
    program = program // blocks_c
    q0 = (program % blocks_x) * COLS
    q = q0 + tl.arange(0, COLS)
    program = program // blocks_x
    oy0 = (program % blocks_y) * (ROWS * STEPS)
    n = (program // blocks_y).to(tl.int64)
    inside = c < C
    # neighbours in memory are stored at once: they are channels, or what all slots of a column make
    AT_ONCE: tl.constexpr = 1 if CHANNELS_LAST else SLOTS
    columns = q0 * SLOTS + tl.arange(0, COLS * AT_ONCE)
    col = q * (SLOTS * DOWN // UP)
    if CHANNELS_LAST:
        pixel = C
        x += n * H * W * C
        y += n * OH * OW * C
        offset = col[:, None] * C + c[None, :]
        out_offset = (q * SLOTS)[:, None] * C + c[None, :]
    else:
        pixel = 1
        planes = tl.arange(0, CHANNELS)[None, :].to(tl.int64)
        x += (n * C + c0) * H * W
        y += (n * C + c0) * OH * OW
        offset = col[:, None] + planes * H * W
        out_offset = columns[:, None] + planes * OH * OW

    kx = _taps(fx, 1.0, TAPS_X, FLIP)
    ky = _taps(fy, scale, TAPS_Y, FLIP)
    if TAIL and demod is not None:
        d = tl.load(demod + n * C + c, mask=inside, other=0).to(tl.float32)[None, :]
    if TAIL and bias is not None:
        b = tl.load(bias + c, mask=inside, other=0).to(tl.float32)[None, :]

    # of the input, counted from where a step begins
    STRIDE: tl.constexpr = ROWS * DOWN // UP
    FIRST: tl.constexpr = _first(0, UP, DOWN, PAD_Y)
    LAST: tl.constexpr = _last(ROWS - 1, UP, DOWN, PAD_Y, TAPS_Y)
    KEPT: tl.constexpr = LAST - FIRST + 1 - STRIDE
    # so many steps fill the window where that is too much to write out: ptxas would take minutes
    WARM_UP: tl.constexpr = 0 if KEPT <= 4 else (KEPT + STRIDE - 1) // STRIDE
    iy0 = oy0 // UP * DOWN
    window = ()
    for i in tl.static_range(0, KEPT):
        if WARM_UP == 0:
            window = window + _filtered_row(
                x, iy0 + (FIRST + i), H, W, pixel, col, offset, inside, kx, UP, DOWN, PAD_X, TAPS_X, SLOTS
            )
        else:
            for s in tl.static_range(0, SLOTS):
                window = window + (tl.zeros((COLS, CHANNELS), tl.float32),)
    for step in tl.range(-WARM_UP, STEPS):
        rows = window
        for i in tl.static_range(KEPT, KEPT + STRIDE):
            rows = rows + _filtered_row(
                x, iy0 + step * STRIDE + (FIRST + i), H, W, pixel, col, offset, inside, kx,
                UP, DOWN, PAD_X, TAPS_X, SLOTS,
            )
            for r in tl.static_range(0, ROWS):
                # as soon as its last row is there
                if max(_last(r, UP, DOWN, PAD_Y, TAPS_Y), FIRST + KEPT) == FIRST + i:
                    oy = oy0 + step * ROWS + r
                    end = tl.where((oy >= oy0) & (oy < OH), OW, 0)
                    out = ()
                    for s in tl.static_range(0, SLOTS):
                        v = tl.zeros((COLS, CHANNELS), tl.float32)
                        for j in tl.static_range(_first(r, UP, DOWN, PAD_Y), _last(r, UP, DOWN, PAD_Y, TAPS_Y) + 1):
                            v += rows[(j - FIRST) * SLOTS + s] * ky[_tap(j, r, UP, DOWN, PAD_Y)]
                        there = q * SLOTS + s < end
                        if TAIL:
                            if demod is not None:
                                v *= d
                            if noise is not None:
                                z = tl.load(noise + n * noise_stride + oy * OW + q * SLOTS + s, mask=there, other=0)
                                v += z.to(tl.float32)[:, None]
                            if bias is not None:
                                v += b
                            v = tl.where(v > 0, v, v * alpha) * gain
                            if CLAMP:
                                # not minimum and maximum, which take NaN for the bound
                                v = tl.where(v > clamp, clamp, tl.where(v < -clamp, -clamp, v))
                        v = v.to(y.dtype.element_ty)
                        if AT_ONCE == 1:
                            out_row = y + (oy.to(tl.int64) * OW + s) * pixel + out_offset
                            tl.store(out_row, v, mask=there[:, None] & inside[None, :])
                        else:
                            out = out + (v,)
                    if AT_ONCE == 2:
                        v = tl.join(out[0], out[1]).permute(0, 2, 1).reshape(2 * COLS, CHANNELS)
                        out_row = y + oy.to(tl.int64) * OW + out_offset
                        tl.store(out_row, v, mask=(columns < end)[:, None] & inside[None, :])
        window = ()
        for k in tl.static_range(0, KEPT * SLOTS):
            window = window + (rows[STRIDE * SLOTS + k],)


@triton.jit
def _reach(o, UP, DOWN, PAD, LEAD, SHIFT):
    """The first input that output o reads, and the tap it meets; LEAD makes the dividend positive."""
    i = (o * DOWN + LEAD) // UP - SHIFT
    return i, i * UP - o * DOWN + PAD


@triton.jit
def upfirdn2d_kernel(
    x, f, y, C, H, W, OH, OW,
    x_n, x_c, x_h, x_w, y_n, y_c, y_h, y_w,
    pad_x, lead_x, shift_x, pad_y, lead_y, shift_y, scale,
    UP_X: tl.constexpr, UP_Y: tl.constexpr, DOWN_X: tl.constexpr, DOWN_Y: tl.constexpr,
    TAPS_X: tl.constexpr, TAPS_Y: tl.constexpr, FLIP: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
    UNROLL: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """upfirdn2d as it is: any factors, padding, filter [h, w] and strides.

    A tile is LANES x VECTOR: columns x channels of one row with channels last, else rows x columns of one plane.
    """
    program = tl.program_id(0)
    if CHANNELS_LAST:
        blocks_v, blocks_l = tl.cdiv(C, VECTOR), tl.cdiv(OW, LANES)
    else:
        blocks_v, blocks_l = tl.cdiv(OW, VECTOR), tl.cdiv(OH, LANES)
    vector = (program % blocks_v) * VECTOR + tl.arange(0, VECTOR)[None, :]
    program = program // blocks_v
    lane = (program % blocks_l) * LANES + tl.arange(0, LANES)[:, None]
    program = program // blocks_l
    if CHANNELS_LAST:
        c, ox = vector, lane
        oy, n = program % OH + tl.zeros((1, 1), tl.int32), program // OH
    else:
        oy, ox = lane, vector
        c, n = program % C + tl.zeros((1, 1), tl.int32), program // C
    there = (oy < OH) & (ox < OW) & (c < C)
    iy, ty = _reach(oy, UP_Y, DOWN_Y, pad_y, lead_y, shift_y)
    ix, tx = _reach(ox, UP_X, DOWN_X, pad_x, lead_x, shift_x)
    x += n.to(tl.int64) * x_n
    y += n.to(tl.int64) * y_n
    if WIDE:
        c, oy, ox, iy, ix = c.to(tl.int64), oy.to(tl.int64), ox.to(tl.int64), iy.to(tl.int64), ix.to(tl.int64)
    v = tl.zeros((LANES, VECTOR), tl.float32)
    for j in tl.range(0, (TAPS_Y + UP_Y - 1) // UP_Y, loop_unroll_factor=UNROLL):
        exists = there & (iy + j >= 0) & (iy + j < H)
        row = ty + j * UP_Y
        for i in tl.range(0, (TAPS_X + UP_X - 1) // UP_X, loop_unroll_factor=UNROLL):
            column = tx + i * UP_X
            if FLIP:
                k = f + row * TAPS_X + column
            else:
                k = f + (TAPS_Y - 1 - row) * TAPS_X + (TAPS_X - 1 - column)
            tap = tl.load(k, mask=(row < TAPS_Y) & (column < TAPS_X), other=0)
            pixel = tl.load(x + c * x_c + (iy + j) * x_h + (ix + i) * x_w,
                            mask=exists & (ix + i >= 0) & (ix + i < W), other=0)
            v += pixel.to(tl.float32) * tap
    tl.store(y + c * y_c + oy * y_h + ox * y_w, (v * scale).to(y.dtype.element_ty), mask=there)


_NO_TAIL = Tail()


def empty_output(x: Tensor, f: Tensor | None, resample: Resample) -> Tensor:
    """Room for `upfirdn2d` of these."""
    size = resample.output_size((x.shape[3], x.shape[2]), (1, 1) if f is None else (f.shape[-1], f.shape[0]))
    return x.new_empty([*x.shape[:2], *size[::-1]]).contiguous(memory_format=memory_format(x))


@opaque(empty_output)
@or_else(formulas.upfirdn2d)
def upfirdn2d(x: Tensor, f: Tensor | None, resample: Resample, tail: Tail | None = None) -> Tensor:
    """Insert zeros, pad or crop, filter, decimate; `[N, C, H', W']` in the memory format of x."""
    x, factors = x.resolve_neg(), _factors(f)
    found = _found(x, factors, resample)
    if found is not None and (tail is None or found.layout == torch.channels_last):
        return _separable(x, *factors, found, resample, tail)
    if tail is not None:
        raise NotImplementedError("only images that are channels last, and that `fits`, have a tail")
    f = torch.ones([1, 1], dtype=torch.float32, device=x.device) if f is None else small(f.float())[0]
    if f.ndim == 2:
        return _general(x, f, resample, x.dtype)
    (ux, uy), (dx, dy), (x0, x1, y0, y1) = resample.up, resample.down, resample.padding
    # rounded once
    along_x = Resample((ux, 1), (dx, 1), (x0, x1, 0, 0), resample.flip_filter, resample.gain)
    along_y = Resample((1, uy), (1, dy), (0, 0, y0, y1), resample.flip_filter)
    return _general(_general(x, f[None, :], along_x, torch.float32), f[:, None], along_y, x.dtype)


def fits(x: Tensor, factors: tuple[Tensor, Tensor] | None, resample: Resample) -> bool:
    """Whether the kernel for dense images can do it: nearly all there is in a network."""
    return _found(x, factors, resample) is not None


def _found(x: Tensor, factors: tuple[Tensor, Tensor] | None, resample: Resample) -> "Separable | None":
    """Return the launch of the kernel for dense images; None where it does not fit."""
    if factors is None or not resample.is_common:
        return None
    taps = factors[0].shape[0], factors[1].shape[0]
    entry = tuned(_ENTRIES[resample.up[0], resample.down[0], taps[0] <= 4 and taps[1] <= 4], architecture(x.device))
    return _separable_launch(x.shape, x.stride(), x.element_size(), resample, taps, entry)


def _separable(x: Tensor, fx: Tensor, fy: Tensor, found: "Separable", resample: Resample, tail: Tail | None) -> Tensor:
    has_tail, tail = tail is not None, tail or _NO_TAIL
    y = torch.empty(found.size, dtype=x.dtype, device=x.device, memory_format=found.layout)
    demod, noise, bias = small(tail.demod, tail.noise, tail.bias) if has_tail else (None, None, None)
    launch(
        separable_kernel, found.programs,
        x, fx, fy, y, demod, noise, bias, sample_stride(noise), *found.sizes,
        resample.gain, tail.alpha, tail.gain, tail.clamp or 0.0,
        *found.map, has_tail, tail.clamp is not None, *found.cut,
        num_warps=found.warps,
    )  # fmt: skip
    return y


class Separable(NamedTuple):
    """A launch of `separable_kernel`, less its tensors and numbers.

    Args:
        size: Shape of the output.
        layout: Memory format of input and output.
        programs: Of the grid.
        sizes, map, cut: Arguments of the kernel: H to OH, UP to FLIP, GROUP to CHANNELS.
        warps: Of a program.
    """

    size: tuple[int, int, int, int]
    layout: torch.memory_format
    programs: int
    sizes: tuple
    map: tuple
    cut: tuple
    warps: int


@kept
def _separable_launch(
    shape: torch.Size, stride: tuple[int, ...], element: int, resample: Resample, taps: Pair, entry: tuple[int, ...]
) -> Separable | None:
    """Return the launch for images of a shape and strides, by an entry of the table; None where the kernel does not fit."""
    (N, C, H, W), layout = shape, format_of(shape, stride)
    channels_last = layout == torch.channels_last
    if layout is None or channels_last and C % 8 or not all(3 <= n <= 12 for n in taps):
        return None
    OW, OH = resample.output_size((W, H), taps)
    group = 8 if channels_last else 1
    tile = _separable_tile(entry, element, C, (OW, OH), max(taps), channels_last)
    return Separable(
        (N, C, OH, OW),
        layout,
        N * tile.programs(C, OW, OH),
        (H, W, C // group, OH, OW),
        (resample.up[0], resample.down[0], resample.padding[0], resample.padding[2], *taps, resample.flip_filter),
        (group, channels_last, tile.slots, tile.rows, tile.steps, tile.cols, tile.channels),
        tile.warps,
    )


@dataclass(frozen=True)
class Tile:
    """What one program makes: `rows * steps` rows of `slots * cols` pixels of `channels` channels."""

    slots: int
    rows: int
    steps: int
    cols: int
    channels: int
    warps: int

    def programs(self, C: int, OW: int, OH: int) -> int:
        """Of one image."""
        across = cdiv(C, self.channels) * cdiv(OW, self.slots * self.cols)
        return across * cdiv(OH, self.rows * self.steps)


def separable_tile(
    arch: str, element: int, C: int, size: Pair, up: int, down: int, taps: int, channels_last: bool
) -> Tile:
    """The tile for an output of C channels and `size`, of elements of so many bytes.

    Sizes of a network are powers of two, and one more: the tile is cut so that little of it hangs over.
    """
    entry = tuned(_ENTRIES[up, down, taps <= 4], arch)
    return _separable_tile(entry, element, C, size, taps, channels_last)


_ENTRIES = {
    (up, down, few): f"upfirdn2d_up{up}_down{down}_{4 if few else 12}"
    for up, down in ((1, 1), (2, 1), (1, 2))
    for few in (True, False)
}


def _separable_tile(entry: tuple[int, ...], element: int, C: int, size: Pair, taps: int, channels_last: bool) -> Tile:
    """The same, by an entry of the table."""
    (OW, OH), (slots, rows, steps, elements, warps) = size, entry
    widest, columns = next_power_of_2(C), next_power_of_2(cdiv(OW, slots))
    # of what is contiguous in memory, whole lines
    if channels_last:
        # a thread holds 16 bytes of a row
        elements = elements * 2 // element
        shapes = [(n, max(1, elements // n)) for n in {min(widest, 64), min(widest, 128)}]
    else:
        # or two elements, for each has an address of its own
        elements //= 4
        lines = [n for n in (32, 64, 128, 256) if n <= min(columns, elements)] or [min(columns, elements)]
        shapes = [(min(widest, elements // n), n) for n in lines]

    def area(shape: Pair) -> int:
        channels, cols = shape
        return cdiv(C, channels) * channels * cdiv(OW, slots * cols) * cols

    def height(steps: int) -> int:
        # what is read before the first output of a tile counts as well
        return cdiv(OH, rows * steps) * (rows * steps + taps - 1)

    channels, cols = min(shapes, key=lambda shape: (area(shape), shape))
    steps = min((s for s in (1, 2, 4, 8, 16, 32) if s <= steps), key=lambda s: (height(s), s))
    return Tile(slots, rows, steps, cols, channels, warps)


def _general(x: Tensor, f: Tensor, resample: Resample, dtype: torch.dtype) -> Tensor:
    N, C, H, W = x.shape
    FH, FW = f.shape
    OW, OH = resample.output_size((W, H), (FW, FH))
    y = torch.empty([N, C, OH, OW], dtype=dtype, device=x.device, memory_format=memory_format(x))
    channels_last = is_channels_last(x)
    (ux, uy), (dx, dy), (px, _, py, _) = resample.up, resample.down, resample.padding
    elements, warps = tuned("upfirdn2d", architecture(x.device))
    vector = min(next_power_of_2(C if channels_last else OW), 128)
    lanes = min(next_power_of_2(OW if channels_last else OH), max(1, elements // vector))
    if channels_last:
        tiles = cdiv(C, vector) * cdiv(OW, lanes) * OH
    else:
        tiles = cdiv(OW, vector) * cdiv(OH, lanes) * C
    unroll = max(cdiv(FW, ux), cdiv(FH, uy))
    launch(
        upfirdn2d_kernel, N * tiles,
        x, f, y, C, H, W, OH, OW, *x.stride(), *y.stride(),
        px, *_lead(px, ux), py, *_lead(py, uy), resample.gain,
        ux, uy, dx, dy, FW, FH, resample.flip_filter, channels_last, _far(x) or _far(y),
        unroll if unroll <= 6 else 1, lanes, vector, num_warps=warps,
    )  # fmt: skip
    return y


def _lead(pad: int, up: int) -> Pair:
    """What to add, and to take off after dividing by `up`, so that the dividend is never negative."""
    shift = max(0, cdiv(pad - up + 1, up))
    return shift * up - pad + up - 1, shift


def _far(x: Tensor) -> bool:
    """Whether offsets within a sample need 64 bits."""
    return sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:])) >= 2**31


# by id: a filter, its version and its taps. An entry goes with its filter, so there are as many as there are filters
_separated: dict[int, tuple[ReferenceType, int, tuple[Tensor, Tensor] | None]] = {}


def _factors(f: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Taps along x and y, in fp32, whose outer product is f; None if there are none.

    Found on the CPU, once for each filter, which is a wait for the GPU.
    """
    if f is None:
        return None
    number = id(f)
    found = _separated.get(number)
    if found is None or found[0]() is not f or found[1] != version(f):
        if f.is_cuda and torch.cuda.is_current_stream_capturing():
            return None
        # even where whoever watches PyTorch lets nothing be computed (see `warm_up`)
        with _disable_current_modes():
            found = _separated[number] = (ref(f, partial(_let_go, number)), version(f), _separate(f))
    return found[2]


def _let_go(number: int, reference: ReferenceType) -> None:
    """Drop the taps of a filter that is gone, unless another one has its number by now."""
    found = _separated.get(number)
    if found is not None and found[0] is reference:
        _separated.pop(number, None)


def _separate(f: Tensor) -> tuple[Tensor, Tensor] | None:
    if f.ndim == 1:
        # not f itself: what is held here must not keep it alive
        (taps,) = small(f.detach().float())
        return taps, taps
    exact = f.detach().double().cpu()
    row, column = divmod(int(exact.abs().argmax()), f.shape[1])
    pivot = exact[row, column]
    if pivot == 0:
        return None
    fx, fy = exact[row], exact[:, column] / pivot
    # what the product of two roundings to fp32 may be off by
    if (torch.outer(fy, fx) - exact).abs().max() > 4e-7 * pivot.abs():
        return None
    return tuple(t.to(f.device, torch.float32).contiguous() for t in (fx, fy))
