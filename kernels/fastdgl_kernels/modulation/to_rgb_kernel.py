"""Triton kernels of ToRGB and its derivatives, and their launches. Nothing here knows of autograd.

    y[n, o, p] = sum over i of w[n, o, i] x[n, i, p]

with weights of each sample's own, from I channels to so few that a program keeps the sums of all of them: features
are read or written once, which is all there is to it. Features are dense, channels first or last; images of few
channels are channels first. Sums are in fp32, in an order that depends on the shape alone.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._fallback import or_else
from .._launch import launch
from .._layout import is_channels_last, small
from .._operators import opaque
from .._tuning import cdiv, kept, next_power_of_2
from ..activation.kernel import ended
from . import formulas
from .epilogue import STEPS, TILE, _tile, tile


@triton.jit
def _forward(
    x, w, bias, y, I, P, O: tl.constexpr, ALPHA: tl.constexpr, GAIN: tl.constexpr, CLAMP: tl.constexpr,
    BLOCKS: tl.constexpr, CHANNELS_LAST: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(P, BP)
    p0, n = tl.program_id(0) % tiles * BP, tl.program_id(0) // tiles
    p = p0 + tl.arange(0, BP)
    w += n.to(tl.int64) * O * I
    y += n.to(tl.int64) * O * P
    sums = ()
    for o in tl.static_range(O):
        sums += (tl.zeros([BP, BC], tl.float32),)
    for block in tl.range(0, BLOCKS):
        i = block * BC + tl.arange(0, BC)
        inside = (p < P)[:, None] & (i < I)[None, :]
        v = tl.load(_tile(x, n, p0, block * BC, I, P, CHANNELS_LAST, BP, BC), mask=inside, other=0.0).to(tl.float32)
        more = ()
        for o in tl.static_range(O):
            more += (sums[o] + v * tl.load(w + o * I + i, mask=i < I, other=0.0)[None, :],)
        sums = more
    for o in tl.static_range(O):
        v = tl.sum(sums[o], axis=1)
        if bias is not None:
            v += tl.load(bias + o).to(tl.float32)
        v = ended(v, ALPHA, GAIN, CLAMP)
        tl.store(y + o * P + p, v.to(y.dtype.element_ty), mask=p < P)


@triton.jit
def _data_gradient(
    dy, w, dx, I, P, O: tl.constexpr, CHANNELS_LAST: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr
):
    blocks, tiles = tl.cdiv(I, BC), tl.cdiv(P, BP)
    program = tl.program_id(0)
    i0, p0, n = program % blocks * BC, program // blocks % tiles * BP, program // blocks // tiles
    p, i = p0 + tl.arange(0, BP), i0 + tl.arange(0, BC)
    w += n.to(tl.int64) * O * I
    dy += n.to(tl.int64) * O * P
    v = tl.zeros([BP, BC], tl.float32)
    for o in tl.static_range(O):
        g = tl.load(dy + o * P + p, mask=p < P, other=0.0).to(tl.float32)
        v += g[:, None] * tl.load(w + o * I + i, mask=i < I, other=0.0)[None, :]
    inside = (p < P)[:, None] & (i < I)[None, :]
    tl.store(_tile(dx, n, p0, i0, I, P, CHANNELS_LAST, BP, BC), v.to(dx.dtype.element_ty), mask=inside)


@triton.jit
def _weight_gradient(
    dy, x, dw, I, P, O: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """A program takes STEPS tiles of a sample, one after the other, and leaves its sums in a place of its own."""
    blocks, chunks = tl.cdiv(I, BC), tl.cdiv(P, BP * STEPS)
    program = tl.program_id(0)
    i0, chunk, n = program % blocks * BC, program // blocks % chunks, program // blocks // chunks
    i = i0 + tl.arange(0, BC)
    dy += n.to(tl.int64) * O * P
    sums = ()
    for o in tl.static_range(O):
        sums += (tl.zeros([BP, BC], tl.float32),)
    for step in tl.range(0, STEPS):
        p0 = (chunk * STEPS + step) * BP
        p = p0 + tl.arange(0, BP)
        inside = (p < P)[:, None] & (i < I)[None, :]
        v = tl.load(_tile(x, n, p0, i0, I, P, CHANNELS_LAST, BP, BC), mask=inside, other=0.0).to(tl.float32)
        more = ()
        for o in tl.static_range(O):
            more += (sums[o] + v * tl.load(dy + o * P + p, mask=p < P, other=0.0).to(tl.float32)[:, None],)
        sums = more
    for o in tl.static_range(O):
        partial = dw + ((n.to(tl.int64) * chunks + chunk) * O + o) * I + i
        tl.store(partial, tl.sum(sums[o], axis=0), mask=i < I)


@opaque()
@or_else(formulas.to_rgb)
def forward(
    x: Tensor, w: Tensor, bias: Tensor | None, alpha: float = 1.0, gain: float = 1.0, clamp: float | None = None
) -> Tensor:
    """clamp(gain * lrelu(y + bias)), `[N, O, H, W]`, channels first.

    Args:
        x: `[N, I, H, W]`, dense.
        w: `[N, O, I]`, fp32, of few output channels.
        bias: `[O]`.
    """
    (N, I, H, W), O = x.shape, w.shape[1]
    y = torch.empty([N, O, H, W], dtype=x.dtype, device=x.device)
    t = forward_tile(I, H * W, is_channels_last(x))
    launch(
        _forward, N * cdiv(H * W, t["BP"]),
        x, *small(w, bias), y, I, H * W, O, alpha, gain, clamp,
        cdiv(I, t["BC"]), *t.values(),
    )  # fmt: skip
    return y


@opaque()
@or_else(formulas.to_rgb_data_gradient)
def data_gradient(dy: Tensor, w: Tensor, channels_last: bool) -> Tensor:
    """The gradient of x `[N, I, H, W]`, in the layout asked for, from that of y `[N, O, H, W]`."""
    (N, O, H, W), I = dy.shape, w.shape[2]
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    dx = torch.empty([N, I, H, W], dtype=dy.dtype, device=dy.device, memory_format=memory_format)
    t = tile(I, H * W, is_channels_last(dx))
    launch(
        _data_gradient, N * cdiv(H * W, t["BP"]) * cdiv(I, t["BC"]),
        *small(dy, w), dx, I, H * W, O, *t.values(),
    )  # fmt: skip
    return dx


@opaque()
@or_else(formulas.to_rgb_weight_gradient)
def weight_gradient(dy: Tensor, x: Tensor) -> Tensor:
    """The gradient of w `[N, O, I]`, in fp32, from that of y `[N, O, H, W]`."""
    (N, I, H, W), O = x.shape, dy.shape[1]
    t = tile(I, H * W, is_channels_last(x))
    chunks = cdiv(H * W, t["BP"] * STEPS)
    dw = torch.empty([N, chunks, O, I], dtype=torch.float32, device=x.device)
    launch(
        _weight_gradient, N * chunks * cdiv(I, t["BC"]),
        *small(dy), x, dw, I, H * W, O, *t.values(), STEPS,
    )  # fmt: skip
    return dw.sum(1)


@kept
def forward_tile(I: int, P: int, channels_last: bool) -> dict:
    """The tile of `_forward`, whose channels are summed up last, across threads.

    With channels last it has half of them at most, or that sum would cost as much as its terms; with channels first,
    whole lines of pixels and no more, so that there are programs enough at low resolutions.
    """
    widest = next_power_of_2(I)
    BC = max(8, min(32, widest // 2)) if channels_last else min(64, widest)
    BP = min(TILE // BC, next_power_of_2(P))
    return {"CHANNELS_LAST": channels_last, "BP": BP, "BC": min(TILE // BP, widest)}
