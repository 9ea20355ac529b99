"""Density and coverage: how many real images a fake lies close to, and how many of them have a fake close by."""

from torch import Tensor

from .neighbours import squared_radii, within

K = 5


def density_coverage(real: Tensor, fake: Tensor, k: int = K) -> tuple[float, float]:
    """Both of `fake`, by the balls around the real features that reach to their k-th nearest real neighbours.

        density = (number of pairs of a fake and a ball it lies in) / (k N),  coverage = (balls with a fake in them) / M

    Args:
        real, fake: Features `[M, d]`, M > k, and `[N, d]`.

    Raises:
        FeatureError: The features differ in dimension.

    Source: Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models", equations 3 and 4.
    """
    # the border is outside, in their code and here
    fakes_in_ball = sum(block.sum(dim=0) for block in within(fake, real, squared_radii(real, k), border=False))
    density = fakes_in_ball.double().sum() / (k * len(fake))
    return float(density), float((fakes_in_ball > 0).double().mean())
