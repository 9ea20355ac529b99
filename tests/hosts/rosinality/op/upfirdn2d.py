import os

import torch
from torch.autograd import Function
from torch.nn import functional as F
from torch.utils.cpp_extension import load

here = os.path.dirname(__file__)
sources = [os.path.join(here, name) for name in ("upfirdn2d.cpp", "upfirdn2d_kernel.cu")]
upfirdn2d_op = load("upfirdn2d", sources=sources)


class UpFirDn2d(Function):
    @staticmethod
    def forward(ctx, input, kernel, up, down, pad):
        N, C, H, W = input.shape
        y = upfirdn2d_op.upfirdn2d(input.reshape(-1, H, W, 1), kernel, *up, *down, *pad)
        y = y.view(N, C, y.shape[1], y.shape[2])
        ctx.save_for_backward(kernel)
        k, (x0, _, y0, _) = len(kernel), pad
        rest = W * up[0] - y.shape[3] * down[0] + x0 - up[0] + 1, H * up[1] - y.shape[2] * down[1] + y0 - up[1] + 1
        ctx.adjoint = down, up, (k - 1 - x0, rest[0], k - 1 - y0, rest[1])
        return y

    @staticmethod
    def backward(ctx, dy):
        (kernel,) = ctx.saved_tensors
        return UpFirDn2d.apply(dy, kernel.flip([0, 1]), *ctx.adjoint), None, None, None, None


def upfirdn2d(input, kernel, up=1, down=1, pad=(0, 0)):
    pad = pad if len(pad) == 4 else (*pad, *pad)
    return UpFirDn2d.apply(input, kernel, (up, up), (down, down), pad)


def upfirdn2d_native(input, kernel, up, down, pad):
    N, C, H, W = input.shape
    y = input.new_zeros(N, C, H, up, W, up)
    y[:, :, :, 0, :, 0] = input
    y = F.pad(y.view(N, C, H * up, W * up), (*pad, *pad))
    y = F.conv2d(y, kernel.flip([0, 1]).to(y.dtype).expand(C, 1, *kernel.shape), groups=C)
    return y[:, :, ::down, ::down]
