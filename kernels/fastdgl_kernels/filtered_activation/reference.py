"""filtered_lrelu as it is defined, by the references of its steps. Arguments are checked at the door, not here."""

from torch import Tensor

from ..activation.reference import bias_act
from ..resampling.geometry import Resample
from ..resampling.reference import upfirdn2d


def filtered_lrelu(
    x: Tensor,
    b: Tensor | None,
    fu: Tensor | None,
    fd: Tensor | None,
    up: Resample,
    down: Resample,
    slope: float,
    gain: float,
    clamp: float | None,
) -> Tensor:
    """y = down(clamp(gain * lrelu(up(x + b))))."""
    x = upfirdn2d(bias_act(x, b, 1, "linear", 0.0, 1.0, None), fu, up)
    return upfirdn2d(bias_act(x, None, 1, "lrelu", slope, gain, clamp), fd, down)
