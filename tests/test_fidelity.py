"""The metrics' formulas, each against another computation of the same number."""

import itertools
import math

import numpy as np
import pytest
import torch
from numerics import assert_close, normal

from fastdgl.fidelity.density_coverage import density_coverage
from fastdgl.fidelity.frechet_distance import frechet_distance
from fastdgl.fidelity.inception_score import inception_score
from fastdgl.fidelity.kernel_distance import kernel_distance
from fastdgl.fidelity.moments import FeatureError, Moments
from fastdgl.fidelity.neighbours import distances, squared_radii
from fastdgl.fidelity.path_length import perceptual_path_length
from fastdgl.fidelity.precision_recall import precision_recall

D = 12


def features(N, seed, *, d=D, mean=0.0):
    """Features `[N, d]` that are correlated and lie around `mean`, float32 as a detector's."""
    return (normal(N, d, seed=seed) @ normal(d, d, seed=100 + seed) + mean).float()


def moments_in_batches(x, sizes):
    parts = [Moments.of(part) for part in x.split(sizes)]
    return sum(parts[1:], parts[0])


@pytest.mark.parametrize("sizes", [[50], [1] * 50, [7, 30, 13], [49, 1]], ids=["one", "singles", "uneven", "last-alone"])
def test_moments_do_not_depend_on_the_batches(sizes):
    x = features(50, 0, mean=1000.0)
    moments = moments_in_batches(x, sizes)
    assert moments.count == 50 and moments.mean.dtype == moments.scatter.dtype == torch.float64
    assert_close(moments.mean, torch.from_numpy(x.double().numpy().mean(axis=0)), tolerance=1e-14)
    assert_close(moments.covariance, torch.from_numpy(np.cov(x.double().numpy(), rowvar=False, bias=True)), tolerance=1e-11)


def root_by_newton(A):
    """A^(1/2), also of a matrix that is not symmetric, by the product form of the iteration of Denman and Beavers."""
    X, Y = A, np.eye(len(A))
    for _ in range(60):
        X, Y = (X + np.linalg.inv(Y)) / 2, (Y + np.linalg.inv(X)) / 2
    return X


def root_by_scipy(A):
    return pytest.importorskip("scipy.linalg").sqrtm(A).real


@pytest.mark.parametrize("root", [root_by_newton, root_by_scipy])
def test_frechet_distance_is_that_of_the_matrix_root(root):
    x, y = features(200, 0), features(300, 1, mean=0.5)
    (m1, S1), (m2, S2) = ((a.mean(axis=0), np.cov(a, rowvar=False, bias=True)) for a in (x.double().numpy(), y.double().numpy()))
    expected = ((m1 - m2) ** 2).sum() + np.trace(S1 + S2 - 2 * root(S1 @ S2))
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_singular_covariances_is_that_of_their_span():
    """Fewer images than numbers in a feature: in coordinates of the span, one number per image is left out of account."""
    x, y = normal(5, 3, seed=0), normal(6, 3, seed=1)
    span = torch.linalg.qr(normal(D, 3, seed=2))[0].T                 # [3, D], orthonormal rows
    expected = frechet_distance(Moments.of(x), Moments.of(y))
    assert frechet_distance(Moments.of(x @ span), Moments.of(y @ span)) == pytest.approx(expected, rel=1e-6)


def test_a_set_is_at_no_distance_of_itself():
    x = features(100, 0)
    assert abs(frechet_distance(Moments.of(x), Moments.of(x))) < 1e-6 * float(Moments.of(x).covariance.trace())


def kernel_by_hand(x, y):
    return (sum(float(a) * float(b) for a, b in zip(x, y)) / len(x) + 1) ** 3


def test_kernel_distance_of_whole_sets_is_that_of_all_pairs():
    x, y = features(6, 0, d=3), features(6, 1, d=3, mean=0.5)
    pairs = list(itertools.permutations(range(6), 2))
    within = sum(kernel_by_hand(s[i], s[j]) for s in (x, y) for i, j in pairs) / len(pairs)
    between = sum(kernel_by_hand(a, b) for a in x for b in y) / 36
    # a subset as large as the set is the set, whatever its order
    assert kernel_distance(x, y, subsets=3) == pytest.approx(within - 2 * between, rel=1e-9)


def test_kernel_distance_of_subsets_has_the_mean_of_the_whole():
    x, y = features(40, 0, d=3), features(30, 1, d=3, mean=0.5)
    exact = kernel_distance(x[:30], y, subsets=1)
    assert kernel_distance(x[:30], y, subsets=4000, subset_size=8) == pytest.approx(exact, rel=0.1)
    assert kernel_distance(x, y) == kernel_distance(x, y)


def radii_by_hand(x, k):
    """The distance of each to its k-th nearest other."""
    return [sorted(float((a - b).norm()) for j, b in enumerate(x) if j != i)[k - 1] for i, a in enumerate(x)]


def inside_by_hand(x, others, k):
    """Whether each of x lies in the ball of each of the others, `[x][others]`."""
    radii = radii_by_hand(others, k)
    return [[float((a - b).norm()) <= r for b, r in zip(others, radii)] for a in x]


@pytest.fixture
def overlapping():
    """Sets that lie half in each other."""
    return features(40, 0, d=3).double(), features(31, 0, d=3, mean=1.0).double()


def test_precision_and_recall_are_those_of_all_pairs(overlapping):
    real, fake = overlapping
    expected = [np.mean([any(row) for row in inside_by_hand(x, others, 3)]) for x, others in ((fake, real), (real, fake))]
    assert 0 < min(expected) and max(expected) < 1
    assert precision_recall(real, fake) == pytest.approx(expected)


def test_density_and_coverage_are_those_of_all_pairs(overlapping):
    real, fake = overlapping
    inside = np.array(inside_by_hand(fake, real, 5))
    expected = inside.sum() / (5 * len(fake)), inside.any(axis=0).mean()
    assert 0 < expected[1] < 1
    assert density_coverage(real, fake) == pytest.approx(expected)


def ties(kind):
    """Real images, and fakes many of which lie on the border of a ball: copies of real ones, and points of a lattice."""
    real = {"far": lambda: features(60, 3, mean=30.0), "near": lambda: features(60, 4, d=5), "lattice": lambda: features(60, 5, d=3).round(),
            "outlier": lambda: torch.cat([features(59, 6), 1e4 + features(1, 7)]), "one": lambda: torch.ones(60, 8)}[kind]()
    return real, real[torch.randperm(60, generator=torch.Generator().manual_seed(0))[:45]]


@pytest.mark.parametrize("kind", ["far", "near", "lattice", "outlier", "one"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_fakes_that_are_copies_lie_on_borders_and_not_beside_them(kind, dtype):
    """On a border is outside a ball of density and coverage, and inside one of precision and recall."""
    real, fake = (x.to(dtype) for x in ties(kind))

    def squares(x, y):
        return ((x.double().numpy()[:, None] - y.double().numpy()) ** 2).sum(axis=2)

    def radii(x, k):
        return np.sort(squares(x, x), axis=1)[:, k]

    inside = squares(fake, real) < radii(real, 5)
    assert density_coverage(real, fake) == (inside.sum() / (5 * len(fake)), inside.any(axis=0).mean())
    expected = [(squares(x, others) <= radii(others, 3)).any(axis=1).mean() for x, others in ((fake, real), (real, fake))]
    assert precision_recall(real, fake) == tuple(expected)


@pytest.mark.parametrize("most", [1, 31 * 7, 10**6], ids=["rows", "blocks", "whole"])
def test_distances_do_not_depend_on_the_blocks(most):
    x, y = features(40, 0, mean=1000.0), features(31, 1, mean=1000.0)
    expected = (x.double()[:, None] - y.double()).square().sum(dim=2)
    blocks = list(distances(x, y, most))
    assert all(block.numel() <= max(most, 31) for block in blocks)
    assert_close(torch.cat(blocks), expected)


def test_the_neighbours_of_a_feature_are_others():
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert squared_radii(x, 1).sqrt().tolist() == pytest.approx([1, 1, 2, 4])
    assert squared_radii(x, 2).sqrt().tolist() == pytest.approx([3, 2, 3, 6])


def test_inception_score_is_the_mean_of_exponential_divergences():
    p = features(20, 0, d=4).double().softmax(dim=1)
    scores = []
    for part in (p[:10].numpy(), p[10:].numpy()):
        marginal = part.mean(axis=0)
        scores.append(np.exp(np.mean([(row * (np.log(row) - np.log(marginal))).sum() for row in part])))
    assert inception_score(p, splits=2) == pytest.approx((np.mean(scores), np.std(scores)))


def test_inception_score_goes_from_one_to_the_number_of_classes():
    assert inception_score(torch.full([20, 4], 0.25)) == pytest.approx((1, 0))
    assert inception_score(torch.eye(4).repeat(10, 1)) == pytest.approx((4, 0))


@pytest.mark.parametrize("N", [1, 14, 101, 250])
def test_perceptual_path_length_leaves_out_less_than_a_percent_at_each_end(N):
    lengths = features(N, 0, d=1)[:, 0].double().square()
    below = math.floor((N - 1) / 100)                                 # the last length below the percentile stays
    kept = sorted(lengths.tolist())[below:N - below]
    assert perceptual_path_length(lengths) == pytest.approx(np.mean(kept), rel=1e-12)


@pytest.mark.parametrize("compare", [
    pytest.param(lambda x, y: Moments.of(x) + Moments.of(y), id="moments"),
    pytest.param(lambda x, y: frechet_distance(Moments.of(x), Moments.of(y)), id="fid"),
    pytest.param(kernel_distance, id="kid"),
    pytest.param(precision_recall, id="pr"),
    pytest.param(density_coverage, id="dc"),
])
def test_features_of_two_detectors_are_not_compared(compare):
    with pytest.raises(FeatureError, match="features of . and of . numbers cannot be compared"):
        compare(features(8, 0, d=3), features(8, 1, d=4))
