"""KID: how far two sets of features lie apart under a polynomial kernel, without bias in the number of images."""

import numpy as np
import torch
from torch import Tensor

from .moments import check_same_dimension

SUBSETS = 100
SUBSET_SIZE = 1000


def kernel_distance(real: Tensor, fake: Tensor, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE) -> float:
    """The mean over random subsets of the unbiased squared maximum mean discrepancy, with the kernel (x · y / d + 1)^3.

    Args:
        real, fake: Features `[M, d]` and `[N, d]`, M, N >= 2; the result is the same whatever device they are on.
        subsets: How many pairs of subsets; always the same ones.
        subset_size: Features in each, without repetition; at most M and N are taken.

    Raises:
        FeatureError: The features differ in dimension.

    Source: Bińkowski et al. 2018, "Demystifying MMD GANs", section 4.
    """
    check_same_dimension(real, fake)
    size = min(subset_size, len(real), len(fake))
    random = np.random.RandomState(0)
    distances = []
    for _ in range(subsets):
        x = real[torch.from_numpy(random.choice(len(real), size, replace=False))]
        y = fake[torch.from_numpy(random.choice(len(fake), size, replace=False))]
        distances.append(squared_discrepancy(x.double(), y.double()))
    return float(torch.stack(distances).mean())


def squared_discrepancy(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased squared maximum mean discrepancy of `[n, d]` and `[n, d]`, a scalar, which may be negative.

        sum_{i != j} (k(x_i, x_j) + k(y_i, y_j)) / (n (n - 1)) - 2 sum_{i, j} k(x_i, y_j) / n^2
    """
    n = len(x)
    within = sum(k.sum() - k.trace() for k in (kernel(x, x), kernel(y, y)))
    return within / (n * (n - 1)) - 2 * kernel(x, y).mean()


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """`[n, d]`, `[m, d]` -> `[n, m]`."""
    return (x @ y.T / x.shape[1] + 1) ** 3
