"""What the kernels around a modulated convolution compute, and those of ToRGB, in plain PyTorch: for GPUs that reject one
of them. Nothing here knows of autograd."""

import torch
from torch import Tensor

from ..resampling.formulas import ended
from ..resampling.tail import Tail


def forward(
    u: Tensor, d: Tensor | None, noise: Tensor | None, bias: Tensor | None,
    alpha: float, gain: float, clamp: float | None,
) -> Tensor:  # fmt: skip
    """clamp(gain * lrelu(u * d + noise + b))."""
    return ended(u.to(_wide(u)), Tail(d, noise, bias, alpha, gain, clamp)).to(u.dtype)


def backward(
    dy: Tensor, y: Tensor, d: Tensor | None, noise: Tensor | None, bias: Tensor | None,
    alpha: float, gain: float, clamp: float | None, *, of_u: bool, of_d: bool, of_noise: bool, of_bias: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """The gradients of u, d, noise and bias off the output y; see the function of the kernel."""
    wide = _wide(y)
    g, v = dy.to(wide), y.to(wide)
    if clamp is not None:
        g = torch.where(v.abs() < torch.tensor(clamp, dtype=y.dtype, device=y.device).to(wide), g, 0.0)
    g = torch.where(v > 0, g, g * alpha) * gain
    sum_gu = None
    if of_d:
        v = v / gain
        v = torch.where(v > 0, v, v / alpha) if alpha != 0 else v
        if noise is not None:
            v = v - noise.to(wide).reshape(len(noise), 1, *y.shape[2:])
        if bias is not None:
            v = v - bias.to(wide)[:, None, None]
        sum_gu = (g * v).sum([2, 3]) / d.to(wide)
    du = None
    if of_u:
        du = torch.empty_like(y).copy_(g if d is None else g * d.to(wide)[:, :, None, None])
    return du, sum_gu, g.sum(1).flatten(1) if of_noise else None, g.sum([0, 2, 3]) if of_bias else None


def scale_backward(
    t: Tensor, x: Tensor, s: Tensor | None, *, of_x: bool, of_s: bool, again: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """For t, the gradient of x * s: the gradients of x and of s, and x * s once more; those asked for."""
    wide = _wide(x)
    t, v = t.to(wide), x.to(wide)
    scale = None if s is None else s.to(wide)[:, :, None, None]
    dx = torch.empty_like(x).copy_(t * scale) if of_x else None
    xs = torch.empty_like(x).copy_(v * scale) if again else None
    return dx, (t * v).sum([2, 3]) if of_s else None, xs


def to_rgb(
    x: Tensor, w: Tensor, bias: Tensor | None, alpha: float = 1.0, gain: float = 1.0, clamp: float | None = None
) -> Tensor:
    """clamp(gain * lrelu(y + bias)), channels first; y[n, o] = sum over i of w[n, o, i] x[n, i]."""
    y = torch.bmm(w.float(), x.float().flatten(2)).reshape(len(x), -1, *x.shape[2:])
    return ended(y, Tail(None, None, bias, alpha, gain, clamp)).to(x.dtype)


def to_rgb_data_gradient(dy: Tensor, w: Tensor, channels_last: bool) -> Tensor:
    """The gradient of x, in the layout asked for."""
    dx = torch.bmm(w.float().mT, dy.float().flatten(2)).reshape(len(dy), -1, *dy.shape[2:]).to(dy.dtype)
    return dx.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def to_rgb_weight_gradient(dy: Tensor, x: Tensor) -> Tensor:
    """The gradient of w `[N, O, I]`, in fp32."""
    return torch.bmm(dy.float().flatten(2), x.float().flatten(2).mT)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
