"""Triton kernels of 3x3 convolutions as implicit matrix products, and their launches. Nothing here knows of autograd.

Images are channels last, `[N, H, W, C]` in memory; weights `[O, 3, 3, I]`, which is PyTorch's channels last of
`[O, I, 3, 3]`. Boxes of pixels are fetched by descriptors (on Hopper by the tensor memory accelerator), which put zeros
outside the image: this is the padding. The pixels are the columns of the product:

    acc[o, p] = sum over taps r, s and channels i of w[o, r, s, i] x[stride * p + (r, s), i]

because only its right operand can be a reshaped box and still be read from shared memory. Descriptors know no strides:
every other pixel is a box of the view `[N, H / 2, 2, W / 2, 2 C]`, for which H and W have to be even.

Before Hopper, descriptors become loads. Triton makes them asynchronous copies only where nothing but the product's own
transposition stands between load and product: with POINTERS, a load makes the operand in the order the product takes it.

Few channels make a poor matrix. There, neighbouring pixels are taken for channels: two pixels of 32 channels for one of
64, which is the same memory; and 6x6 convolutions of stride 2, which are a 3x3 convolution and the filter before it in
one, are 3x3 convolutions between images of fewer pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._fallback import or_else
from .._launch import are_taken, launch
from .._layout import sample_stride, small
from .._operators import opaque
from .._tuning import LEAST_SHARED, LIMITS, Limits, cdiv, kept, limits, next_power_of_2
from ..activation.kernel import ended
from ..resampling.geometry import Pair
from ..resampling.tail import Tail
from . import formulas
from .spec import Geometry


@triton.jit
def _images(
    x, N, H, W, C: tl.constexpr, STRIDE: tl.constexpr,
    BN: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The descriptor of images `[N, STRIDE H, STRIDE W, C]`, of boxes of every STRIDE-th pixel."""
    if STRIDE == 2:
        images = tl.make_tensor_descriptor(
            x, [N, H, 2, W, 2 * C], [4 * H * W * C, 4 * W * C, 2 * W * C, 2 * C, 1], [BN, BH, 1, BW, BC]
        )
    else:
        images = tl.make_tensor_descriptor(x, [N, H, W, C], [H * W * C, W * C, C, 1], [BN, BH, BW, BC])
    return images


@triton.jit
def _pixels(
    images, n, h, w, r, s, c, C: tl.constexpr, STRIDE: tl.constexpr, TAPS: tl.constexpr,
    BN: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """[BN * BH * BW, BC] of them, from (STRIDE h + r, STRIDE w + s) on; of 6x6 taps, two columns of pixels are one."""
    if TAPS == 6:
        box = images.load([n, h + r // 2, r % 2, w + s, c])
    elif STRIDE == 2:
        box = images.load([n, h + r // 2, r % 2, w + s // 2, s % 2 * C + c])
    else:
        box = images.load([n, h + r, w + s, c])
    return box.reshape(BN * BH * BW, BC)


@triton.jit
def _loaded_pixels(
    x, n, h, w, r, s, c, N, H, W, C: tl.constexpr, STRIDE: tl.constexpr, TAPS: tl.constexpr,
    BN: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The same as `_pixels` by loads of their own addresses, zeros outside; H and W as `_images` takes them."""
    p = tl.arange(0, BN * BH * BW)
    channels = c + tl.arange(0, BC)
    row, inner = h + p // BW % BH, w + p % BW
    if TAPS == 6:
        row, phase, inner = row + r // 2, r % 2, inner + s
    elif STRIDE == 2:
        row, phase, inner = row + r // 2, r % 2, inner + s // 2
        channels += s % 2 * C
    else:
        row, phase, inner = row + r, 0, inner + s
    sample = n + p // (BH * BW)
    inside = (sample < N) & (row >= 0) & (row < H) & (inner >= 0) & (inner < W)
    at = ((sample.to(tl.int64) * H + row) * STRIDE + phase) * W + inner
    return tl.load(x + at[:, None] * (STRIDE * C) + channels[None, :], mask=inside[:, None], other=0.0)


@triton.jit
def _loaded_weights(w, row, column, C: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr):
    """[BO, BI] of the transpose of a matrix of C columns, from its (row, column) on."""
    i, o = row + tl.arange(0, BI), column + tl.arange(0, BO)
    return tl.load(w + (i[None, :] * C + o[:, None]))


@triton.jit
def _convolution(
    x, w, d, noise, bias, y, N, H, W, weights_per_sample, noise_stride,
    I: tl.constexpr, O: tl.constexpr, ALPHA: tl.constexpr, GAIN: tl.constexpr, CLAMP: tl.constexpr,
    TAPS: tl.constexpr, STRIDE: tl.constexpr, TRANSPOSED: tl.constexpr,
    PAIRED: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    BH: tl.constexpr, BW: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, POINTERS: tl.constexpr,
):  # fmt: skip
    """H x W pixels of O channels, each of them PH x PW pixels of fewer channels; those of x are so too where PAIRED."""
    # sizes of channels are compile-time, so that ptxas knows the loop to run and lets wgmma overlap
    COUNT: tl.constexpr = 3 * TAPS
    DEPTH: tl.constexpr = I * TAPS // 3
    columns, rows = tl.cdiv(W, BW), tl.cdiv(H, BH)
    program = tl.program_id(0)
    o0 = program % (O // BO) * BO
    box = program // (O // BO)
    w0, h0, n = box % columns * BW, box // columns % rows * BH, box // (columns * rows)
    # padded by one; 3 x 3 at stride 2 not at all, and the last row and column are one more than is read
    PAD: tl.constexpr = 1 if TAPS == 6 else 2 - STRIDE
    images = _images(x, N, H + 1 - PAD, W + 1 - PAD, I, STRIDE, 1, BH, BW, BI)
    first = n.to(tl.int64) * weights_per_sample * (O * COUNT * DEPTH)
    w += first
    if TRANSPOSED and not POINTERS:
        # the weight of the convolution as it lies, [I, 3, 3, O] seen from here
        ws = tl.make_tensor_descriptor(w, [I, 9 * O], [9 * O, 1], [BI, BO])
    elif not TRANSPOSED:
        ws = tl.make_tensor_descriptor(w, [O, COUNT * DEPTH], [COUNT * DEPTH, 1], [BO, BI])
    acc = tl.zeros([BO, BH * BW], tl.float32)
    for k in tl.range(0, 12 if PAIRED else COUNT * (DEPTH // BI)):
        if PAIRED:
            # a pixel has no weight for one that is two away: of a pair to the side, for one of the two
            tap, i0 = k // 4 * 3 + (k % 4 + 1) // 2, (k + 1) % 2 * BI
        else:
            # the taps run fastest: the boxes of the same channels overlap, and meet in the cache
            tap, i0 = k % COUNT, k // COUNT * BI
        pixels = _pixels(images, n, h0 - PAD, w0 - PAD, tap // 3, tap % 3, i0, I, STRIDE, TAPS, 1, BH, BW, BI)
        if TRANSPOSED and POINTERS:
            weights = _loaded_weights(w, i0, (8 - tap) * O + o0, 9 * O, BO, BI)
        elif TRANSPOSED:
            weights = ws.load([i0, (8 - tap) * O + o0]).T
        else:
            weights = ws.load([o0, tap * DEPTH + i0])
        acc = tl.dot(weights, pixels.T, acc)
    C: tl.constexpr = O // (PH * PW)
    p, o = tl.arange(0, BH * BW), o0 + tl.arange(0, BO)
    h, v = h0 + p // BW, w0 + p % BW
    inside = (h < H) & (v < W)
    if d is not None:
        acc *= tl.load(d + n.to(tl.int64) * C + o % C).to(tl.float32)[:, None]
    if noise is not None:
        at = noise + n.to(tl.int64) * noise_stride + h * PH * W * PW + v * PW
        for phase in tl.static_range(PH * PW):
            one = tl.load(at + (phase // PW * W * PW + phase % PW), mask=inside, other=0.0).to(tl.float32)[None, :]
            acc = tl.where((o // C == phase)[:, None], acc + one, acc)
    if bias is not None:
        acc += tl.load(bias + o % C).to(tl.float32)[:, None]
    acc = ended(acc, ALPHA, GAIN, CLAMP)
    # the channels of a row of pixels lie side by side
    row = o if PH == 1 else o // (PW * C) * (W * PW * C) + o % (PW * C)
    out = y + n.to(tl.int64) * H * W * O + (h * PH * W + v)[:, None] * (PW * C) + row[None, :]
    tl.store(out, acc.to(y.dtype.element_ty).T, mask=inside[:, None])


@triton.jit
def _transposed(
    x, w, y, N, H, W, first_h, first_w, end_h, end_w, I: tl.constexpr, O: tl.constexpr,
    BH: tl.constexpr, BW: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, POINTERS: tl.constexpr,
):  # fmt: skip
    """y[2 h + r, 2 w + s] += w[r, s] x[h, w], for y of 2 H + 2 by 2 W + 2; of it, from twice `first` to twice `end`.

    A box of x makes four of y, one of each parity of rows and columns, and a program one of these: parity 0 sums over
    two taps, parity 1 over one, and the most work comes first.
    """
    KI: tl.constexpr = I // BI
    each = tl.num_programs(0) // 4
    parity, program = tl.program_id(0) // each, tl.program_id(0) % each
    odd_h, odd_w = parity // 2, parity % 2
    o0 = program % (O // BO) * BO
    box = program // (O // BO)
    columns, rows = tl.cdiv(end_w - first_w, BW), tl.cdiv(end_h - first_h, BH)
    w0, h0, n = first_w + box % columns * BW, first_h + box // columns % rows * BH, box // (columns * rows)
    images = _images(x, N, H, W, I, 1, 1, BH, BW, BI)
    if not POINTERS:
        # the weight of the convolution as it lies, [I, 3, 3, O] seen from here
        ws = tl.make_tensor_descriptor(w, [I, 9 * O], [9 * O, 1], [BI, BO])
    acc = tl.zeros([BO, BH * BW], tl.float32)
    taps = (2 - odd_h) * (2 - odd_w)
    tl.assume(taps > 0)
    for k in tl.range(0, taps * KI):
        i0 = k // taps * BI
        r, s = k % taps // (2 - odd_w), k % taps % (2 - odd_w)
        pixels = _pixels(images, n, h0 - r, w0 - s, 0, 0, i0, I, 1, 3, 1, BH, BW, BI)
        column = ((odd_h + 2 * r) * 3 + odd_w + 2 * s) * O + o0
        if POINTERS:
            weights = _loaded_weights(w, i0, column, 9 * O, BO, BI)
        else:
            weights = ws.load([i0, column]).T
        acc = tl.dot(weights, pixels.T, acc)
    p, o = tl.arange(0, BH * BW), o0 + tl.arange(0, BO)
    h, v = h0 + p // BW, w0 + p % BW
    out = y + n.to(tl.int64) * (4 * (H + 1) * (W + 1) * O)
    out += ((2 * h + odd_h) * (2 * W + 2) + 2 * v + odd_w)[:, None] * O + o[None, :]
    tl.store(out, acc.to(y.dtype.element_ty).T, mask=((h < end_h) & (v < end_w))[:, None])


@triton.jit
def _weight_gradient(
    x, dy, partial, N, steps,
    H: tl.constexpr, W: tl.constexpr, I: tl.constexpr, O: tl.constexpr, TAPS: tl.constexpr, STRIDE: tl.constexpr,
    BN: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, POINTERS: tl.constexpr,
):  # fmt: skip
    # a program: one tap, a tile of the weight, a run of boxes of pixels
    COUNT: tl.constexpr = 3 * TAPS
    DEPTH: tl.constexpr = I * TAPS // 3
    program, part = tl.program_id(0), tl.program_id(1)
    tap = program % COUNT
    i0 = program // COUNT % (DEPTH // BI) * BI
    o0 = program // COUNT // (DEPTH // BI) * BO
    columns: tl.constexpr = W // BW
    rows: tl.constexpr = H // BH
    PAD: tl.constexpr = 1 if TAPS == 6 else 2 - STRIDE
    # boxes are whole runs of memory, so that those of dy are rows of a matrix
    if not POINTERS:
        gradients = tl.make_tensor_descriptor(dy, [N * H * W, O], [O, 1], [BN * BH * BW, BO])
        images = _images(x, N, H + 1 - PAD, W + 1 - PAD, I, STRIDE, BN, BH, BW, BI)
    acc = tl.zeros([BO, BI], tl.float32)
    tl.assume(steps > 0)
    for step in tl.range(0, steps):
        box = part * steps + step
        w0, h0, n = box % columns * BW, box // columns % rows * BH, box // (columns * rows) * BN
        # beyond the last box, both lie outside and are zeros
        if POINTERS:
            p, o = (n * H + h0) * W + w0 + tl.arange(0, BN * BH * BW), o0 + tl.arange(0, BO)
            a = tl.load(dy + (p.to(tl.int64)[None, :] * O + o[:, None]), mask=(p < N * H * W)[None, :], other=0.0)
            b = _loaded_pixels(
                x, n, h0 - PAD, w0 - PAD, tap // 3, tap % 3, i0, N, H + 1 - PAD, W + 1 - PAD, I, STRIDE, TAPS, BN, BH, BW, BI
            )  # fmt: skip
        else:
            a = gradients.load([(n * H + h0) * W + w0, o0])
            b = _pixels(images, n, h0 - PAD, w0 - PAD, tap // 3, tap % 3, i0, I, STRIDE, TAPS, BN, BH, BW, BI)
            # after both loads, or each of them waits at a barrier of its own
            a = a.T
        acc = tl.dot(a, b, acc)
    o, i = o0 + tl.arange(0, BO), i0 + tl.arange(0, BI)
    out = partial + part.to(tl.int64) * (O * COUNT * DEPTH) + ((o * COUNT + tap) * DEPTH)[:, None] + i[None, :]
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

    def shared(self, device: Limits) -> int:
        """Return the most bytes of shared memory that a program takes; bench/static compares it with what compilers take."""
        pixels = self.BH * self.BW
        # the result passes through shared memory as well, on its way to the order of the image
        return max(_buffers(pixels + self.BO, self.BI, self.num_stages, device), pixels * self.BO * 2 * 5 // 4)


def _buffers(lines: int, depth: int, num_stages: int, device: Limits) -> int:
    """Bytes of the operands that are under way, of 16 bits, and of the barriers they are waited for at."""
    return (num_stages if device.reads_shared else num_stages - 1) * lines * depth * 2 + BARRIERS


# bytes; 48 were the most that was seen
BARRIERS = 256


# Triton compiles products for older GPUs to scalar arithmetic, with 16 KB of stack for each thread
LEAST_CAPABILITY = 80


def why_not_device(device: Limits) -> str:
    """The reason these kernels cannot run on a device of less than `LEAST_CAPABILITY`."""
    if device.capability == 0:
        return "the kernels use the matrix instructions of NVIDIA's GPUs"
    return (
        f"the kernels need matrix instructions of compute capability {LEAST_CAPABILITY / 10}, "
        f"the GPU has {device.capability / 10}"
    )


# what the kernels take: height and width of the kernel, stride; and the padding for it
PADDINGS = {(3, 3, 1): 1, (3, 3, 2): 0, (6, 6, 2): 2}


def why_not(
    dtype: torch.dtype, shape: tuple[int, int, int, int], O: int, geometry: Geometry, device: Limits = LIMITS[90]
) -> str | None:
    """The reason these kernels cannot take images of `shape` `[N, I, H, W]` to O channels, or None if they can.

    What holds of a convolution holds of the transposed one and of the gradient of the weight.
    """
    N, I, H, W = shape
    if device.capability < LEAST_CAPABILITY:
        return why_not_device(device)
    if dtype.itemsize != 2:
        return f"its dtype is {dtype}, the kernels take 16 bits"
    (kh, kw), stride, transposed = geometry.kernel, geometry.stride, geometry.transposed
    if geometry.groups != 1 or (kh, kw, stride) not in PADDINGS:
        return (
            "the kernels are of one group, of 3 x 3 taps at stride 1 or 2, and of 6 x 6 at stride 2, "
            f"not of {geometry.groups}, {kh} x {kw} and {stride}"
        )
    pad = PADDINGS[kh, kw, stride]
    if geometry.padding != (pad, pad):
        return f"of {kh} x {kw} taps at stride {stride}, the kernels pad by {pad}, not by {geometry.padding}"
    if stride == 2 and any(n % 2 for n in (geometry.output_size((H, W)) if transposed else (H, W))):
        return "at stride 2, the larger images must have even height and width"
    H, W = _smaller((H, W), geometry)
    small, large = (I, O) if transposed else (O, I)
    if (small % 64 or large % (32 if kh == 6 else 64)) and not _is_paired(I, O, geometry):
        return (
            f"channels must be multiples of 64 (of 32 in the larger images of 6 x 6 taps; or 32 and 32 at stride 1), "
            f"they are {I} and {O}"
        )
    pixels = W / 2 if _is_paired(I, O, geometry) else W
    if H % 8 or pixels % 16 and pixels != 8:
        sizes = "height must be a multiple of 8 and width one of 16, or 8 (twice as much for 32 channels)"
        return f"{sizes}, they are {H} and {W}"
    if N * H * W >= 2**31 or N == 0:
        return f"{N} samples of {H} x {W} pixels are none, or too many for 32-bit coordinates"
    # of y, a transposed 3x3 convolution counts four pixels for each of x, and a row and a column of x more
    largest = max(small * H * W, large * stride**2 * (H + stride - 1) * (W + stride - 1))
    if largest >= 2**31:
        return f"a sample of {largest} elements is too large for 32-bit offsets"
    return None


def _is_paired(I: int, O: int, geometry: Geometry) -> bool:
    """Whether two pixels side by side are taken for one of twice the channels."""
    return geometry.stride == 1 and I == O == 32


def _smaller(size: Pair, geometry: Geometry) -> Pair:
    """Height and width of the input, or of what comes of it where that is smaller: there pixels are boxed."""
    return size if geometry.transposed else geometry.output_size(size)


@kept
def tile(H: int, W: int, I: int, O: int, device: Limits = LIMITS[90]) -> Tile:
    """The tile for a layer, of those that neither spill nor serialize (bench/static), or the next smaller one that fits
    the device's shared memory. Not measured on a GPU.

    H x W pixels of O channels, summed over runs of I.
    """
    BW = min(16, W & -W)
    high = next_power_of_2(H)
    # nine rounds and no more, the compiler would unroll where operands are in registers, and spill
    BI, stages = (32, 4) if I % 64 or I == 64 and not device.reads_shared else (64, 3)
    if O % 128 == 0 and H * W >= 32 * 32:
        widest = Tile(256 // BW, BW, 128, BI, 8, stages)
    elif O % 128 == 0:
        widest = Tile(min(128 // BW, high), BW, 128, BI, 8, stages)
    else:
        widest = Tile(min((256 if device.reads_shared else 128) // BW, high), BW, 64, BI, 4, stages)
    return next(t for t in _smaller_tiles(widest) if t.shared(device) <= device.shared or t.shared(device) <= LEAST_SHARED)


def _smaller_tiles(widest: Tile) -> Iterator[Tile]:
    """`widest`, and smaller ones, those first that load the least for each product; the last fits any GPU."""
    yield widest
    for BO in {widest.BO: None, 64: None}:
        for BH in (widest.BH, widest.BH // 2, widest.BH // 4):
            if BH != widest.BH and BH * widest.BW < 64:
                break
            for BI in {widest.BI: None, 32: None}:
                for stages in range(widest.num_stages, 1, -1):
                    num_warps = 8 if BO == 128 and BH * widest.BW >= 128 else 4
                    yield Tile(BH, widest.BW, BO, BI, min(num_warps, widest.num_warps), stages)


@opaque()
@or_else(formulas.convolve)
def convolve(
    x: Tensor, w: Tensor, geometry: Geometry, tail: Tail = Tail(), blocks: Tile | None = None, strip: int = 128
) -> Tensor:
    """clamp(gain * lrelu(d * conv(x, w) + noise + b)), or the transposed convolution.

    Args:
        x: `[N, I, H, W]`, channels last; see `why_not`.
        w: `[O, I, h, w]`, channels last; or `[N, O, I, 3, 3]`, of each sample's own, each channels last. Of a
            transposed convolution it is the very weight of the convolution, `[I, O, h, w]`.
        tail: What follows; nothing may follow a transposed 3x3 convolution.
        blocks: None for the tile chosen ahead of time.
        strip: Pixels of the tiles that make the last rows and columns of a transposed 3x3 convolution of stride 2.
    """
    x, w = _on_16_bytes(x), _on_16_bytes(w)
    I, O = x.shape[1], w.shape[-3 if geometry.transposed else -4]
    H, W = geometry.output_size(x.shape[2:])
    y = torch.empty([len(x), O, H, W], dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if _is_paired(I, O, geometry):
        _run(x, _of_pairs(w), y, geometry, tail, blocks, (1, 2))
    elif geometry.stride == 1 or not geometry.transposed:
        _run(x, w, y, geometry, tail, blocks)
    elif geometry.kernel == (6, 6):
        _run(x, _by_phase(w), y, Geometry((3, 3), padding=(1, 1)), tail, blocks, (2, 2))
    else:
        _run_transposed(x, w, y, blocks or tile(*x.shape[2:], I, O, limits(x.device)), strip)
    return y


def _on_16_bytes(x: Tensor) -> Tensor:
    """`x`, or a copy of it where it does not begin at a multiple of 16 bytes, as descriptors need.

    A view may not, nor may memory of somebody else's, which begins anywhere.
    """
    # what only has a shape has no address: its memory would begin well
    begin = x.storage_offset() * x.element_size() if are_taken() else x.data_ptr()
    return x.clone() if begin % 16 else x


def _run(
    x: Tensor, w: Tensor, y: Tensor, geometry: Geometry, tail: Tail, t: Tile | None, pixels: Pair = (1, 1)
) -> None:
    """One launch. A column of the product may be several `pixels` of y, rows by columns; they are then so many rows."""
    N, I, O, (H, W), (PH, PW) = len(x), x.shape[1], y.shape[1] * pixels[0] * pixels[1], y.shape[2:], pixels
    d, noise, bias = small(tail.demod, tail.noise, tail.bias)
    paired = pixels == (1, 2)
    H, W, I, taps = H // PH, W // PW, 2 * I if paired else I, geometry.kernel[0]
    t = t or tile(H, W, I // 2 if paired else I * taps // 3, O, limits(x.device))
    programs = N * cdiv(H, t.BH) * cdiv(W, t.BW) * (O // t.BO)
    launch(
        _convolution, programs,
        x, w, d, noise, bias, y, N, H, W, int(w.ndim == 5), sample_stride(noise), I, O,
        tail.alpha, tail.gain, tail.clamp, taps, geometry.stride, geometry.transposed, paired, PH, PW,
        *t.blocks.values(), use_pointers(x.device),
        num_warps=t.num_warps, num_stages=t.num_stages,
    )  # fmt: skip


def use_pointers(device: torch.device) -> bool:
    """Whether the kernels load by addresses of their own what would not be copied asynchronously by a descriptor."""
    return not limits(device).has_tma


def _by_phase(w: Tensor) -> Tensor:
    """The weight `[I, O, 6, 6]` of a transposed convolution of stride 2 as `[4 O, I, 3, 3]`, to four pixels at once.

        y[2 h + p] = sum over r of w[p + 4 - 2 r] x[h + r - 1]
    """
    I, O = w.shape[:2]
    w = w.reshape(I, O, 3, 2, 3, 2).flip([2, 4]).permute(3, 5, 1, 2, 4, 0)
    return w.reshape(4 * O, 3, 3, I).permute(0, 3, 1, 2)


def _of_pairs(w: Tensor) -> Tensor:
    """The 3x3 weight `[O, I, 3, 3]` as one `[2 O, 2 I, 3, 3]` between pixels taken two by two along a row."""
    O, I = w.shape[:2]
    columns = w.new_zeros([2, O, 3, 6, I])
    for right, rows in enumerate(columns):
        rows[:, :, 1 + right : 4 + right] = w.permute(0, 2, 3, 1)
    return columns.reshape(2 * O, 3, 3, 2 * I).permute(0, 3, 1, 2)


def _from_pairs(dw: Tensor) -> Tensor:
    """The gradient of the 3x3 weight, from that of what `_of_pairs` makes of it."""
    O, I = dw.shape[0] // 2, dw.shape[1] // 2
    left, right = dw.permute(0, 2, 3, 1).reshape(2, O, 3, 6, I)
    return (left[:, :, 1:4] + right[:, :, 2:5]).permute(0, 3, 1, 2)


def _run_transposed(x: Tensor, w: Tensor, y: Tensor, t: Tile, strip: int) -> None:
    """The pixels of y that there are four of for each of x; then the last two rows, and the last two columns."""
    (N, I, H, W), O = x.shape, y.shape[1]
    # in no more memory than the tile
    strip = min(strip, t.BH * t.BW)
    below, beside = replace(t, BH=1, BW=min(strip, W & -W)), replace(t, BH=min(strip, H & -H), BW=1)
    parts = ((t, 0, 0, H, W), (below, H, 0, H + 1, W), (beside, 0, W, H + 1, W + 1))
    for part, first_h, first_w, end_h, end_w in parts:
        boxes = cdiv(end_h - first_h, part.BH) * cdiv(end_w - first_w, part.BW)
        launch(
            _transposed, 4 * N * boxes * (O // t.BO),
            x, w, y, N, H, W, first_h, first_w, end_h, end_w, I, O, *part.blocks.values(),
            use_pointers(x.device),
            num_warps=t.num_warps, num_stages=t.num_stages,
        )  # fmt: skip


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

    def shared(self, device: Limits) -> int:
        """Return the most bytes of shared memory that a program takes."""
        return _buffers(self.BO + self.BI, self.BN * self.BH * self.BW, self.num_stages, device)


# programs that the registers of a multiprocessor hold, by the size of their tiles (bench/static)
PROGRAMS = {128 * 128: 2, 128 * 64: 3, 64 * 64: 4}

# the most workspaces of a weight gradient
PARTS = 64


@kept
def split(
    N: int, H: int, W: int, I: int, O: int, taps: int = 9, device: Limits = LIMITS[90], pixels: int = 64
) -> Split:
    """The cut for a layer, of boxes of at most `pixels`. Not measured on a GPU.

    It depends on the shape and the kind of device alone, and so does the order of the sums.
    """
    BO, BI = (min(128, n & -n) for n in (O, I))
    cut = _cut(N, H, W, BO, BI, pixels)
    # fewer pixels at a time first, then smaller tiles; the last fits any GPU
    while cut.shared(device) > max(device.shared, LEAST_SHARED) and (pixels > 16 or BO > 32):
        pixels, BO, BI = (pixels // 2, BO, BI) if pixels > 16 else (pixels, BO // 2, max(BI // 2, 32))
        cut = _cut(N, H, W, BO, BI, pixels)
    boxes = cdiv(N, cut.BN) * (H // cut.BH) * (W // cut.BW)
    tiles = taps * (O // BO) * (I // BI)
    # the largest, with its operands in registers too, fills them
    programs = PROGRAMS.get(BO * BI, 4) if device.reads_shared or BO * BI < 128 * 128 else 1
    programs = max(1, min(programs, device.shared_per_multiprocessor // (cut.shared(device) + 1024)))
    slots = device.multiprocessors * programs

    def cost(parts: int) -> float:
        """In FLOPs: those of whole waves, and what a workspace's way through memory is worth."""
        steps = cdiv(boxes, parts)
        whole_waves = cdiv(tiles * parts, slots) * slots * steps * cut.BN * cut.BH * cut.BW * BO * BI * 2
        return whole_waves + 267 * parts * 2 * 4 * taps * O * I

    return replace(cut, parts=min(range(1, min(PARTS, boxes) + 1), key=cost))


def _cut(N: int, H: int, W: int, BO: int, BI: int, pixels: int) -> Split:
    """In one part."""
    BW = min(pixels, W & -W)
    BH = min(pixels // BW, H & -H) if BW == W else 1
    BN = pixels // (BW * BH) if BH == H and BW == W else 1
    return Split(BN, BH, BW, BO, BI, 1, 8 if BO == BI == 128 else 4)


@opaque()
@or_else(formulas.weight_gradient)
def weight_gradient(x: Tensor, dy: Tensor, geometry: Geometry, blocks: Split | None = None) -> Tensor:
    """The gradient of w, `[O, I, h, w]`, fp32, channels last; the same bits every time.

    Each run of boxes leaves its sum in a workspace of its own; a second pass adds them in order.

    Args:
        x: `[N, I, H, W]`, the input of the convolution, channels last; see `why_not`.
        dy: The gradient of its output, channels last.
        geometry: Of the convolution, not of a transposed one.
    """
    x, dy = _on_16_bytes(x), _on_16_bytes(dy)
    (N, O, H, W), I, k = dy.shape, x.shape[1], geometry.kernel[0]
    paired = _is_paired(I, O, geometry)
    if paired:
        W, I, O = W // 2, 2 * I, 2 * O
    # what one tap sums to: of 6 x 6 taps, two columns side by side are one
    taps, depth = 3 * k, I * k // 3
    c = blocks or split(N, H, W, depth, O, taps, limits(x.device))
    boxes = cdiv(N, c.BN) * (H // c.BH) * (W // c.BW)
    partial = torch.empty([c.parts, O, k, k, I], dtype=torch.float32, device=x.device)
    launch(
        _weight_gradient, (taps * (O // c.BO) * (depth // c.BI), c.parts),
        x, dy, partial, N, cdiv(boxes, c.parts), H, W, I, O, k, geometry.stride, *c.blocks.values(), use_pointers(x.device),
        num_warps=c.num_warps, num_stages=c.num_stages,
    )  # fmt: skip
    dw = partial.sum(0).permute(0, 3, 1, 2)
    return _from_pairs(dw) if paired else dw
