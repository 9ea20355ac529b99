"""Triton kernels of the modulated 3x3 convolution as an implicit matrix product, and their launches. Nothing here knows of autograd.

Images are channels last, `[N, H, W, C]` in memory; weights `[O, 3, 3, I]`, which is PyTorch's channels last of
`[O, I, 3, 3]`. Boxes of pixels are fetched by descriptors (on Hopper by the tensor memory accelerator), which put zeros
outside the image: this is the padding. The pixels are the columns of the product:

    acc[o, p] = sum over taps r, s and channels i of w[o, r, s, i] x[p + (r, s), i]

because only its right operand can be a reshaped box and still be read from shared memory.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._launch import launch
from .._operators import opaque
from .._tuning import architecture


@triton.jit
def _forward(
    x, w, d, noise, bias, y, N, H, W, weights_per_sample, noise_stride,
    I: tl.constexpr, O: tl.constexpr, ALPHA: tl.constexpr, GAIN: tl.constexpr, CLAMP: tl.constexpr,
    TRANSPOSED: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    # sizes of channels are compile-time, so that ptxas knows the loop to run and lets wgmma overlap
    KI: tl.constexpr = I // BI
    columns, rows = tl.cdiv(W, BW), tl.cdiv(H, BH)
    program = tl.program_id(0)
    o0 = program % (O // BO) * BO
    box = program // (O // BO)
    w0, h0, n = box % columns * BW, box // columns % rows * BH, box // (columns * rows)
    xs = tl.make_tensor_descriptor(x, [N, H, W, I], [H * W * I, W * I, I, 1], [1, BH, BW, BI])
    first = n.to(tl.int64) * weights_per_sample * (O * 9 * I)
    if TRANSPOSED:
        # the forward's weight as it lies, [I, 3, 3, O] seen from here
        ws = tl.make_tensor_descriptor(w + first, [I, 9 * O], [9 * O, 1], [BI, BO])
    else:
        ws = tl.make_tensor_descriptor(w + first, [O, 9 * I], [9 * I, 1], [BO, BI])
    acc = tl.zeros([BO, BH * BW], tl.float32)
    # the taps run fastest: the nine boxes of the same channels overlap, and meet in the cache
    for k in tl.range(0, 9 * KI):
        i0 = k // 9 * BI
        tap = k % 9
        pixels = xs.load([n, h0 + tap // 3 - 1, w0 + tap % 3 - 1, i0]).reshape(BH * BW, BI)
        if TRANSPOSED:
            weights = ws.load([i0, (8 - tap) * O + o0]).T
        else:
            weights = ws.load([o0, tap * I + i0])
        acc = tl.dot(weights, pixels.T, acc)
    p, o = tl.arange(0, BH * BW), o0 + tl.arange(0, BO)
    h, v = h0 + p // BW, w0 + p % BW
    inside = (h < H) & (v < W)
    if d is not None:
        acc *= tl.load(d + n.to(tl.int64) * O + o).to(tl.float32)[:, None]
    if noise is not None:
        at = noise + n.to(tl.int64) * noise_stride + h * W + v
        acc += tl.load(at, mask=inside, other=0.0).to(tl.float32)[None, :]
    if bias is not None:
        acc += tl.load(bias + o).to(tl.float32)[:, None]
    if ALPHA != 1:
        acc = tl.where(acc > 0, acc, acc * ALPHA)
    if GAIN != 1:
        acc *= GAIN
    if CLAMP is not None:
        acc = tl.where(acc > CLAMP, CLAMP, tl.where(acc < -CLAMP, -CLAMP, acc))
    out = y + n.to(tl.int64) * H * W * O + (h * W + v)[:, None] * O + o[None, :]
    tl.store(out, acc.to(y.dtype.element_ty).T, mask=inside[:, None])


@triton.jit
def _weight_gradient(
    x, dy, partial, N, steps,
    H: tl.constexpr, W: tl.constexpr, I: tl.constexpr, O: tl.constexpr,
    BN: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    # a program: one tap, a tile of the weight, a run of boxes of pixels
    program, part = tl.program_id(0), tl.program_id(1)
    tap = program % 9
    i0 = program // 9 % (I // BI) * BI
    o0 = program // 9 // (I // BI) * BO
    columns: tl.constexpr = W // BW
    rows: tl.constexpr = H // BH
    # boxes are whole runs of memory, so that those of dy are rows of a matrix
    gradients = tl.make_tensor_descriptor(dy, [N * H * W, O], [O, 1], [BN * BH * BW, BO])
    images = tl.make_tensor_descriptor(x, [N, H, W, I], [H * W * I, W * I, I, 1], [BN, BH, BW, BI])
    acc = tl.zeros([BO, BI], tl.float32)
    tl.assume(steps > 0)
    for step in tl.range(0, steps):
        box = part * steps + step
        w0, h0, n = box % columns * BW, box // columns % rows * BH, box // (columns * rows) * BN
        # beyond the last box, both lie outside and are zeros
        a = gradients.load([(n * H + h0) * W + w0, o0])
        b = images.load([n, h0 + tap // 3 - 1, w0 + tap % 3 - 1, i0]).reshape(BN * BH * BW, BI)
        acc = tl.dot(a.T, b, acc)
    o, i = o0 + tl.arange(0, BO), i0 + tl.arange(0, BI)
    out = partial + part.to(tl.int64) * (O * 9 * I) + ((o * 9 + tap) * I)[:, None] + i[None, :]
    tl.store(out, acc)


@dataclass(frozen=True)
class Tile:
    """A box of pixels by output channels by input channels, and who works on it."""

    BH: int
    BW: int
    BO: int
    BI: int
    num_warps: int
    num_stages: int

    @property
    def blocks(self) -> dict:
        """As the kernel takes it."""
        return dict(BH=self.BH, BW=self.BW, BO=self.BO, BI=self.BI)


def why_not(x: Tensor, O: int) -> str | None:
    """The reason these kernels cannot take channels-last images `x` `[N, I, H, W]` to O channels, or None if they can."""
    N, I, H, W = x.shape
    if x.element_size() != 2:
        return f"its dtype is {x.dtype}, the kernels take 16 bits"
    # 32 rows would leave half of a wgmma idle, and the compiler then takes none
    if I % 64 or O % 64:
        return f"channels must be multiples of 64, they are {I} and {O}"
    if H % 8 or W % 16 and W != 8:
        return f"height must be a multiple of 8 and width one of 16, or 8, they are {H} and {W}"
    if N * H * W >= 2**31 or N == 0:
        return f"{N} samples of {H} x {W} pixels are none, or too many for 32-bit coordinates"
    return None


def tile(H: int, W: int, O: int, arch: str = "sm_90") -> Tile:
    """The tile for a layer, of those that neither spill nor serialize (bench/static). Not measured on a GPU."""
    BW = min(16, W & -W)
    high = triton.next_power_of_2(H)
    if O % 128 == 0 and H * W >= 32 * 32:
        return Tile(256 // BW, BW, 128, 64, 8, 3)
    if O % 128 == 0:
        return Tile(min(128 // BW, high), BW, 128, 64, 8, 3)
    return Tile(min((128 if arch == "sm_80" else 256) // BW, high), BW, 64, 64, 4, 3)


@opaque()
def forward(
    x: Tensor, w: Tensor, d: Tensor | None, noise: Tensor | None, bias: Tensor | None,
    alpha: float = 1.0, gain: float = 1.0, clamp: float | None = None, blocks: Tile | None = None,
) -> Tensor:  # fmt: skip
    """clamp(gain * lrelu(d * conv(x, w) + noise + b)), 3x3, stride 1, padded to the size of x.

    Args:
        x: `[N, I, H, W]`, channels last; see `why_not`.
        w: `[O, I, 3, 3]`, channels last; or `[N, O, I, 3, 3]`, of each sample's own, each channels last.
        d: `[N, O]`.
        noise: `[N, H W]` or `[1, H W]`.
        bias: `[O]`.
        blocks: None for the one chosen ahead of time.
    """
    return _run(x, w, w.shape[-4], False, d, noise, bias, alpha, gain, clamp, blocks)


@opaque()
def data_gradient(dy: Tensor, w: Tensor, blocks: Tile | None = None) -> Tensor:
    """The gradient of x `[N, I, H, W]`, from that of y `[N, O, H, W]` and the very weight of the forward."""
    return _run(dy, w, w.shape[-3], True, None, None, None, 1.0, 1.0, None, blocks)


def _run(x, w, O, transposed, d, noise, bias, alpha, gain, clamp, blocks):
    N, I, H, W = x.shape
    # they may come expanded or as slices
    d, noise, bias = (None if t is None else t.contiguous() for t in (d, noise, bias))
    t = blocks or tile(H, W, O, architecture(x.device))
    y = torch.empty([N, O, H, W], dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    noise_stride = 0 if noise is None or len(noise) == 1 else H * W
    launch(
        _forward, N * triton.cdiv(H, t.BH) * triton.cdiv(W, t.BW) * (O // t.BO),
        x, w, d, noise, bias, y, N, H, W, int(w.ndim == 5), noise_stride, I, O, alpha, gain, clamp,
        transposed, *t.blocks.values(), num_warps=t.num_warps, num_stages=t.num_stages,
    )  # fmt: skip
    return y


@dataclass(frozen=True)
class Split:
    """How a weight gradient is cut up: boxes of BN samples, BH x BW pixels; tiles of the weight; runs of boxes."""

    BN: int
    BH: int
    BW: int
    BO: int
    BI: int
    parts: int
    num_warps: int = 8
    num_stages: int = 3

    @property
    def blocks(self) -> dict:
        """As the kernel takes it."""
        return dict(BN=self.BN, BH=self.BH, BW=self.BW, BO=self.BO, BI=self.BI)


# multiprocessors, and how many programs with large and with small tiles each of them holds
SLOTS = {"sm_80": (108, 1, 3), "sm_90": (132, 2, 4)}

# the most workspaces of a weight gradient
PARTS = 64


def split(N: int, H: int, W: int, I: int, O: int, arch: str = "sm_90", pixels: int = 64) -> Split:
    """The cut for a layer, of boxes of at most `pixels`. Not measured on a GPU.

    It depends on the shape and the architecture alone, and so does the order of the sums.
    """
    BW = min(pixels, W & -W)
    BH = min(pixels // BW, H & -H) if BW == W else 1
    BN = pixels // (BW * BH) if BH == H and BW == W else 1
    BO, BI = (min(128, n & -n) for n in (O, I))
    large = BO * BI > 64 * 64
    boxes = triton.cdiv(N, BN) * (H // BH) * (W // BW)
    tiles = 9 * (O // BO) * (I // BI)
    multiprocessors, of_large, of_small = SLOTS.get(arch, SLOTS["sm_90"])
    slots = multiprocessors * (of_large if large else of_small)

    def cost(parts: int) -> float:
        """In FLOPs: those of whole waves, and what a workspace's way through memory is worth."""
        steps = triton.cdiv(boxes, parts)
        whole_waves = triton.cdiv(tiles * parts, slots) * slots * steps * BN * BH * BW * BO * BI * 2
        return whole_waves + 267 * parts * 2 * 4 * 9 * O * I

    return Split(BN, BH, BW, BO, BI, min(range(1, min(PARTS, boxes) + 1), key=cost), 8 if large else 4)


@opaque()
def weight_gradient(x: Tensor, dy: Tensor, blocks: Split | None = None) -> Tensor:
    """The gradient of w `[O, I, 3, 3]`, fp32, channels last; the same bits every time.

    Each run of boxes leaves its sum in a workspace of its own; a second pass adds them in order.
    """
    (N, I, H, W), O = x.shape, dy.shape[1]
    c = blocks or split(N, H, W, I, O, architecture(x.device))
    boxes = triton.cdiv(N, c.BN) * (H // c.BH) * (W // c.BW)
    steps = triton.cdiv(boxes, c.parts)
    partial = torch.empty([c.parts, O, 3, 3, I], dtype=torch.float32, device=x.device)
    launch(
        _weight_gradient, (9 * (O // c.BO) * (I // c.BI), c.parts),
        x, dy, partial, N, steps, H, W, I, O, *c.blocks.values(), num_warps=c.num_warps, num_stages=c.num_stages,
    )  # fmt: skip
    return partial.sum(0).permute(0, 3, 1, 2)
