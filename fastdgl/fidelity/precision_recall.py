"""Improved precision and recall: which fakes lie among the real images, and which real images among the fakes."""

import torch
from torch import Tensor

from .neighbours import squared_radii, within

K = 3


def precision_recall(real: Tensor, fake: Tensor, k: int = K) -> tuple[float, float]:
    """The share of `fake` that lies in the manifold of `real`, and the share of `real` that lies in that of `fake`.

    A manifold is the union of balls, one around each feature, that reach to its k-th nearest neighbour.

    Args:
        real, fake: Features `[M, d]` and `[N, d]`, M, N > k.

    Raises:
        FeatureError: The features differ in dimension.

    Source: Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models", equations 1 and 2.
    """
    return share_within(fake, real, k), share_within(real, fake, k)


def share_within(x: Tensor, others: Tensor, k: int) -> float:
    """The share of `x` that lies in the manifold of `others`."""
    covered = [block.any(dim=1) for block in within(x, others, squared_radii(others, k), border=True)]
    return float(torch.cat(covered).double().mean())
