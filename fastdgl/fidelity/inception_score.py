"""Inception Score: how sure a classifier is of each image, and how evenly the images fall to its classes."""

import torch
from torch import Tensor

SPLITS = 10


def inception_score(probabilities: Tensor, splits: int = SPLITS) -> tuple[float, float]:
    """Mean and standard deviation over the splits of

        exp(E_x KL(p(y | x) || p(y)))

    Args:
        probabilities: p(y | x), `[N, classes]`, N >= splits; each row sums to 1.
        splits: The images are cut into so many runs of neighbours, each with a p(y) of its own.

    Source: Salimans et al. 2016, "Improved Techniques for Training GANs", section 4.
    """
    N = len(probabilities)
    parts = (probabilities[i * N // splits:(i + 1) * N // splits].double() for i in range(splits))
    scores = torch.stack([(-entropy(p).mean() + entropy(p.mean(dim=0))).exp() for p in parts])
    return float(scores.mean()), float(scores.std(correction=0))


def entropy(p: Tensor) -> Tensor:
    """`[..., classes]` -> `[...]`, in nats; a class that cannot be adds nothing."""
    return torch.special.entr(p).sum(dim=-1)
