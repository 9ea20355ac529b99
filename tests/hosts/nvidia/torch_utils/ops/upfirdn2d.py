import torch
from torch.nn import functional as F

from .. import custom_ops
from . import conv2d_gradfix

_plugin = None


def _init():
    global _plugin
    if _plugin is None:
        _plugin = custom_ops.get_plugin(module_name="upfirdn2d_plugin", sources=["upfirdn2d.cu"])
    return True


def _pair(n):
    return (n, n) if isinstance(n, int) else tuple(n)


def upfirdn2d(x, f, up=1, down=1, padding=0, flip_filter=False, gain=1, impl="cuda"):
    (ux, uy), (dx, dy) = _pair(up), _pair(down)
    padding = _pair(padding)
    px0, px1, py0, py1 = padding if len(padding) == 4 else (padding[0], padding[0], padding[1], padding[1])
    f = torch.ones(1, 1) if f is None else f
    f = f if f.ndim == 2 else torch.outer(f, f)
    if impl == "cuda" and _init():
        return Compiled.apply(x, f, (ux, uy, dx, dy), (px0, px1, py0, py1), flip_filter, gain)
    N, C, H, W = x.shape
    y = x.new_zeros(N, C, H, uy, W, ux)
    y[:, :, :, 0, :, 0] = x
    y = F.pad(y.view(N, C, H * uy, W * ux), [px0, px1, py0, py1])
    f = (f if flip_filter else f.flip([0, 1])) * gain
    y = conv2d_gradfix.conv2d(y, f.to(x.dtype).expand(C, 1, *f.shape), groups=C)
    return y[:, :, ::dy, ::dx]


def upsample2d(x, f, up=2, padding=0, flip_filter=False, gain=1, impl="cuda"):
    w, h = f.shape[-1], f.shape[0]
    padding = [(w + up - 1) // 2, (w - up) // 2, (h + up - 1) // 2, (h - up) // 2]
    return upfirdn2d(x, f, up, padding=padding, flip_filter=flip_filter, gain=gain * up**2, impl=impl)


class Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, f, factors, padding, flip, gain):
        y = _plugin.upfirdn2d(x, f, *factors, *padding, flip, gain)
        ctx.save_for_backward(f)
        (ux, uy, dx, dy), (px0, _, py0, _), (h, w) = factors, padding, f.shape
        rest_x = x.shape[3] * ux - y.shape[3] * dx + px0 - ux + 1
        rest_y = x.shape[2] * uy - y.shape[2] * dy + py0 - uy + 1
        ctx.adjoint = (dx, dy, ux, uy), (w - px0 - 1, rest_x, h - py0 - 1, rest_y), not flip, gain
        return y

    @staticmethod
    def backward(ctx, dy):
        return Compiled.apply(dy, *ctx.saved_tensors, *ctx.adjoint), None, None, None, None, None
