"""Distances between two sets of features, some rows at a time, and the balls that neighbours make."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .moments import check_same_dimension

# distances held at once: 512 MiB of float64
MOST_DISTANCES = 2**26


def distances(x: Tensor, y: Tensor, most: int = MOST_DISTANCES) -> Iterator[Tensor]:
    """Squared distances of each row of `x`, `[M, d]`, to each of `y`, `[N, d]`: blocks `[m, N]`, float64, in order.

    Args:
        most: So many at once, at least a row.

    Raises:
        FeatureError: The features differ in dimension.
    """
    check_same_dimension(x, y)
    # |x - y|^2 from |x|^2 and |y|^2 loses digits where features lie far from the origin
    centre = y.double().mean(dim=0)
    y = y.double() - centre
    y_norms = y.square().sum(dim=1)
    for rows in x.split(max(most // len(y), 1)):
        rows = rows.double() - centre
        yield (rows.square().sum(dim=1)[:, None] + y_norms - 2 * rows @ y.T).clamp(min=0)


def squared_radii(x: Tensor, k: int) -> Tensor:
    """The squared distance of each of `x`, `[N, d]`, N > k, to its k-th nearest other, `[N]`, float64."""
    # the nearest of all is itself
    return torch.cat([block.kthvalue(k + 1, dim=1).values for block in distances(x, x)])
