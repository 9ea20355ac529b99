"""Triton kernels of what surrounds a modulated convolution, and their launches. Nothing here knows of autograd.

    y = clamp(gain * lrelu(u * d + noise + b))          and with everything else left out:          y = x * s

One pass over memory each way. Tensors are dense and of one layout, channels first or last; arithmetic is in fp32
(fp64 for fp64). Sums over pixels are taken in an order that depends on the shape alone.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._fallback import or_else
from .._launch import launch
from .._layout import is_channels_last, sample_stride, small
from .._operators import opaque
from .._tuning import cdiv, kept, next_power_of_2
from ..activation.kernel import ended
from . import formulas

# elements of a tile: 16 for each of 128 threads
TILE = 2048

# tiles that one program sums over; the partial sums it leaves are 1 / (8 * pixels of a tile) of the input
STEPS = 8

# the most that there may be of along the last axis of CUDA's grids
SAMPLES = 65535


@triton.jit
def _tile(x, n, p0, c0, C, P, CHANNELS_LAST: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):
    """Pointers to [BP, BC] of the plane of sample n."""
    p, c = tl.arange(0, BP), tl.arange(0, BC)
    base = n.to(tl.int64) * C * P
    if CHANNELS_LAST:
        return x + (base + p0.to(tl.int64) * C + c0) + (p[:, None] * C + c[None, :])
    return x + (base + tl.cast(c0, tl.int64) * P + p0) + (p[:, None] + c[None, :] * P)


@triton.jit
def _forward(
    u, d, noise, bias, y, C, P, noise_stride, ALPHA: tl.constexpr, GAIN: tl.constexpr, CLAMP: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    p0, c0, n = tl.program_id(0) * BP, tl.program_id(1) * BC, tl.program_id(2)
    p, c = p0 + tl.arange(0, BP), c0 + tl.arange(0, BC)
    inside = (p < P)[:, None] & (c < C)[None, :]
    dtype = y.dtype.element_ty
    wide: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    v = tl.load(_tile(u, n, p0, c0, C, P, CHANNELS_LAST, BP, BC), mask=inside, other=0.0).to(wide)
    if d is not None:
        v *= tl.load(d + n.to(tl.int64) * C + c, mask=c < C, other=0.0).to(wide)[None, :]
    if noise is not None:
        v += tl.load(noise + n.to(tl.int64) * noise_stride + p, mask=p < P, other=0.0).to(wide)[:, None]
    if bias is not None:
        v += tl.load(bias + c, mask=c < C, other=0.0).to(wide)[None, :]
    v = ended(v, ALPHA, GAIN, CLAMP)
    tl.store(_tile(y, n, p0, c0, C, P, CHANNELS_LAST, BP, BC), v.to(dtype), mask=inside)


@triton.jit
def _backward(
    dy, y, d, noise, bias, du, sum_g, sum_gu, dnoise, C, P, noise_stride,
    ALPHA: tl.constexpr, GAIN: tl.constexpr, CLAMP: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    chunk, cb, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    c0 = cb * BC
    c = c0 + tl.arange(0, BC)
    dtype = y.dtype.element_ty
    wide: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    row = n.to(tl.int64) * C + c
    if d is not None:
        scale = tl.load(d + row, mask=c < C, other=1.0).to(wide)
    acc_g = tl.zeros([BP, BC], wide)
    acc_gu = tl.zeros([BP, BC], wide)
    for step in range(STEPS):
        p0 = (chunk * STEPS + step) * BP
        p = p0 + tl.arange(0, BP)
        inside = (p < P)[:, None] & (c < C)[None, :]
        g = tl.load(_tile(dy, n, p0, c0, C, P, CHANNELS_LAST, BP, BC), mask=inside, other=0.0).to(wide)
        v = tl.load(_tile(y, n, p0, c0, C, P, CHANNELS_LAST, BP, BC), mask=inside, other=0.0).to(wide)
        if CLAMP is not None:
            # y was clamped in fp32 and then rounded; the bound has to be rounded like it
            bound = tl.full([BP, BC], CLAMP, wide).to(dtype).to(wide)
            g = tl.where(tl.abs(v) < bound, g, 0.0)
        # y has the sign of its input, so y alone tells the slope; strictly, for slope 0
        if ALPHA != 1:
            g = tl.where(v > 0, g, g * ALPHA)
        if GAIN != 1:
            g *= GAIN
        if sum_g is not None:
            acc_g += g
        if dnoise is not None:
            out = dnoise + (n.to(tl.int64) * tl.num_programs(1) + cb) * P + p
            tl.store(out, tl.sum(g, axis=1), mask=p < P)
        if sum_gu is not None:
            # u * d, from y backwards: exact up to the rounding of y wherever g is not zero
            if GAIN != 1:
                v *= 1 / GAIN
            if ALPHA != 1 and ALPHA != 0:
                v = tl.where(v > 0, v, v * (1 / ALPHA))
            if noise is not None:
                v -= tl.load(noise + n.to(tl.int64) * noise_stride + p, mask=p < P, other=0.0).to(wide)[:, None]
            if bias is not None:
                v -= tl.load(bias + c, mask=c < C, other=0.0).to(wide)[None, :]
            acc_gu += g * v
        if d is not None:
            g *= scale[None, :]
        if du is not None:
            tl.store(_tile(du, n, p0, c0, C, P, CHANNELS_LAST, BP, BC), g.to(dtype), mask=inside)
    partial = (n.to(tl.int64) * tl.num_programs(0) + chunk) * C + c
    if sum_g is not None:
        tl.store(sum_g + partial, tl.sum(acc_g, axis=0), mask=c < C)
    if sum_gu is not None:
        tl.store(sum_gu + partial, tl.sum(acc_gu, axis=0) / scale, mask=c < C)


@triton.jit
def _scale_backward(
    t, x, s, dx, xs, ds, C, P,
    CHANNELS_LAST: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    chunk, cb, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    c0 = cb * BC
    c = c0 + tl.arange(0, BC)
    dtype = x.dtype.element_ty
    wide: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    if s is not None:
        scale = tl.load(s + n.to(tl.int64) * C + c, mask=c < C, other=0.0).to(wide)
    acc = tl.zeros([BP, BC], wide)
    for step in range(STEPS):
        p0 = (chunk * STEPS + step) * BP
        p = p0 + tl.arange(0, BP)
        inside = (p < P)[:, None] & (c < C)[None, :]
        g = tl.load(_tile(t, n, p0, c0, C, P, CHANNELS_LAST, BP, BC), mask=inside, other=0.0).to(wide)
        v = tl.load(_tile(x, n, p0, c0, C, P, CHANNELS_LAST, BP, BC), mask=inside, other=0.0).to(wide)
        if ds is not None:
            acc += g * v
        if dx is not None:
            tl.store(_tile(dx, n, p0, c0, C, P, CHANNELS_LAST, BP, BC), (g * scale[None, :]).to(dtype), mask=inside)
        if xs is not None:
            tl.store(_tile(xs, n, p0, c0, C, P, CHANNELS_LAST, BP, BC), (v * scale[None, :]).to(dtype), mask=inside)
    if ds is not None:
        partial = (n.to(tl.int64) * tl.num_programs(0) + chunk) * C + c
        tl.store(ds + partial, tl.sum(acc, axis=0), mask=c < C)


@opaque()
@or_else(formulas.forward)
def forward(
    u: Tensor, d: Tensor | None, noise: Tensor | None, bias: Tensor | None,
    alpha: float, gain: float, clamp: float | None,
) -> Tensor:  # fmt: skip
    """clamp(gain * lrelu(u * d + noise + b)).

    Args:
        u: `[N, C, H, W]`, dense.
        d: `[N, C]`.
        noise: `[N, P]` or `[1, P]`, one number per pixel.
        bias: `[C]`.
        alpha: Slope for negative numbers; 1 for none.
    """
    y = torch.empty_like(u)
    if y.numel() == 0:
        return y
    N, C, P, tiles, _, blocks, layout = _cut(u.shape, is_channels_last(u))
    d, noise, bias = small(d, noise, bias)
    launch(_forward, (tiles, blocks, N), u, d, noise, bias, y, C, P, sample_stride(noise), alpha, gain, clamp, *layout)
    return y


def scale(x: Tensor, s: Tensor) -> Tensor:
    """x * s, for `s` `[N, C]`."""
    return forward(x, s, None, None, 1.0, 1.0, None)


@opaque()
@or_else(formulas.backward)
def backward(
    dy: Tensor, y: Tensor, d: Tensor | None, noise: Tensor | None, bias: Tensor | None,
    alpha: float, gain: float, clamp: float | None, *, of_u: bool, of_d: bool, of_noise: bool, of_bias: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """The gradients of u `[N, C, H, W]`, d `[N, C]`, noise `[N, P]` and bias `[C]`, those asked for, off the output y.

    u is not needed: where its gradient is not zero, y can be followed backwards. It comes out as exact as y was
    rounded, so the gradient of d loses where noise and bias are much larger than u * d: with a bias of 4 or 5 to
    normal u * d, it erred 2.5 times as much in fp16 as from u itself. In return, a layer keeps one image less.
    """
    N, C, P, _, chunks, blocks, layout = _cut(y.shape, is_channels_last(y))
    d, noise, bias = small(d, noise, bias)
    wide = torch.promote_types(y.dtype, torch.float32)
    du = torch.empty_like(y) if of_u else None
    sum_g = y.new_empty([N, chunks, C], dtype=wide) if of_bias else None
    sum_gu = y.new_empty([N, chunks, C], dtype=wide) if of_d else None
    dnoise = y.new_empty([N, blocks, P], dtype=wide) if of_noise else None
    if y.numel() > 0:
        launch(
            _backward, (chunks, blocks, N),
            dy, y, d, noise, bias, du, sum_g, sum_gu, dnoise, C, P, sample_stride(noise), alpha, gain, clamp,
            *layout, STEPS,
        )  # fmt: skip
    return (
        du,
        _total(sum_gu) if of_d else None,
        _total(dnoise) if of_noise else None,
        sum_g.sum([0, 1]) if of_bias else None,
    )


@opaque()
@or_else(formulas.scale_backward)
def scale_backward(
    t: Tensor, x: Tensor, s: Tensor | None, *, of_x: bool, of_s: bool, again: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """For t, the gradient of x * s: the gradients of x and of s `[N, C]`, and x * s once more; those asked for."""
    N, C, P, _, chunks, blocks, layout = _cut(x.shape, is_channels_last(x))
    (s,) = small(s)
    dx = torch.empty_like(x) if of_x else None
    xs = torch.empty_like(x) if again else None
    ds = x.new_empty([N, chunks, C], dtype=torch.promote_types(x.dtype, torch.float32)) if of_s else None
    if x.numel() > 0:
        launch(_scale_backward, (chunks, blocks, N), t, x, s, dx, xs, ds, C, P, *layout, STEPS)
    return dx, _total(ds) if of_s else None, xs


def _total(partial: Tensor) -> Tensor:
    """Return the sum along dimension 1, where a single one is the sum."""
    return partial.squeeze(1) if partial.shape[1] == 1 else partial.sum(1)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """sum over the pixels of a * b, `[N, C]`, in fp32."""
    return scale_backward(a, b, None, of_x=False, of_s=True, again=False)[1]


@kept
def tile(C: int, P: int, channels_last: bool) -> dict:
    """The tile for planes of P pixels and C channels: long along what is contiguous."""
    if channels_last:
        BC = min(64, next_power_of_2(C))
        BP = min(TILE // BC, max(next_power_of_2(P), 1))
    else:
        BP = min(512, next_power_of_2(P))
        BC = min(TILE // BP, next_power_of_2(C))
    return {"CHANNELS_LAST": channels_last, "BP": BP, "BC": BC}


@kept
def _cut(shape: torch.Size, channels_last: bool) -> tuple[int, int, int, int, int, int, tuple]:
    """Return N, C, P of images; tiles of a plane, runs of STEPS tiles, blocks of channels; and the tile."""
    N, C, H, W = shape
    if N > SAMPLES:
        raise ValueError(f"x must have at most {SAMPLES} samples for the kernels of a layer, got {N}: split the batch")
    P = H * W
    t = tile(C, P, channels_last)
    return N, C, P, cdiv(P, t["BP"]), cdiv(P, t["BP"] * STEPS), cdiv(C, t["BC"]), tuple(t.values())
