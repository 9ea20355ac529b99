import torch

from .. import custom_ops
from . import bias_act, upfirdn2d

_plugin = None


def _init():
    global _plugin
    if _plugin is None:
        _plugin = custom_ops.get_plugin(module_name="filtered_lrelu_plugin", sources=["filtered_lrelu.cu"])
    return True


def filtered_lrelu(
    x, fu=None, fd=None, b=None, up=1, down=1, padding=0, gain=2**0.5, slope=0.2, clamp=None, flip_filter=False,
    impl="cuda",
):
    if impl == "cuda" and _init():
        padding = [padding] * 4 if isinstance(padding, int) else padding
        clamp = float("inf") if clamp is None else clamp
        signs = torch.empty(0)
        return Compiled.apply(x, fu, fd, b, signs, 0, 0, (up, down, padding, gain, slope, clamp, flip_filter))
    x = bias_act.bias_act(x, b, impl="ref")
    x = upfirdn2d.upfirdn2d(x, fu, up, 1, padding, flip_filter, up**2, impl="ref")
    x = bias_act.bias_act(x, act="lrelu", alpha=slope, gain=gain, clamp=clamp, impl="ref")
    return upfirdn2d.upfirdn2d(x, fd, 1, down, 0, flip_filter, impl="ref")


class Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, fu, fd, b, si, sx, sy, numbers):
        up, down, padding, gain, slope, clamp, flip = numbers
        write = si.numel() == 0
        numbers = gain, slope, clamp, flip, write
        _, _, code = _plugin.filtered_lrelu(x, fu, fd, b, si, up, down, *padding, sx, sy, *numbers)
        assert code < 0
        y = x if b is None else x + b[:, None, None]
        y = upfirdn2d.upfirdn2d(y, fu, up, 1, padding, flip, up**2)
        so = _plugin.filtered_lrelu_act_(y, si, sx, sy, gain, slope, clamp, write)
        y = upfirdn2d.upfirdn2d(y, fd, 1, down, 0, flip)
        ctx.save_for_backward(fu, fd, so if write else si)
        ctx.numbers = up, down, padding, gain, slope, flip
        ctx.sizes, ctx.offset, ctx.has_bias = (x.shape, y.shape), (sx, sy), b is not None
        return y

    @staticmethod
    def backward(ctx, dy):
        (fu, fd, si), (x, y), (sx, sy) = ctx.saved_tensors, ctx.sizes, ctx.offset
        up, down, (px0, _, py0, _), gain, slope, flip = ctx.numbers
        reach = len(fu) + len(fd) - 2
        rest = [x[i] * up - y[i] * down + p - up + 1 for i, p in ((3, px0), (2, py0))]
        padding, gain = [reach - px0, rest[0], reach - py0, rest[1]], gain * up**2 / down**2
        numbers = down, up, padding, gain, slope, float("inf"), not flip
        corner = [s - len(fu) + 1 + p for s, p in ((sx, px0), (sy, py0))]
        dx = Compiled.apply(dy, fd, fu, None, si, *corner, numbers)
        return dx, None, None, dx.sum([0, 2, 3]) if ctx.has_bias else None, None, None, None, None
