"""The sizes of resampling, as arithmetic on integers. Nothing here has seen a tensor.

Pairs are (x, y): width first, as everywhere in upfirdn2d. Paddings are (x0, x1, y0, y1), before and after.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import index

from .._tuning import kept

Pair = tuple[int, int]
Padding = tuple[int, int, int, int]


@dataclass(frozen=True)
class Resample:
    """Insert zeros, pad, filter, keep every `down`-th: one linear map of images, less its filter.

    Args:
        up: Each sample is followed by `up - 1` zeros.
        down: Every `down`-th sample is kept.
        padding: Zeros around the upsampled image; negative crops it.
        flip_filter: False to convolve, True to correlate.
        gain: Factor on the result.
    """

    up: Pair = (1, 1)
    down: Pair = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    flip_filter: bool = False
    gain: float = 1.0

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.up, self.down, self.padding, self.flip_filter, self.gain))

    @cached_property
    def is_common(self) -> bool:
        """Return whether a network uses these factors: one for both axes, 2 at most, up or down."""
        (ux, uy), (dx, dy) = self.up, self.down
        return ux == uy and dx == dy and (ux, dx) in ((1, 1), (2, 1), (1, 2))

    def output_size(self, size: Pair, taps: Pair) -> Pair:
        """Width and height of what comes of an image of `size`; not positive where nothing does."""
        x0, x1, y0, y1 = self.padding
        width = (size[0] * self.up[0] + x0 + x1 - taps[0]) // self.down[0] + 1
        height = (size[1] * self.up[1] + y0 + y1 - taps[1]) // self.down[1] + 1
        return width, height

    @kept
    def adjoint(self, size: Pair, taps: Pair) -> "Resample":
        """The transposed map, which takes the gradient of the output to the gradient of the input.

            y[o]  = sum_i f[i * up + pad - o * down] x[i]
            dx[i] = sum_o f[i * up + pad - o * down] dy[o]

        Args:
            size: Of the input.
            taps: Of the filter.
        """
        width, height = self.output_size(size, taps)
        x0, _, y0, _ = self.padding
        padding = (
            taps[0] - 1 - x0,
            size[0] * self.up[0] - width * self.down[0] + x0 - self.up[0] + 1,
            taps[1] - 1 - y0,
            size[1] * self.up[1] - height * self.down[1] + y0 - self.up[1] + 1,
        )
        return Resample(self.down, self.up, padding, not self.flip_filter, self.gain)


# far beyond any image, and small enough for 32 bits wherever kernels add it to a position
LARGEST = 2**24


def parse_scaling(scaling: int | Sequence[int], name: str) -> Pair:
    """`s` or `[x, y]` to (x, y)."""
    numbers = _integers(scaling, name)
    if len(numbers) == 1:
        numbers = numbers * 2
    if len(numbers) != 2 or min(numbers) < 1:
        raise ValueError(f"{name} must be one or two integers of at least 1, got {scaling!r}")
    return numbers


def parse_padding(padding: int | Sequence[int]) -> Padding:
    """`p`, `[x, y]` or `[x0, x1, y0, y1]` to (x0, x1, y0, y1)."""
    numbers = _integers(padding, "padding")
    if len(numbers) == 1:
        numbers = numbers * 4
    if len(numbers) == 2:
        numbers = (numbers[0], numbers[0], numbers[1], numbers[1])
    if len(numbers) != 4:
        raise ValueError(f"padding must be one, two or four integers, got {padding!r}")
    return numbers


def same(taps: Pair, padding: Padding) -> Padding:
    """`padding` plus what keeps an image at its size when it is filtered."""
    (w, h), (x0, x1, y0, y1) = taps, padding
    return x0 + w // 2, x1 + (w - 1) // 2, y0 + h // 2, y1 + (h - 1) // 2


def around_up(taps: Pair, up: Pair, padding: Padding) -> Padding:
    """`padding` plus what makes an upsampled image `up` times its size."""
    (w, h), (ux, uy), (x0, x1, y0, y1) = taps, up, padding
    return x0 + (w + ux - 1) // 2, x1 + (w - ux) // 2, y0 + (h + uy - 1) // 2, y1 + (h - uy) // 2


def around_down(taps: Pair, down: Pair, padding: Padding) -> Padding:
    """`padding` plus what makes a downsampled image 1 / `down` of its size."""
    (w, h), (dx, dy), (x0, x1, y0, y1) = taps, down, padding
    return x0 + (w - dx + 1) // 2, x1 + (w - dx) // 2, y0 + (h - dy + 1) // 2, y1 + (h - dy) // 2


def _integers(numbers: int | Sequence[int], name: str) -> tuple[int, ...]:
    try:
        integers = tuple(index(n) for n in (numbers if isinstance(numbers, Sequence) else [numbers]))
    except TypeError:
        raise TypeError(f"{name} must be an integer or a list of integers, got {numbers!r}") from None
    if any(abs(n) > LARGEST for n in integers):
        raise ValueError(f"{name} must be from -{LARGEST} to {LARGEST}, got {numbers!r}")
    return integers
