"""FID: how far the Gaussians of two sets of features lie apart."""

import torch
from torch import Tensor

from .moments import Moments, check_same_dimension


def frechet_distance(real: Moments, fake: Moments) -> float:
    """The squared Fréchet distance of two Gaussians.

        |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))

    S1 S2 has the eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric: the trace of its root is the sum of their roots.
    So singular covariances, of fewer images than features have numbers, need no care.

    Raises:
        FeatureError: The features differ in dimension.

    Source: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", equation 6.
    """
    check_same_dimension(real.mean, fake.mean)
    root = root_of_symmetric(real.covariance)
    eigenvalues = torch.linalg.eigvalsh(root @ fake.covariance @ root)
    trace_of_root = eigenvalues.clamp(min=0).sqrt().sum()
    distance = (real.mean - fake.mean).square().sum() + real.covariance.trace() + fake.covariance.trace() - 2 * trace_of_root
    return float(distance)


def root_of_symmetric(matrix: Tensor) -> Tensor:
    """The square root of a positive semidefinite matrix, `[d, d]`."""
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    # rounding makes zeros negative
    return (vectors * eigenvalues.clamp(min=0).sqrt()) @ vectors.T
