"""The numbers of a resampling convolution in one value. Nothing here has seen a tensor."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch

from .._tuning import kept
from ..resampling.geometry import Padding, Pair


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


@dataclass(frozen=True)
class Geometry:
    """What a convolution is besides its numbers. Pairs are (y, x), as PyTorch's convolutions have them.

    Args:
        kernel: Height and width.
        stride: Of both axes.
        padding: Zeros on either side; of a transposed convolution, what is cropped.
        transposed: Whether this is the map from the output of the convolution to its input.
        output_padding: Of a transposed convolution: rows and columns at the end that no output has seen.
        groups: Of channels.
        own: Whether kernels of our own compute it, and not PyTorch; see `algebra.owned`.
        dense: Whether images and weights are brought into the layout that is fast, see `_layout.dense`.
    """

    kernel: Pair
    stride: int = 1
    padding: Pair = (0, 0)
    transposed: bool = False
    output_padding: Pair = (0, 0)
    groups: int = 1
    own: bool = False
    dense: bool = True

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        parts = self.kernel, self.stride, self.padding, self.transposed, self.output_padding, self.groups, self.own, self.dense
        return hash(parts)

    def output_size(self, size: Pair) -> Pair:
        """Height and width of what comes of an image of `size`."""
        return tuple(
            (n - 1) * self.stride - 2 * p + k + o if self.transposed else (n + 2 * p - k) // self.stride + 1
            for n, k, p, o in zip(size, self.kernel, self.padding, self.output_padding)
        )

    @kept
    def adjoint(self, size: Pair) -> "Geometry":
        """The transposed map, of the same weight, which takes an output's gradient to its input's, of `size`."""
        if self.transposed:
            return replace(self, transposed=False, output_padding=(0, 0))
        backwards = replace(self, transposed=True)
        reached = backwards.output_size(self.output_size(size))
        return replace(backwards, output_padding=(size[0] - reached[0], size[1] - reached[1]))

    def again(self) -> "Geometry":
        """For a derivative that is to be differentiated itself: PyTorch's, in any case."""
        return replace(self, own=False) if self.own and torch.is_grad_enabled() else self

    @cached_property
    def of_weight(self) -> "Geometry":
        """The convolution whose weight gradient this map has."""
        return replace(self, transposed=False, output_padding=(0, 0))


def rest_of_padding(padding: Padding, kernel: Pair, up: int) -> Padding:
    """What is left to pad after a transposed convolution of a `kernel` (h, w): that pads the upsampled image too."""
    (x0, x1, y0, y1), (kh, kw) = padding, kernel
    # by k - 1 before, and by k - up after
    return x0 - kw + 1, x1 - kw + up, y0 - kh + 1, y1 - kh + up
