"""The numbers of a resampling convolution in one value. Nothing here has seen a tensor."""

from typing import NamedTuple

from ..resampling.geometry import Padding


class Spec(NamedTuple):
    """What conv2d_resample computes, less its tensors.

    Args:
        up, down: Factors.
        padding: For the upsampled image, with what the filters need.
        groups: Of channels.
        flip_weight: True to correlate with the weight, False to convolve.
        flip_filter: False to convolve with the filter, True to correlate.
    """

    up: int
    down: int
    padding: Padding
    groups: int = 1
    flip_weight: bool = True
    flip_filter: bool = False
