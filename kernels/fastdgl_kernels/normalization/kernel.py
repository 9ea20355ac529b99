"""Triton kernels of scale_shift_act, and their launches. Nothing here knows of autograd.

    y = upsample_nearest(act(u), UP)          u = x * scale + shift

One pass over memory each way. Backward computes u again, by the very same operation, instead of keeping it: the side
of zero it lies on is then the forward's. Images are dense, channels first or last; arithmetic is in fp32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._fallback import or_else
from .._launch import launch
from .._layout import dense_like, is_channels_last, memory_format, sample_stride, small
from .._operators import opaque
from .._tuning import cdiv
from ..modulation.epilogue import STEPS, tile
from . import formulas


@triton.jit
def _pixel(q, width, UP: tl.constexpr):
    """The place of q in the output plane, of rows of `width`; q counts the pixels of every UP-th row."""
    if UP == 2:
        q += q // width * width
    return q


@triton.jit
def _image(x, n, q0, c0, C, P, width, UP: tl.constexpr, STRIDE: tl.constexpr, LANES: tl.constexpr,
           CHANNELS_LAST: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """Pointers to [LANES, BC] of the planes of P pixels of sample n: every STRIDE-th pixel of every UP-th row."""
    c = tl.arange(0, BC)
    first = _pixel(q0, width, UP)
    p = _pixel(q0 + tl.arange(0, LANES) * STRIDE, width, UP) - first
    x += n.to(tl.int64) * C * P
    if CHANNELS_LAST:
        return x + (first.to(tl.int64) * C + c0) + (p[:, None] * C + c[None, :])
    return x + (c0.to(tl.int64) * P + first) + (p[:, None] + c[None, :] * P)


@triton.jit
def _forward(
    x, z, scale, shift, y, groups, P, width, scale_stride, shift_stride,
    RELU: tl.constexpr, UP: tl.constexpr, GROUP: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """y = upsample_nearest(act(u), UP), or of act'(u) * z: the transposed map of the gradient."""
    C = groups * GROUP
    blocks, tiles = tl.cdiv(C, BC), tl.cdiv(P, BP)
    program = tl.program_id(0)
    c0, p0, n = program % blocks * BC, program // blocks % tiles * BP, program // blocks // tiles
    p, c = p0 + tl.arange(0, BP), c0 + tl.arange(0, BC)
    inside = (p < P)[:, None] & (c < C)[None, :]
    if z is None or RELU:
        a = tl.load(scale + n.to(tl.int64) * scale_stride + c, mask=c < C, other=0.0).to(tl.float32)
        b = tl.load(shift + n.to(tl.int64) * shift_stride + c, mask=c < C, other=0.0).to(tl.float32)
        u = tl.load(_image(x, n, p0, c0, C, P, width, 1, 1, BP, CHANNELS_LAST, BC), mask=inside, other=0.0)
        u = tl.fma(u.to(tl.float32), a[None, :], b[None, :])
    if z is None:
        # what is NaN stays NaN
        v = tl.where(u < 0, 0.0, u) if RELU else u
    else:
        v = tl.load(_image(z, n, p0, c0, C, P, width, 1, 1, BP, CHANNELS_LAST, BC), mask=inside, other=0.0)
        v = tl.where(u > 0, v, 0.0) if RELU else v
    v = v.to(y.dtype.element_ty)
    # neighbours in memory are stored at once: they are channels, or the columns of a pixel
    COLUMNS: tl.constexpr = 1 if CHANNELS_LAST else UP
    if COLUMNS == 2:
        v = tl.join(v, v).permute(0, 2, 1).reshape(2 * BP, BC)
    q = p0 * UP + tl.arange(0, BP * COLUMNS) * (UP // COLUMNS)
    inside = (q < P * UP)[:, None] & (c < C)[None, :]
    out = _image(y, n, p0 * UP, c0, C, P * UP * UP, width, UP, UP // COLUMNS, BP * COLUMNS, CHANNELS_LAST, BC)
    for row in tl.static_range(UP):
        for column in tl.static_range(UP // COLUMNS):
            step = row * width + column
            tl.store(out + (step * C if CHANNELS_LAST else step), v, mask=inside)


@triton.jit
def _backward(
    dy, x, scale, shift, dx, dscale, dshift, groups, P, width, scale_stride, shift_stride,
    RELU: tl.constexpr, UP: tl.constexpr, SCALED: tl.constexpr, GROUP: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """g = act'(u) * the sum of dy over the UP x UP copies of a pixel; dx = g * scale if SCALED, else g.

    A program takes STEPS tiles of a sample, one after the other, and leaves its sums of g * x and of g in a place
    of its own: which sums there are depends on the shape alone.
    """
    C = groups * GROUP
    blocks, chunks = tl.cdiv(C, BC), tl.cdiv(P, BP * STEPS)
    program = tl.program_id(0)
    c0, chunk, n = program % blocks * BC, program // blocks % chunks, program // blocks // chunks
    c = c0 + tl.arange(0, BC)
    COLUMNS: tl.constexpr = 1 if CHANNELS_LAST else UP
    a = tl.load(scale + n.to(tl.int64) * scale_stride + c, mask=c < C, other=0.0).to(tl.float32)
    b = tl.load(shift + n.to(tl.int64) * shift_stride + c, mask=c < C, other=0.0).to(tl.float32)
    sum_gx = tl.zeros([BP, BC], tl.float32)
    sum_g = tl.zeros([BP, BC], tl.float32)
    for step in range(STEPS):
        p0 = (chunk * STEPS + step) * BP
        q = p0 * UP + tl.arange(0, BP * COLUMNS) * (UP // COLUMNS)
        inside = (q < P * UP)[:, None] & (c < C)[None, :]
        at = _image(dy, n, p0 * UP, c0, C, P * UP * UP, width, UP, UP // COLUMNS, BP * COLUMNS, CHANNELS_LAST, BC)
        g = tl.zeros([BP * COLUMNS, BC], tl.float32)
        for row in tl.static_range(UP):
            for column in tl.static_range(UP // COLUMNS):
                away = row * width + column
                g += tl.load(at + (away * C if CHANNELS_LAST else away), mask=inside, other=0.0).to(tl.float32)
        if COLUMNS == 2:
            left, right = tl.split(g.reshape(BP, 2, BC).permute(0, 2, 1))
            g = left + right
        inside = (p0 + tl.arange(0, BP) < P)[:, None] & (c < C)[None, :]
        if RELU or dscale is not None:
            v = tl.load(_image(x, n, p0, c0, C, P, width, 1, 1, BP, CHANNELS_LAST, BC), mask=inside, other=0.0)
            v = v.to(tl.float32)
            if RELU:
                g = tl.where(tl.fma(v, a[None, :], b[None, :]) > 0, g, 0.0)
            if dscale is not None:
                sum_gx += g * v
        if dshift is not None:
            sum_g += g
        if dx is not None:
            if SCALED:
                g *= a[None, :]
            out = _image(dx, n, p0, c0, C, P, width, 1, 1, BP, CHANNELS_LAST, BC)
            tl.store(out, g.to(dx.dtype.element_ty), mask=inside)
    partial = (n.to(tl.int64) * chunks + chunk) * C + c
    if dscale is not None:
        tl.store(dscale + partial, tl.sum(sum_gx, axis=0), mask=c < C)
    if dshift is not None:
        tl.store(dshift + partial, tl.sum(sum_g, axis=0), mask=c < C)


@opaque()
@or_else(formulas.forward)
def forward(x: Tensor, scale: Tensor, shift: Tensor, act: str, up: int, z: Tensor | None = None) -> Tensor:
    """y = upsample_nearest(act(x * scale + shift), up), in the layout of x.

    Args:
        x: `[N, C, H, W]`.
        scale, shift: `[N, C]` or `[1, C]`.
        z: Like x; act'(x * scale + shift) * z takes the place of act(x * scale + shift).
    """
    N, C, H, W = x.shape
    x = dense_like(x, x)
    z = None if z is None else dense_like(z, x)
    y = torch.empty([N, C, H * up, W * up], dtype=x.dtype, device=x.device, memory_format=memory_format(x))
    t = tile(C, H * W, is_channels_last(x))
    launch(
        _forward, N * cdiv(H * W, t["BP"]) * cdiv(C, t["BC"]),
        x, z, *small(scale, shift), y, C // group(C), H * W, W * up,
        sample_stride(scale), sample_stride(shift), act == "relu", up, group(C), *t.values(),
    )  # fmt: skip
    return y


@opaque()
@or_else(formulas.backward)
def backward(
    dy: Tensor, x: Tensor, scale: Tensor, shift: Tensor, act: str, up: int, *,
    of_x: bool, of_scale: bool, of_shift: bool, scaled: bool = True,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """The gradients of x, and, in fp32 and for each sample, of scale and shift `[N, C]`; those asked for.

    Args:
        scaled: False to leave out the last factor of dx, which is scale.
    """
    N, C, H, W = x.shape
    x = dense_like(x, x)
    t = tile(C, H * W, is_channels_last(x))
    chunks = cdiv(H * W, t["BP"] * STEPS)
    dx = torch.empty_like(x) if of_x else None
    dscale, dshift = (
        torch.empty([N, chunks, C], dtype=torch.float32, device=x.device) if wanted else None
        for wanted in (of_scale, of_shift)
    )
    launch(
        _backward, N * chunks * cdiv(C, t["BC"]),
        dense_like(dy, x), x, *small(scale, shift), dx, dscale, dshift, C // group(C), H * W, W * up,
        sample_stride(scale), sample_stride(shift), act == "relu", up, scaled, group(C), *t.values(), STEPS,
    )  # fmt: skip
    return dx, *(None if parts is None else parts.sum(1) for parts in (dscale, dshift))


def group(C: int) -> int:
    """Channels that come together: of 8, the compiler knows that 16 bytes may be moved at once."""
    return 8 if C % 8 == 0 else 1
