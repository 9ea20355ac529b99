"""What may follow a filter or a convolution in the same pass."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Tail:
    """What follows a filter in the same pass: y = clamp(gain * lrelu(y * demod + noise + bias)).

    Args:
        demod: `[N, C]`, or None.
        noise: `[N, 1, H, W]` or `[1, 1, H, W]` of the output, or None.
        bias: `[C]`, or None.
        alpha: Slope for negative values; 1 for a linear activation.
        gain: Scale of the output.
        clamp: Bound on its magnitude, or None.
    """

    demod: Tensor | None = None
    noise: Tensor | None = None
    bias: Tensor | None = None
    alpha: float = 1.0
    gain: float = 1.0
    clamp: float | None = None
