"""The public door of scale_shift_act: arguments are checked here. And its derivatives over the kernels."""

import torch
from torch import Tensor

from .._dispatch import dispatch
from .._operators import Function, door
from ..modulation.algebra import Dot, Scale
from ..resampling.op import check_image, check_kind
from . import reference

ACTS = ("linear", "relu")


@door
def scale_shift_act(
    x: Tensor, scale: Tensor, shift: Tensor, act: str = "relu", up: int = 1, impl: str | None = None
) -> Tensor:
    """Scale and shift each channel, apply an activation, repeat pixels: a normalization whose statistics are known.

        y = upsample_nearest(act(x * scale + shift), up)

    A batch norm of mean m, variance v, weight w and bias b has scale = w / sqrt(v + eps) and shift = b - m * scale;
    with w and b of each sample's class they are `[N, C]`. Differentiable any number of times with respect to `x`,
    `scale` and `shift`, so that the gradient reaches the statistics through them.

    Args:
        x: `[N, C, H, W]`.
        scale: `[C]`, or `[N, C]` for one of each sample's own; may be of a wider dtype than `x`: the arithmetic
            is in fp32, or fp64 where `x` is.
        shift: Likewise.
        act: "linear" or "relu".
        up: 1, or 2 for an output twice as high and wide, each pixel repeated 2 x 2.
        impl: "triton", "reference", or None for the one in force (see `implementation`).

    Returns:
        `[N, C, H * up, W * up]`, of the dtype and memory format of `x`.

    Source: Brock et al., "Large Scale GAN Training for High Fidelity Natural Image Synthesis", ICLR 2019, figure 15;
    de Vries et al., "Modulating early visual processing by language", NeurIPS 2017, for scale and shift by class.
    """
    check_image(x)
    _check_factor(x, scale, "scale")
    _check_factor(x, shift, "shift")
    if act not in ACTS:
        raise ValueError(f"act={act!r}: expected one of {', '.join(map(repr, ACTS))}")
    if up not in (1, 2):
        raise ValueError(f"up must be 1 or 2, got {up!r}")
    run = dispatch(x, impl, kind=f"{act} up{up}", enlarged=up * up, triton=_triton, reference=reference.scale_shift_act)
    scale, shift = (t if t.ndim == 2 else t[None] for t in (scale, shift))
    return run(x, scale, shift, act, int(up))


def _triton(x: Tensor, scale: Tensor, shift: Tensor, act: str, up: int) -> Tensor:
    if x.numel() == 0:
        return reference.scale_shift_act(x, scale, shift, act, up)
    return _ScaleShiftAct.apply(x, scale, shift, act, up)


class _ScaleShiftAct(Function):
    """y = upsample_nearest(act(u), up), u = x * scale + shift, for scale and shift `[1, C]` or `[N, C]`.

    The first derivative is one pass. One that is to be differentiated again is made of members of closed families.
    """

    @staticmethod
    def forward(ctx, x, scale, shift, act, up):
        from . import kernel

        ctx.save_for_backward(x, scale, shift)
        ctx.how = act, up
        return kernel.forward(x, scale, shift, act, up)

    @staticmethod
    def backward(ctx, dy):
        gradients = _composed if torch.is_grad_enabled() else _fused
        dx, *few = gradients(dy, *ctx.saved_tensors, *ctx.how, ctx.needs_input_grad)
        return dx, *(_like(g, t) for g, t in zip(few, ctx.saved_tensors[1:])), None, None


def _fused(dy, x, scale, shift, act, up, wanted):
    from . import kernel

    of_x, of_scale, of_shift = wanted[:3]
    return kernel.backward(dy, x, scale, shift, act, up, of_x=of_x, of_scale=of_scale, of_shift=of_shift)


def _composed(dy, x, scale, shift, act, up, wanted):
    of_x, of_scale, of_shift = wanted[:3]
    # the slope is constant in all but dy
    g = _Slope.apply(dy, x.detach(), scale.detach(), shift.detach(), act, up)
    dx = Scale.apply(g, scale.float().expand(x.shape[:2])) if of_x else None
    dscale = Dot.apply(g, x) if of_scale else None
    dshift = g.sum([2, 3], dtype=torch.float32) if of_shift else None
    return dx, dscale, dshift


class _Slope(Function):
    """act'(u) times the sum of dy over the copies of each pixel; linear in dy."""

    @staticmethod
    def forward(ctx, dy, x, scale, shift, act, up):
        from . import kernel

        ctx.save_for_backward(x, scale, shift)
        ctx.how = act, up
        ask = dict(of_x=True, of_scale=False, of_shift=False, scaled=False)
        return kernel.backward(dy, x, scale, shift, act, up, **ask)[0]

    @staticmethod
    def backward(ctx, ddx):
        return _Copies.apply(ddx, *ctx.saved_tensors, *ctx.how), None, None, None, None, None


class _Copies(Function):
    """upsample_nearest(act'(u) * z, up), the transposed map of `_Slope`; linear in z."""

    @staticmethod
    def forward(ctx, z, x, scale, shift, act, up):
        from . import kernel

        ctx.save_for_backward(x, scale, shift)
        ctx.how = act, up
        return kernel.forward(x, scale, shift, act, up, z)

    @staticmethod
    def backward(ctx, dy):
        return _Slope.apply(dy, *ctx.saved_tensors, *ctx.how), None, None, None, None, None


def _like(g: Tensor | None, t: Tensor) -> Tensor | None:
    """The gradient of t, which all samples may share."""
    if g is None:
        return None
    return (g if len(g) == len(t) else g.sum(0, keepdim=True)).to(t.dtype)


def _check_factor(x: Tensor, t: Tensor, name: str) -> None:
    N, C = x.shape[:2]
    if list(t.shape) not in ([C], [N, C]):
        raise ValueError(
            f"{name} must have one entry per channel of x, or per sample and channel: "
            f"expected shape {(C,)} or {(N, C)}, got {tuple(t.shape)}"
        )
    check_kind(x, t, name)
