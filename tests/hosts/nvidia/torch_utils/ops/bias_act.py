from types import SimpleNamespace

import torch
from torch.nn import functional as F

from .. import custom_ops

activation_funcs = {
    "linear": SimpleNamespace(func=lambda x, alpha: x, def_alpha=0, def_gain=1, cuda_idx=1, bent=False),
    "lrelu": SimpleNamespace(func=F.leaky_relu, def_alpha=0.2, def_gain=2**0.5, cuda_idx=3, bent=False),
    "tanh": SimpleNamespace(func=lambda x, alpha: torch.tanh(x), def_alpha=0, def_gain=1, cuda_idx=4, bent=True),
    "swish": SimpleNamespace(func=lambda x, alpha: F.silu(x), def_alpha=0, def_gain=2**0.5, cuda_idx=9, bent=True),
}

_inited = False
_plugin = None


def _init():
    global _inited, _plugin
    if not _inited:
        _inited = True
        _plugin = custom_ops.get_plugin("bias_act_plugin", sources=["bias_act.cu"])
    return _plugin is not None


def bias_act(x, b=None, dim=1, act="linear", alpha=None, gain=None, clamp=None, impl="cuda"):
    spec = activation_funcs[act]
    alpha = spec.def_alpha if alpha is None else alpha
    gain = spec.def_gain if gain is None else gain
    if impl == "cuda" and _init():
        return Compiled.apply(x, b, (dim, spec.cuda_idx, alpha, gain, -1 if clamp is None else clamp), spec.bent)
    if b is not None:
        x = x + b.view([-1 if i == dim else 1 for i in range(x.ndim)])
    y = spec.func(x, alpha) * gain
    return y if clamp is None else y.clamp(-clamp, clamp)


class Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, b, numbers, bent):
        none = x.new_empty(0)
        b = none if b is None else b
        y = _plugin.bias_act(x, b, none, none, none, 0, *numbers)
        ctx.save_for_backward(*([x, b, none] if bent else [none, none, none if numbers[1] == 1 else y]))
        ctx.numbers, ctx.bent, ctx.has_bias = numbers, bent, b.numel() > 0
        return y

    @staticmethod
    def backward(ctx, dy):
        dx = CompiledGrad.apply(dy, *ctx.saved_tensors, ctx.numbers, ctx.bent)
        return dx, dx.sum([i for i in range(dx.ndim) if i != ctx.numbers[0]]) if ctx.has_bias else None, None, None


class CompiledGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy, x, b, y, numbers, bent):
        ctx.save_for_backward(dy, x, b, y)
        ctx.numbers, ctx.bent = numbers, bent
        return _plugin.bias_act(dy, b, x, y, dy.new_empty(0), 1, *numbers)

    @staticmethod
    def backward(ctx, ddx):
        dy, x, b, y = ctx.saved_tensors
        ddy, dx, db = CompiledGrad.apply(ddx, x, b, y, ctx.numbers, ctx.bent), None, None
        if ctx.bent:
            dx = _plugin.bias_act(ddx, b, x, y, dy, 2, *ctx.numbers)
            db = dx.sum([i for i in range(dx.ndim) if i != ctx.numbers[0]]) if b.numel() else None
        return ddy, dx, db, None, None, None
