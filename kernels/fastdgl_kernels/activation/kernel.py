"""Triton kernels of bias_act, and their launches. Nothing here knows of autograd.

A tensor is handed over as the matrix its memory is: rows of consecutive elements. The bias belongs to the
columns (channels last), to the rows (planes of images), or there is none.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._fallback import or_else
from .._launch import launch
from .._layout import small
from .._operators import opaque
from .._tuning import architecture, cdiv, kept, next_power_of_2, tuned
from . import formulas
from .spec import Spec


@triton.jit
def _expm1(x):
    """exp(x) - 1 for x <= 0, without cancellation near zero; for x > 0 whatever."""
    series = x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * (1 + x / 7))))))
    return tl.where(x > -0.3, series, tl.exp(x) - 1)


@triton.jit
def _log1p(x):
    """log(1 + x) for x >= 0: the rounding of 1 + x is divided out again."""
    w = 1 + x
    return tl.where(w == 1, x, tl.log(w) * x / tl.where(w == 1, 1, w - 1))


@triton.jit
def _sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1, e) / (1 + e)


@triton.jit
def ended(v, ALPHA: tl.constexpr, GAIN: tl.constexpr, CLAMP: tl.constexpr):
    """clamp(gain * lrelu(v)), where another kernel ends with it; CLAMP may be None."""
    if ALPHA != 1:
        v = tl.where(v > 0, v, v * ALPHA)
    if GAIN != 1:
        v *= GAIN
    if CLAMP is not None:
        # comparisons, not minimum and maximum: these would turn NaN into the bound
        v = tl.where(v > CLAMP, CLAMP, tl.where(v < -CLAMP, -CLAMP, v))
    return v


@triton.jit
def _value(u, alpha, ACT: tl.constexpr):
    """act(u); NaN where u is."""
    if ACT == "relu":
        u = tl.where(u < 0, 0, u)
    elif ACT == "lrelu":
        u = tl.where(u > 0, u, u * alpha)
    elif ACT == "tanh":
        t = _expm1(-2 * tl.abs(u))
        u = tl.where(u < 0, t, -t) / (2 + t)
    elif ACT == "sigmoid":
        u = _sigmoid(u)
    elif ACT == "elu":
        u = tl.where(u > 0, u, _expm1(u))
    elif ACT == "selu":
        u = 1.0507009873554805 * tl.where(u > 0, u, 1.6732632423543772 * _expm1(u))
    elif ACT == "softplus":
        u = tl.maximum(u, 0) + _log1p(tl.exp(-tl.abs(u)))
    elif ACT == "swish":
        u = u * _sigmoid(u)
    return u


@triton.jit
def _slope(r, alpha, ACT: tl.constexpr):
    """act', read off r: the output of the activation, for swish its input."""
    if ACT == "linear":
        d = tl.full(r.shape, 1, tl.float32)
    elif ACT == "relu":
        d = tl.where(r > 0, 1.0, 0.0)
    elif ACT == "lrelu":
        d = tl.where(r > 0, 1.0, alpha)
    elif ACT == "tanh":
        d = 1 - r * r
    elif ACT == "sigmoid":
        d = r * (1 - r)
    elif ACT == "elu":
        d = tl.where(r > 0, 1, r + 1)
    elif ACT == "selu":
        d = tl.where(r > 0, 1.0507009873554805, r + 1.7580993408473766)
    elif ACT == "softplus":
        d = -_expm1(-r)
    else:
        s = _sigmoid(r)
        d = s * (1 + r * (1 - s))
    return d


@triton.jit
def _bend(r, ACT: tl.constexpr):
    """The derivative of `_slope` by r; zero for the activations made of lines."""
    if ACT == "tanh":
        d = -2 * r
    elif ACT == "sigmoid":
        d = 1 - 2 * r
    elif ACT == "elu" or ACT == "selu":
        d = tl.where(r > 0, 0.0, 1.0)
    elif ACT == "softplus":
        d = tl.exp(-r)
    elif ACT == "swish":
        s = _sigmoid(r)
        d = s * (1 - s) * (2 + r * (1 - 2 * s))
    else:
        d = tl.zeros(r.shape, tl.float32)
    return d


@triton.jit
def _bias(b, row, col, rows, cols, C, BIAS: tl.constexpr):
    """The bias of a tile, of a shape that broadcasts with it."""
    if BIAS == "cols":
        bias = tl.load(b + col, mask=col < cols, other=0)[None, :].to(tl.float32)
    else:
        bias = tl.load(b + row % C, mask=row < rows, other=0)[:, None].to(tl.float32)
    return bias


@triton.jit
def bias_act_kernel(
    x,
    b,
    y,
    rows,
    cols,
    C,
    alpha,
    gain,
    clamp,
    ACT: tl.constexpr,
    CLAMP: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """y = clamp(gain * act(x + b)), one tile of [ROWS, COLS] per program."""
    blocks = tl.cdiv(cols, COLS)
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = (program % blocks).to(tl.int64) * COLS + tl.arange(0, COLS)
    inside = (row < rows)[:, None] & (col < cols)[None, :]
    i = row[:, None] * cols + col[None, :]
    u = tl.load(x + i, mask=inside).to(tl.float32)
    if BIAS != "none":
        u += _bias(b, row, col, rows, cols, C, BIAS)
    v = _value(u, alpha, ACT) * gain
    if CLAMP:
        # not minimum and maximum, which take NaN for the bound
        v = tl.where(v > clamp, clamp, tl.where(v < -clamp, -clamp, v))
    tl.store(y + i, v.to(y.dtype.element_ty), mask=inside)


@triton.jit
def bias_act_grad_kernel(
    dy,
    ddx,
    r,
    b,
    dx,
    db,
    rows,
    cols,
    C,
    alpha,
    gain,
    unscale,
    clamp,
    ORDER: tl.constexpr,
    ACT: tl.constexpr,
    CLAMP: tl.constexpr,
    READS: tl.constexpr,
    BIAS: tl.constexpr,
    SUM: tl.constexpr,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """dx = dy * gain * act', zero where y is clamped; and the sums of dx that make the bias gradient.

    A program walks STEPS tiles, down the rows where the bias belongs to the columns, along a row otherwise,
    and leaves its sums in a place of its own in db: which sums there are depends on the shape alone.

    ORDER 1 is the derivative of ddx * dx by r, which has act'' in place of act'. r holds x or y, as READS says.
    """
    if BIAS == "cols":
        blocks = tl.cdiv(cols, COLS)
        block, lane = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    else:
        blocks = tl.cdiv(cols, COLS * STEPS)
        lane, block = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    total = tl.zeros((ROWS, COLS), tl.float32)
    for step in tl.range(0, STEPS):
        if BIAS == "cols":
            row = (lane.to(tl.int64) * STEPS + step) * ROWS + tl.arange(0, ROWS)
            col = block.to(tl.int64) * COLS + tl.arange(0, COLS)
        else:
            row = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)
            col = (lane.to(tl.int64) * STEPS + step) * COLS + tl.arange(0, COLS)
        inside = (row < rows)[:, None] & (col < cols)[None, :]
        i = row[:, None] * cols + col[None, :]
        g = tl.load(dy + i, mask=inside, other=0).to(tl.float32)
        if ORDER == 1:
            g = g * tl.load(ddx + i, mask=inside, other=0).to(tl.float32)
        if READS == "":
            g = g * gain
        else:
            u = tl.load(r + i, mask=inside, other=0).to(tl.float32)
            if READS == "x":
                if BIAS != "none":
                    u += _bias(b, row, col, rows, cols, C, BIAS)
                # as y was stored
                y = (_value(u, alpha, ACT) * gain).to(dx.dtype.element_ty).to(tl.float32)
            else:
                y = u
                if ACT == "relu" or ACT == "lrelu":
                    # the sign is all that matters
                    u = y * gain
                elif ACT != "linear":
                    u = y / unscale
            if ORDER == 0:
                g = g * gain * _slope(u, alpha, ACT)
            elif READS == "x":
                g = g * gain * _bend(u, ACT)
            else:
                # by y = gain * r, so the gain cancels
                g = g * _bend(u, ACT)
            if CLAMP:
                # as y was stored
                bound = (tl.zeros((1, 1), tl.float32) + clamp).to(dx.dtype.element_ty).to(tl.float32)
                g = tl.where(tl.abs(y) < bound, g, 0)
        tl.store(dx + i, g.to(dx.dtype.element_ty), mask=inside)
        if SUM:
            total += tl.where(inside, g, 0)
    if SUM:
        if BIAS == "cols":
            col = block.to(tl.int64) * COLS + tl.arange(0, COLS)
            tl.store(db + lane.to(tl.int64) * cols + col, tl.sum(total, 0), mask=col < cols)
        else:
            row = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)
            tl.store(db + lane.to(tl.int64) * rows + row, tl.sum(total, 1), mask=row < rows)


@triton.jit
def sum_kernel(parts, total, K, C, STEPS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """total[c] = sum_k parts[k, c], always in the same order."""
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    s = tl.zeros((ROWS, COLS), tl.float32)
    for step in tl.range(0, STEPS):
        row = step * ROWS + tl.arange(0, ROWS)
        s += tl.load(parts + row[:, None].to(tl.int64) * C + col[None, :],
                     mask=(row < K)[:, None] & (col < C)[None, :], other=0)
    tl.store(total + col, tl.sum(s, 0).to(total.dtype.element_ty), mask=col < C)


@opaque()
@or_else(formulas.forward)
def forward(x: Tensor, b: Tensor | None, spec: Spec) -> Tensor:
    """y = clamp(gain * act(x + b)), in the memory order of x, which has no gaps."""
    y, (b,) = torch.empty_like(x), small(b)
    elements, warps = tuned("bias_act", architecture(x.device))
    m, rows, cols, programs = _tiled(x.shape, x.stride(), None if b is None else spec.dim, elements)
    launch(
        bias_act_kernel, programs,
        x, b, y, m.rows, m.cols, m.C, spec.alpha, spec.gain, spec.clamp or 0.0,
        spec.act, spec.clamp is not None, m.bias, rows, cols, num_warps=warps,
    )  # fmt: skip
    return y


@kept
def _tiled(shape: torch.Size, stride: tuple[int, ...], dim: int | None, elements: int) -> "tuple[Matrix, int, int, int]":
    """Return a tensor without gaps as a matrix, rows and columns of a tile of so many elements, and the number of tiles."""
    m = _matrix(shape, stride, dim)
    rows, cols = m.tile(elements)
    return m, rows, cols, cdiv(m.rows, rows) * cdiv(m.cols, cols)


@kept
def _walked(
    shape: torch.Size, stride: tuple[int, ...], dim: int | None, elements: int, programs: int | None
) -> "tuple[Matrix, int, int, int, int, int]":
    """Return the same with steps, lanes and blocks of `Matrix.walk` in place of the number of tiles."""
    m = _matrix(shape, stride, dim)
    rows, cols = m.tile(elements)
    return m, rows, cols, *m.walk(rows, cols, programs)


@opaque()
@or_else(formulas.gradient)
def gradient(
    dy: Tensor, r: Tensor | None, b: Tensor | None, spec: Spec, *, total: bool, ddx: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """dx, and its sum over all dimensions but that of the bias.

    Args:
        dy: In the memory order of r, without gaps.
        r: What `spec.reads` says; None where that is nothing.
        b: The bias, where the derivative is read off x.
        total: Whether the sum is wanted; else it is None.
        ddx: None for dx; else the derivative by r of the sum of ddx * dx takes its place.
    """
    dx, (b,) = torch.empty_like(dy), small(b)
    arch = architecture(dy.device)
    elements, warps = tuned("bias_act_grad", arch)
    programs = tuned("bias_act_grad_programs", arch) if total else None
    dim = spec.dim if total or b is not None else None
    m, rows, cols, steps, lanes, blocks = _walked(dy.shape, dy.stride(), dim, elements, programs)
    parts = None
    if total:
        width = m.rows if m.bias == "rows" else m.cols
        parts = torch.empty([lanes, width], dtype=torch.float32, device=dy.device)
    launch(
        bias_act_grad_kernel, lanes * blocks,
        dy, ddx, r, b, dx, parts, m.rows, m.cols, m.C,
        spec.alpha, spec.gain, spec.gain or 1.0, spec.clamp or 0.0,
        int(ddx is not None), spec.act, spec.clamp is not None, spec.reads, m.bias, total, steps, rows, cols,
        num_warps=warps,
    )  # fmt: skip
    return dx, _sum(parts.view(-1, m.C), dy.dtype) if total else None


def _sum(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of the rows."""
    K, C = parts.shape
    total = torch.empty([C], dtype=dtype, device=parts.device)
    rows, cols = 128, 32
    steps = next_power_of_2(cdiv(K, rows))
    launch(sum_kernel, cdiv(C, cols), parts, total, K, C, steps, rows, cols)
    return total


@dataclass(frozen=True)
class Matrix:
    """A tensor without gaps as rows of consecutive elements.

    Args:
        bias: What has an entry of the bias each: "cols", "rows" (taken modulo C), or "none".
    """

    rows: int
    cols: int
    C: int
    bias: str

    def tile(self, elements: int) -> tuple[int, int]:
        """Rows and columns of a tile: wide enough for whole lines of memory."""
        widest = 64 if self.bias == "cols" else elements
        cols = min(next_power_of_2(self.cols), widest)
        return elements // cols, cols

    def walk(self, rows: int, cols: int, programs: int | None) -> tuple[int, int, int]:
        """Tiles that one program takes one after another, programs side by side, blocks of them."""
        along, across = cdiv(self.rows, rows), cdiv(self.cols, cols)
        if self.bias != "cols":
            along, across = across, along
        # a power of two: each is a kernel of its own
        steps = 1 if programs is None else next_power_of_2(cdiv(along, max(programs // across, 1)))
        return steps, cdiv(along, steps), across


def _matrix(shape: torch.Size, stride: tuple[int, ...], dim: int | None) -> Matrix:
    """How a tensor lies in memory, as seen from the dimension of the bias."""
    elements = shape.numel()
    if dim is None:
        return Matrix(1, elements, 1, "none")
    C, inner = shape[dim], stride[dim]
    if C == 1:
        # its stride says nothing
        return Matrix(1, elements, 1, "rows")
    if inner == 1:
        return Matrix(elements // C, C, C, "cols")
    return Matrix(elements // inner, inner, C, "rows")
