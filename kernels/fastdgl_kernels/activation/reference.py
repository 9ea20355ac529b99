"""bias_act as it is defined, in plain PyTorch. Arguments are checked at the public door, not here."""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Activation:
    """An activation function, and what the field knows about it.

    Args:
        func: The function, of `x` and the keyword `alpha`.
        def_alpha: `alpha` where the caller gives none.
        def_gain: Gain where the caller gives none; it about keeps the variance of a normal input.
        cuda_idx: Its number in NVIDIA's plugin.
        ref: What a backward has to keep: the output "y", the input "x", or nothing.
        has_2nd_grad: Whether its second derivative is other than zero.
        homogeneous: Whether func(c x) = c func(x) for every c >= 0.
    """

    func: Callable[..., Tensor]
    def_alpha: float
    def_gain: float
    cuda_idx: int
    ref: str
    has_2nd_grad: bool
    homogeneous: bool = False


activation_funcs = {
    "linear": Activation(lambda x, alpha=0.0: x, 0.0, 1.0, 1, "", False, homogeneous=True),
    "relu": Activation(lambda x, alpha=0.0: F.relu(x), 0.0, sqrt(2), 2, "y", False, homogeneous=True),
    "lrelu": Activation(lambda x, alpha=0.2: F.leaky_relu(x, alpha), 0.2, sqrt(2), 3, "y", False, homogeneous=True),
    "tanh": Activation(lambda x, alpha=0.0: torch.tanh(x), 0.0, 1.0, 4, "y", True),
    "sigmoid": Activation(lambda x, alpha=0.0: torch.sigmoid(x), 0.0, 1.0, 5, "y", True),
    "elu": Activation(lambda x, alpha=0.0: F.elu(x), 0.0, 1.0, 6, "y", True),
    "selu": Activation(lambda x, alpha=0.0: F.selu(x), 0.0, 1.0, 7, "y", True),
    "softplus": Activation(lambda x, alpha=0.0: F.softplus(x), 0.0, 1.0, 8, "y", True),
    "swish": Activation(lambda x, alpha=0.0: F.silu(x), 0.0, sqrt(2), 9, "x", True),
}


def bias_act(
    x: Tensor, b: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float | None
) -> Tensor:
    """y = clamp(gain * act(x + b))."""
    activation = activation_funcs[act]
    if b is not None:
        b = b.reshape([-1 if i == dim else 1 for i in range(x.ndim)])
    if activation.homogeneous and gain >= 0:
        # gain * act(x + b) = act(gain * x + gain * b): one pass over x instead of two
        y = activation.func(_scaled_sum(x, b, gain), alpha=alpha)
    else:
        y = activation.func(_scaled_sum(x, b, 1.0), alpha=alpha) * gain
    # a clamped element has no gradient, whatever the activation
    return y if clamp is None else y.clamp(-clamp, clamp)


def _scaled_sum(x: Tensor, b: Tensor | None, gain: float) -> Tensor:
    if b is None:
        return x if gain == 1 else x * gain
    return x + b if gain == 1 else torch.add(b * gain, x, alpha=gain)
