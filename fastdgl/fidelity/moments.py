"""Mean and covariance of features that come in batches, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class FeatureError(ValueError):
    """Features that cannot be compared, in one sentence."""


@dataclass(frozen=True)
class Moments:
    """What a Fréchet distance takes of a set of features.

        mean = sum x / count,  scatter = sum (x - mean) (x - mean)^T

    Moments of parts add up to those of the whole, `a + b`, in whatever parts it came.

    count: Of features.
    mean: `[d]`, float64.
    scatter: `[d, d]`, float64.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Of features `[N, d]`, N >= 1, of any floating dtype."""
        features = features.double()
        mean = features.mean(dim=0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    @property
    def covariance(self) -> Tensor:
        """`[d, d]`, over `count` and not over `count - 1`: NVIDIA's convention."""
        return self.scatter / self.count

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets as one.

        Raises:
            FeatureError: Their features differ in dimension.

        Source: Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance", equation 2.1.
        """
        check_same_dimension(self.mean, other.mean)
        count = self.count + other.count
        difference = other.mean - self.mean
        between = torch.outer(difference, difference) * (self.count * other.count / count)
        return Moments(count, self.mean + difference * (other.count / count), self.scatter + other.scatter + between)


def check_same_dimension(real: Tensor, fake: Tensor) -> None:
    """Features, or their means, are compared in one space: the last dimensions agree.

    Raises:
        FeatureError: They do not.
    """
    if real.shape[-1] != fake.shape[-1]:
        raise FeatureError(f"features of {real.shape[-1]} and of {fake.shape[-1]} numbers cannot be compared; take both from the same detector")
