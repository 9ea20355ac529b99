"""The public door of bias_act: arguments are checked and completed here."""

import torch
from torch import Tensor, nn

from .._dispatch import dispatch
from . import reference
from .reference import activation_funcs


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
        impl: "reference", or None for the one in force (see `implementation`).

    Returns:
        A tensor of the shape, dtype and memory format of `x`.

    Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020;
    clamping from "Training Generative Adversarial Networks with Limited Data", NeurIPS 2020.
    """
    _check(x, b, dim, act, clamp)
    run = dispatch(x, impl, reference=reference.bias_act)
    activation = activation_funcs[act]
    alpha = activation.def_alpha if alpha is None else float(alpha)
    gain = activation.def_gain if gain is None else float(gain)
    clamp = None if clamp is None else float(clamp)
    return run(x, b, dim % x.ndim, act, alpha, gain, clamp)


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


def _check(x: Tensor, b: Tensor | None, dim: int, act: str, clamp: float | None) -> None:
    if act not in activation_funcs:
        raise ValueError(f"act={act!r}: expected one of {', '.join(map(repr, activation_funcs))}")
    if not x.is_floating_point():
        raise TypeError(f"x must be of a floating point dtype, got {x.dtype}")
    if x.ndim == 0:
        raise ValueError("x must have at least one dimension, got a scalar")
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"dim={dim} is not a dimension of x, which has shape {tuple(x.shape)}")
    if clamp is not None and not clamp >= 0:
        raise ValueError(f"clamp must be None or at least 0, got {clamp}")
    if b is None:
        return
    if b.shape != (x.shape[dim],):
        raise ValueError(
            f"b must have one entry for each of the {x.shape[dim]} of dimension {dim} of x: "
            f"expected shape {(x.shape[dim],)}, got {tuple(b.shape)}"
        )
    if b.dtype != x.dtype:
        raise TypeError(f"b must have the dtype of x: expected {x.dtype}, got {b.dtype}")
    if b.device != x.device:
        raise ValueError(f"b must be on the device of x: expected {x.device}, got {b.device}")
