"""What the kernels of bias_act compute, in plain PyTorch: for GPUs that reject one of them. Nothing here knows of autograd."""

import torch
from torch import Tensor

from .reference import bias_act
from .spec import Spec

SELU = 1.0507009873554805, 1.7580993408473766


def forward(x: Tensor, b: Tensor | None, spec: Spec) -> Tensor:
    """y = clamp(gain * act(x + b)), in the memory order of x."""
    b = None if b is None else b.float()
    return torch.empty_like(x).copy_(bias_act(x.float(), b, spec.dim, spec.act, spec.alpha, spec.gain, spec.clamp))


def gradient(
    dy: Tensor, r: Tensor | None, b: Tensor | None, spec: Spec, *, total: bool, ddx: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """dx and its sum; with ddx, the derivative of ddx * dx by r. See the function of the kernel."""
    g = dy.float() if ddx is None else dy.float() * ddx.float()
    if spec.reads == "":
        g = g * spec.gain
    else:
        y = u = r.float()
        if spec.reads == "x":
            if b is not None:
                u = u + b.float().reshape([-1 if i == spec.dim else 1 for i in range(u.ndim)])
            # as y was stored
            y = bias_act(u, None, spec.dim, spec.act, spec.alpha, spec.gain, None).to(dy.dtype).float()
        else:
            u = y * spec.gain if spec.act in ("relu", "lrelu") else y / (spec.gain or 1.0)
        if ddx is None:
            g = g * spec.gain * _slope(u, spec)
        else:
            g = g * _bend(u, spec) * (spec.gain if spec.reads == "x" else 1.0)
        if spec.clamp is not None:
            bound = torch.tensor(spec.clamp, dtype=dy.dtype, device=dy.device).float()
            g = torch.where(y.abs() < bound, g, 0.0)
    dx = torch.empty_like(dy).copy_(g)
    if not total:
        return dx, None
    others = [i for i in range(g.ndim) if i != spec.dim]
    return dx, (g.sum(others) if others else g).to(dy.dtype)


def _slope(u: Tensor, spec: Spec) -> Tensor | float:
    """act', read off the output of the activation, for "x" off its input."""
    positive = u > 0
    match spec.act:
        case "relu" | "lrelu":
            return torch.where(positive, 1.0, 0.0 if spec.act == "relu" else spec.alpha)
        case "tanh":
            return 1 - u * u
        case "sigmoid":
            return u * (1 - u)
        case "elu":
            return torch.where(positive, 1.0, u + 1)
        case "selu":
            return torch.where(positive, SELU[0], u + SELU[1])
        case "softplus":
            return -torch.expm1(-u)
        case "swish":
            s = torch.sigmoid(u)
            return s * (1 + u * (1 - s))
    return 1.0


def _bend(u: Tensor, spec: Spec) -> Tensor | float:
    """The derivative of `_slope` by u."""
    match spec.act:
        case "tanh":
            return -2 * u
        case "sigmoid":
            return 1 - 2 * u
        case "elu" | "selu":
            return torch.where(u > 0, 0.0, 1.0)
        case "softplus":
            return torch.exp(-u)
        case "swish":
            s = torch.sigmoid(u)
            return s * (1 - s) * (2 + u * (1 - 2 * s))
    return 0.0
