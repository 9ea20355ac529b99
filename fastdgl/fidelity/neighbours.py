"""Distances between two sets of features, some rows at a time, and the balls that neighbours make."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .moments import check_same_dimension

# distances held at once: 256 MiB of float64
MOST_DISTANCES = 2**25
# neighbours beyond the k-th among which rounding may have chosen it
SPARE = 8
# of float64
UNIT = 2.0**-53


def distances(x: Tensor, y: Tensor, most: int = MOST_DISTANCES) -> Iterator[Tensor]:
    """Squared distances of each row of `x`, `[M, d]`, to each of `y`, `[N, d]`: blocks `[m, N]`, float64, in order.

    Rounded as |x|^2 + |y|^2 - 2 x y is; `squared_radii` and `within` decide by `exact_distances` where that matters.

    Args:
        most: So many at once, at least a row.

    Raises:
        FeatureError: The features differ in dimension.
    """
    for _, block, _ in rounded_distances(x, y, most):
        yield block


def rounded_distances(x: Tensor, y: Tensor, most: int = MOST_DISTANCES) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The rows of `x` in a block `[m, d]`, as of `distances` the block `[m, N]`, and how far each of it may be off, `[m, N]`."""
    check_same_dimension(x, y)
    # |x - y|^2 from |x|^2 and |y|^2 loses digits where features lie far from the origin
    centre = y.double().mean(dim=0)
    y = y.double() - centre
    y_norms = y.square().sum(dim=1)
    # Higham 2002, section 3.1: a sum of d products is off by at most d units of the sum of their sizes, here in three of them
    bound = 4 * (x.shape[1] + 4) * UNIT
    for rows in x.split(max(most // len(y), 1)):
        moved = rows.double() - centre
        norms = moved.square().sum(dim=1)[:, None] + y_norms
        yield rows, (norms - 2 * moved @ y.T).clamp(min=0), bound * norms


def exact_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances of rows `[..., d]` that stand beside each other, from their differences: `[...]`, float64."""
    return (x.double() - y.double()).square().sum(dim=-1)


def squared_radii(x: Tensor, k: int) -> Tensor:
    """The squared distance of each of `x`, `[N, d]`, N > k, to its k-th nearest other, `[N]`, float64, from differences."""
    radii = []
    for rows, block, _ in rounded_distances(x, x):
        # the nearest of all is itself
        nearest = block.topk(min(k + 1 + SPARE, len(x)), dim=1, largest=False).indices
        for some, theirs in zip(rows.split(chunk(x, nearest.shape[1])), nearest.split(chunk(x, nearest.shape[1]))):
            radii.append(exact_distances(some[:, None], x[theirs]).kthvalue(k + 1, dim=1).values)
    return torch.cat(radii)


def within(x: Tensor, y: Tensor, radii: Tensor, border: bool) -> Iterator[Tensor]:
    """Which of `x`, `[M, d]`, lie in the balls around `y`, `[N, d]`: blocks of bool `[m, N]`, in order.

    Args:
        radii: Squared, `[N]`, of `squared_radii`.
        border: Whether the border of a ball belongs to it: there lie all copies of a feature that a radius reaches to.

    Raises:
        FeatureError: The features differ in dimension.
    """
    # two sums of the same d squares, in whatever order, differ by no more than this part of them
    tie = 2 * (x.shape[1] + 2) * UNIT
    for rows, block, off in rounded_distances(x, y):
        inside = block < radii
        # both sides are rounded: what lies so close to a border is computed once more, from differences
        unsure = (block - radii).abs() <= off + tie * radii
        pairs = unsure.nonzero()
        for i, j in (part.unbind(dim=1) for part in pairs.split(chunk(x, 1))):
            d, r = exact_distances(rows[i], y[j]), radii[j]
            on_border = (d - r).abs() <= tie * r
            inside[i, j] = (d < r) & ~on_border | on_border & border
        yield inside


def chunk(x: Tensor, neighbours: int) -> int:
    """How many rows of so many neighbours each, `[..., d]`, are held at once."""
    return max(MOST_DISTANCES // (neighbours * x.shape[1]), 1)
