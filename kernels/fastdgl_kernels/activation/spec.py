"""The numbers of bias_act in one value, and what its derivatives have to keep. Nothing here has seen a tensor."""

from dataclasses import dataclass
from functools import cached_property

from .reference import activation_funcs


@dataclass(frozen=True)
class Spec:
    """What bias_act computes, less its tensors.

    Args:
        act: Name of the activation.
        alpha: Slope of "lrelu" for negative inputs.
        gain: Scale of the output.
        clamp: Bound on the magnitude of the output, or None.
        dim: The dimension of x that the bias belongs to.
    """

    act: str
    alpha: float
    gain: float
    clamp: float | None
    dim: int

    @cached_property
    def reads(self) -> str:
        """What the derivatives are read off: the output "y", the input "x", or nothing "".

        The sign of lrelu's output tells the side of its input, unless its slope is negative.
        """
        if self.act == "swish" or self.act == "lrelu" and self.alpha < 0:
            return "x"
        return "" if self.act == "linear" and self.clamp is None else "y"

    @cached_property
    def bends(self) -> bool:
        """Whether there is a second derivative other than zero."""
        return activation_funcs[self.act].has_2nd_grad and self.gain != 0
