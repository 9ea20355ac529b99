"""What the kernels of scale_shift_act compute, in plain PyTorch: for GPUs that reject one of them. Nothing here knows of
autograd."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._layout import memory_format


def forward(x: Tensor, scale: Tensor, shift: Tensor, act: str, up: int, z: Tensor | None = None) -> Tensor:
    """y = upsample_nearest(act(u), up), or of act'(u) * z; u = x * scale + shift."""
    u = _scaled(x, scale, shift)
    if z is not None:
        u = torch.where(u > 0, z.float(), 0.0) if act == "relu" else z.float()
    elif act == "relu":
        u = F.relu(u)
    y = u.to(x.dtype)
    y = F.interpolate(y, scale_factor=up, mode="nearest") if up > 1 else y
    return y.contiguous(memory_format=memory_format(x))


def backward(
    dy: Tensor, x: Tensor, scale: Tensor, shift: Tensor, act: str, up: int, *,
    of_x: bool, of_scale: bool, of_shift: bool, scaled: bool = True,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """The gradients of x, and for each sample of scale and shift; see the function of the kernel."""
    N, C, H, W = x.shape
    g = dy.float()
    g = g.reshape(N, C, H, up, W, up).sum([3, 5]) if up > 1 else g
    if act == "relu":
        g = torch.where(_scaled(x, scale, shift) > 0, g, 0.0)
    dx = (g * scale.float()[:, :, None, None] if scaled else g).to(x.dtype) if of_x else None
    dx = None if dx is None else dx.contiguous(memory_format=memory_format(x))
    return dx, (g * x.float()).sum([2, 3]) if of_scale else None, g.sum([2, 3]) if of_shift else None


def _scaled(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift.float()[:, :, None, None], x.float(), scale.float()[:, :, None, None])
