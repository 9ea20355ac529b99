"""The public door of bias_act: arguments are checked and completed here. And its derivatives over the kernels."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .._dispatch import dispatch
from .._layout import in_order_of, without_gaps
from .._operators import Function, check_tensor, door
from .._plans import Plans
from . import reference
from .reference import activation_funcs
from .spec import Spec


@door
def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    impl: str | None = None,
) -> Tensor:
    """Add a bias, apply an activation, scale, clamp: the tail of nearly every layer of a GAN.

        y = clamp(gain * act(x + b))

    Differentiable any number of times. The gradient of a clamped element is zero for every activation,
    "linear" included (NVIDIA's CUDA kernel lets it through there, their reference does not).

    Args:
        x: Any shape of at least one dimension.
        b: `[x.shape[dim]]`, of the dtype of `x`; None adds nothing.
        dim: The dimension of `x` that `b` belongs to.
        act: "linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus" or "swish".
        alpha: Slope of "lrelu" for negative inputs, 0.2 by default; the others have no such number.
        gain: Scale of the output; by default sqrt(2) for "relu", "lrelu" and "swish", which about keeps
            the variance of a normal input, and 1 for the others.
        clamp: Bound on the magnitude of the output, >= 0; None for no bound. 256 keeps fp16 training finite.
        impl: "triton", "reference", or None for the one in force (see `implementation`).

    Returns:
        A tensor of the shape, dtype and memory format of `x`.

    Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020;
    clamping from "Training Generative Adversarial Networks with Limited Data", NeurIPS 2020.
    """
    tensors, numbers = (x, b), (dim, act, alpha, gain, clamp)
    key, plan = _plans.find(impl, tensors, numbers)
    if plan is None:
        plan = _plans.keep(key, _plan(x, b, dim, act, alpha, gain, clamp, impl), impl, x.device, numbers)
    run, arguments = plan
    return run(x, b, *arguments)


_plans = Plans()


def _plan(
    x: Tensor, b: Tensor | None, dim: int, act: str, alpha: float | None, gain: float | None, clamp: float | None,
    impl: str | None,
) -> tuple[Callable[..., Tensor], tuple]:  # fmt: skip
    """Return what computes `bias_act` and its arguments after x and b, which are checked here."""
    alpha, gain, clamp = completed(act, alpha, gain, clamp)
    check_arguments(x, b, dim)
    run = dispatch(x, impl, kind=act, triton=_triton, reference=reference.bias_act)
    dim %= x.ndim
    if run is not _triton:
        return run, (dim, act, alpha, gain, clamp)
    if x.numel() == 0:
        return reference.bias_act, (dim, act, alpha, gain, clamp)
    return run, (Spec(act, alpha, gain, clamp, dim),)


def fused_leaky_relu(
    input: Tensor, bias: Tensor | None = None, negative_slope: float = 0.2, scale: float = 2**0.5
) -> Tensor:
    """`bias_act` under the name and with the arguments of rosinality's code.

        y = scale * leaky_relu(input + bias)

    Args:
        input: `[N, C, ...]`.
        bias: `[C]`, cast to the dtype of `input`; None adds nothing.
        negative_slope: Slope for negative inputs.
        scale: Scale of the output.
    """
    if bias is not None:
        bias = bias.to(input.dtype)
    return bias_act(input, bias, act="lrelu", alpha=negative_slope, gain=scale)


class FusedLeakyReLU(nn.Module):
    """`fused_leaky_relu` with a learnt bias, zero at first.

    Args:
        channel: Number of channels, dimension 1 of the input.
        bias: Whether there is a bias; its parameter is called `bias`.
        negative_slope: Slope for negative inputs.
        scale: Scale of the output.
    """

    def __init__(self, channel: int, bias: bool = True, negative_slope: float = 0.2, scale: float = 2**0.5):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channel)) if bias else None
        self.negative_slope = negative_slope
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:
        return fused_leaky_relu(input, self.bias, self.negative_slope, self.scale)


def _triton(x: Tensor, b: Tensor | None, spec: Spec) -> Tensor:
    if b is None and spec.act == "linear" and spec.gain == 1 and spec.clamp is None:
        return x
    if torch.is_grad_enabled():
        return _Act.apply(x, b, spec)
    from . import kernel

    return kernel.forward(without_gaps(x), b, spec)


class _Act(Function):
    """y = clamp(gain * act(x + b)). Its derivatives are read off y, so that y is all that is kept."""

    @staticmethod
    def forward(ctx, x, b, spec):
        from . import kernel

        y = kernel.forward(without_gaps(x), b, spec)
        reads = spec.reads
        ctx.save_for_backward(y if reads == "y" else x if reads == "x" else None, b if reads == "x" else None)
        ctx.spec = spec
        return y

    @staticmethod
    def backward(ctx, dy):
        r, b = ctx.saved_tensors
        spec, wants_db = ctx.spec, ctx.needs_input_grad[1]
        if spec.reads == "" and spec.gain == 1:
            return dy, _bias_sum(dy, spec) if wants_db else None, None
        if not torch.is_grad_enabled():
            # nobody differentiates these again
            return *_gradient(dy, r, b, spec, wants_db), None
        return *_ActGrad.apply(dy, r, b, spec, wants_db), None


def _gradient(dy: Tensor, r: Tensor | None, b: Tensor | None, spec: Spec, total: bool) -> tuple[Tensor, Tensor | None]:
    from . import kernel

    r, dy = _aligned(r, dy)
    return kernel.gradient(dy, r, b, spec, total=total)


class _ActGrad(Function):
    """dx = dy * dy/dx and db, its sum: linear in dy, and bent in r, the x or y that the derivative is read off."""

    @staticmethod
    def forward(ctx, dy, r, b, spec, total):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy if spec.bends else None, r, b)
        ctx.spec = spec
        ctx.shape = dy.shape
        return _gradient(dy, r, b, spec, total)

    @staticmethod
    def backward(ctx, ddx, ddb):
        dy, r, b = ctx.saved_tensors
        spec, (_, wants_r, wants_b, *_) = ctx.spec, ctx.needs_input_grad
        g = _joined(ddx, ddb, spec, ctx.shape)
        if g is None:
            return None, None, None, None, None
        ddy, _ = _ActGrad.apply(g, r, b, spec, False)
        if not (spec.bends and (wants_r or wants_b)):
            return ddy, None, None, None, None
        return ddy, *_ActBend.apply(dy, g, r, b, spec, wants_b), None, None


class _ActBend(Function):
    """The derivative of ddx * dx by r, and its sum: symmetric in dy and ddx."""

    @staticmethod
    def forward(ctx, dy, ddx, r, b, spec, total):
        from . import kernel

        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy, ddx, r, b)
        ctx.spec, ctx.shape = spec, dy.shape
        r, dy, ddx = _aligned(r, dy, ddx)
        return kernel.gradient(dy, r, b, spec, total=total, ddx=ddx)

    @staticmethod
    def backward(ctx, gr, gb):
        dy, ddx, r, b = ctx.saved_tensors
        spec, wants_b = ctx.spec, ctx.needs_input_grad[3]
        g = _joined(gr, gb, spec, ctx.shape)
        if g is None:
            return None, None, None, None, None, None
        ddy, _ = _ActBend.apply(g, ddx, r, b, spec, False)
        dddx, _ = _ActBend.apply(dy, g, r, b, spec, False)
        # no training comes here: plain PyTorch, which can be differentiated on and on
        dr = (_twist(r, b, spec) * g * dy * ddx).to(r.dtype)
        return ddy, dddx, dr, _bias_sum(dr, spec) if wants_b else None, None, None


def _twist(r: Tensor, b: Tensor | None, spec: Spec) -> Tensor | float:
    """The second derivative of dy/dx by r, in fp32."""
    r = r.float()
    if spec.reads == "y":
        u = r / spec.gain
        d = {"tanh": -2.0, "sigmoid": -2.0, "softplus": -torch.exp(-u)}.get(spec.act, 0.0) / spec.gain
        y = r
    else:
        u = r if b is None else r + _along(b.float(), spec, r.ndim)
        s = torch.sigmoid(u)
        d = s * (1 - s) * (3 * (1 - 2 * s) + u * (1 - 6 * s + 6 * s * s)) * spec.gain
        y = u * s * spec.gain
    return d if spec.clamp is None else d * (y.abs() < spec.clamp)


def _joined(ddx: Tensor | None, ddb: Tensor | None, spec: Spec, shape: torch.Size) -> Tensor | None:
    """What arrives for dx, together with what arrives for its sum."""
    if ddb is None:
        return ddx
    ddb = _along(ddb, spec, len(shape))
    return ddb.expand(shape) if ddx is None else ddx + ddb


def _along(b: Tensor, spec: Spec, ndim: int) -> Tensor:
    return b.reshape([-1 if i == spec.dim else 1 for i in range(ndim)])


def _bias_sum(dx: Tensor, spec: Spec) -> Tensor:
    return dx.sum([i for i in range(dx.ndim) if i != spec.dim]) if dx.ndim > 1 else dx


def _aligned(r: Tensor | None, *others: Tensor) -> tuple[Tensor | None, ...]:
    """All of them without gaps, and in one order."""
    if r is None:
        first, *others = others
        first = without_gaps(first)
        return None, first, *(in_order_of(t, first) for t in others)
    r = without_gaps(r)
    return r, *(in_order_of(t, r) for t in others)


def completed(
    act: str, alpha: float | None, gain: float | None, clamp: float | None
) -> tuple[float, float, float | None]:
    """alpha, gain and clamp as they are, or by default; refused where they are none."""
    if act not in activation_funcs:
        raise ValueError(f"act={act!r}: expected one of {', '.join(map(repr, activation_funcs))}")
    if clamp is not None and not clamp >= 0:
        raise ValueError(f"clamp must be None or at least 0, got {clamp}")
    activation = activation_funcs[act]
    alpha = activation.def_alpha if alpha is None else float(alpha)
    gain = activation.def_gain if gain is None else float(gain)
    return alpha, gain, None if clamp is None else float(clamp)


def check_arguments(x: Tensor, b: Tensor | None, dim: int) -> None:
    """Refuse tensors that `bias_act` cannot take."""
    check_tensor(x, "x")
    if not x.is_floating_point():
        raise TypeError(f"x must be of a floating point dtype, got {x.dtype}")
    if x.ndim == 0:
        raise ValueError("x must have at least one dimension, got a scalar")
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"dim={dim} is not a dimension of x, which has shape {tuple(x.shape)}")
    if b is None:
        return
    check_tensor(b, "b")
    if b.shape != (x.shape[dim],):
        raise ValueError(
            f"b must have one entry for each of the {x.shape[dim]} of dimension {dim} of x: "
            f"expected shape {(x.shape[dim],)}, got {tuple(b.shape)}"
        )
    if b.dtype != x.dtype:
        raise TypeError(f"b must have the dtype of x: expected {x.dtype}, got {b.dtype}")
    if b.device != x.device:
        raise ValueError(f"b must be on the device of x: expected {x.device}, got {b.device}")
