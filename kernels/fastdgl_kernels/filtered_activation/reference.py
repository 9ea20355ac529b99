"""filtered_lrelu as it is defined, by the references of its steps. Arguments are checked at the door, not here."""

from typing import NamedTuple

from torch import Tensor

from ..activation.reference import bias_act
from ..resampling.geometry import Resample
from ..resampling.reference import upfirdn2d


class Spec(NamedTuple):
    """What filtered_lrelu computes, less its tensors: how it is resampled, and the numbers of "lrelu"."""

    up: Resample
    down: Resample
    slope: float
    gain: float
    clamp: float | None


def filtered_lrelu(x: Tensor, b: Tensor | None, fu: Tensor | None, fd: Tensor | None, spec: Spec) -> Tensor:
    """y = down(clamp(gain * lrelu(up(x + b))))."""
    up, down, *numbers = spec
    x = upfirdn2d(bias_act(x, b, 1, "linear", 0.0, 1.0, None), fu, up)
    return upfirdn2d(bias_act(x, None, 1, "lrelu", *numbers), fd, down)
