"""The losses against their formulas, and the penalties of functions whose gradients are known."""

import numpy as np
import pytest
import torch
from numerics import normal

from fastdgl import config as configs
from fastdgl.losses import (
    ADVERSARIAL,
    DISTANCES,
    hinge_discriminator_loss,
    hinge_generator_loss,
    nonsaturating_discriminator_loss,
    nonsaturating_generator_loss,
    orthogonal_penalty,
    path_lengths,
    r1_penalty,
    rmse_distance,
)

LOGITS = torch.tensor([[-200.0], [-3.0], [0.0], [0.5], [200.0]], dtype=torch.float64)


def softplus(t):
    return np.logaddexp(0, t)


def test_generator_loss_is_softplus_of_minus_the_logit():
    np.testing.assert_allclose(nonsaturating_generator_loss(LOGITS), softplus(-LOGITS.numpy()), rtol=1e-12)
    # small where D takes the image for real
    assert nonsaturating_generator_loss(torch.tensor([[9.0]])) < nonsaturating_generator_loss(torch.tensor([[-9.0]]))


def test_discriminator_loss_sums_both_sides():
    real, fake = LOGITS, LOGITS.flip(0)
    expected = softplus(fake.numpy()) + softplus(-real.numpy())
    np.testing.assert_allclose(nonsaturating_discriminator_loss(real, fake), expected, rtol=1e-12)
    assert nonsaturating_discriminator_loss(torch.tensor([[9.0]]), torch.tensor([[-9.0]])).item() < 1e-3


def test_losses_are_finite_where_exp_is_not():
    logits = torch.tensor([[-1e4], [1e4]])
    assert nonsaturating_generator_loss(logits).flatten().tolist() == [1e4, 0]
    assert nonsaturating_discriminator_loss(logits, logits).flatten().tolist() == [1e4, 1e4]


def test_hinge_generator_loss_is_minus_the_logit():
    assert torch.equal(hinge_generator_loss(LOGITS), -LOGITS)


def test_hinge_discriminator_loss_ends_at_a_margin_of_one():
    real, fake = LOGITS, LOGITS.flip(0)
    expected = np.maximum(0, 1 - real.numpy()) + np.maximum(0, 1 + fake.numpy())
    np.testing.assert_allclose(hinge_discriminator_loss(real, fake), expected)
    # real above 1 and fake below -1: nothing left to learn
    assert hinge_discriminator_loss(torch.tensor([[1.5]]), torch.tensor([[-1.5]])).item() == 0
    assert hinge_discriminator_loss(torch.tensor([[-1.0]]), torch.tensor([[3.0]])).item() == 2 + 4


def test_each_family_has_its_two_losses():
    assert {family.model_fields["loss"].default.adversarial for family in configs.FAMILIES.values()} == set(ADVERSARIAL)
    for name, adversarial in ADVERSARIAL.items():
        # G is better off where D takes fakes for real, and D where it does not
        low, high = torch.tensor([[-0.5]]), torch.tensor([[0.5]])
        assert adversarial.generator(high) < adversarial.generator(low), name
        assert adversarial.discriminator(high, low) < adversarial.discriminator(low, high), name


def test_the_gradient_of_the_orthogonal_penalty_is_that_of_the_authors():
    """2 (W W^T * (1 - I)) W for each weight, convolutions as matrices."""
    weights = [normal(4, 3, 2, 2).requires_grad_(), normal(5, 6, seed=1).requires_grad_()]
    for weight, gradient in zip(weights, torch.autograd.grad(orthogonal_penalty(weights), weights)):
        W = weight.detach().reshape(len(weight), -1)
        expected = 2 * (W @ W.T * (1 - torch.eye(len(W), dtype=W.dtype))) @ W
        torch.testing.assert_close(gradient.reshape(W.shape), expected)


def test_orthogonal_filters_of_any_length_have_no_penalty():
    assert orthogonal_penalty([torch.diag(torch.tensor([3.0, 0.1, 7.0]))]) == 0
    assert orthogonal_penalty([torch.ones(2, 3)]) == 9


def test_r1_of_a_quadratic():
    """D(x) = |x|^2 / 2 has the gradient x, so the penalty is |x|^2 and its own gradient 2 x."""
    x = normal(3, 2, 4, 4).requires_grad_()
    penalty = r1_penalty(x.square().sum(dim=[1, 2, 3]).unsqueeze(1) / 2, x)
    torch.testing.assert_close(penalty, x.square().sum(dim=[1, 2, 3]))
    gradient, = torch.autograd.grad(penalty.sum(), x)
    torch.testing.assert_close(gradient, 2 * x)


def test_r1_of_a_linear_function_is_the_squared_norm_of_its_weights():
    weight = normal(2, 4, 4, seed=1).requires_grad_()
    x = normal(3, 2, 4, 4).requires_grad_()
    penalty = r1_penalty((x * weight).sum(dim=[1, 2, 3]).unsqueeze(1), x)
    torch.testing.assert_close(penalty, weight.square().sum().expand(3))
    gradient, = torch.autograd.grad(penalty.mean(), weight)
    torch.testing.assert_close(gradient, 2 * weight)


@pytest.mark.parametrize("num_ws", [1, 3])
def test_path_length_of_a_linear_generator(num_ws):
    """image = sum over layers of J_l w_l: the length is the root of the mean over layers of |J_l^T y|^2."""
    N, C, H, W, w_dim = 2, 3, 4, 8, 5
    jacobian, y = normal(num_ws, C * H * W, w_dim, seed=1), normal(N, C, H, W, seed=2)
    ws = normal(N, num_ws, w_dim).requires_grad_()
    images = torch.einsum("lpd,nld->np", jacobian, ws).reshape(N, C, H, W)
    lengths = path_lengths(images, ws, lambda size, device: y)

    direction = (y / np.sqrt(H * W)).reshape(N, -1).numpy()
    gradient = np.einsum("lpd,np->nld", jacobian.numpy(), direction)
    expected = np.sqrt((gradient**2).sum(axis=2).mean(axis=1))
    np.testing.assert_allclose(lengths.detach(), expected, rtol=1e-12)


def test_path_length_draws_standard_normal_directions_of_its_own():
    ws = normal(4, 2, 5).requires_grad_()
    images = ws.sum(dim=[1, 2]).reshape(4, 1, 1, 1).expand(4, 3, 8, 8)
    first, second = path_lengths(images, ws), path_lengths(images, ws)
    assert first.shape == (4,) and len(torch.cat([first, second]).unique()) == 8


def test_path_length_can_be_differentiated():
    """image = s w^2 / 2 has the Jacobian s diag(w), so the length is s |w y| and grows with s."""
    s = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    ws = normal(1, 1, 4).requires_grad_()
    y = normal(1, 1, 2, 2, seed=1)
    lengths = path_lengths((s * ws.square() / 2).reshape(1, 1, 2, 2), ws, lambda size, device: y)
    by_s, by_w = torch.autograd.grad(lengths.sum(), [s, ws])
    torch.testing.assert_close(by_s, lengths.sum() / s)
    torch.testing.assert_close(by_w.flatten(), (s**2 * ws * (y.flatten() / 2).square() / lengths).flatten())


def gram(features):
    """F F^T / (C H W) of each sample, one product at a time."""
    N, C, H, W = features.shape
    matrices = np.empty((N, C, C))
    for n in range(N):
        for i in range(C):
            for j in range(C):
                matrices[n, i, j] = sum(features[n, i, h, w] * features[n, j, h, w] for h in range(H) for w in range(W)) / (C * H * W)
    return matrices


def l1_by_hand(x, y):
    """The value `[N]` and its gradient by x."""
    return np.abs(x - y).mean(axis=(1, 2, 3)), np.sign(x - y) / x[0].size


def rmse_by_hand(x, y):
    root = np.sqrt(((x - y) ** 2).mean(axis=(1, 2, 3)))
    return root, (x - y) / (x[0].size * root[:, None, None, None])


def gram_by_hand(x, y):
    """d(gram) = 2 E F / (C H W) for a symmetric E = d(rmse)/d(gram)."""
    difference = gram(x) - gram(y)
    root = np.sqrt((difference**2).mean(axis=(1, 2)))
    E = difference / (difference[0].size * root[:, None, None])
    return root, 2 * np.einsum("nij,njhw->nihw", E, x) / x[0].size


@pytest.mark.parametrize(("name", "by_hand"), [("l1", l1_by_hand), ("rmse", rmse_by_hand), ("gram", gram_by_hand)])
@pytest.mark.parametrize("shape", [(3, 4, 2, 5), (2, 1, 1, 1), (1, 3, 1, 2)], ids=str)
def test_distances_of_features_and_their_gradients_are_those_of_their_formulas(name, by_hand, shape):
    x, y = normal(*shape).requires_grad_(), normal(*shape, seed=1)
    value, gradient = by_hand(x.detach().numpy(), y.numpy())
    distance = DISTANCES[name](x, y)
    np.testing.assert_allclose(distance.detach(), value, rtol=1e-12)
    np.testing.assert_allclose(torch.autograd.grad(distance.sum(), x)[0], gradient, rtol=1e-10)
    assert torch.autograd.gradcheck(DISTANCES[name], (x, y.requires_grad_()))


@pytest.mark.parametrize("name", DISTANCES)
def test_equal_features_are_at_no_distance_and_pull_nowhere(name):
    """A student that starts as a copy of its teacher: the root of 0 has no gradient."""
    x = normal(2, 3, 4, 4).requires_grad_()
    distance = DISTANCES[name](x, x.detach().clone())
    assert distance.eq(0).all() and torch.autograd.grad(distance.sum(), x)[0].eq(0).all()


@pytest.mark.parametrize("name", DISTANCES)
def test_features_in_16_bits_are_compared_in_fp32(name):
    # their squares overflow
    x, y = (300 * normal(2, 3, 4, 4, seed=seed, dtype=torch.float16) for seed in (0, 1))
    torch.testing.assert_close(DISTANCES[name](x, y), DISTANCES[name](x.float(), y.float()), rtol=0, atol=0)
    assert DISTANCES[name](x, y).isfinite().all()


def test_the_root_is_of_each_sample():
    x = torch.zeros(2, 1, 1, 1)
    assert rmse_distance(x, torch.tensor([3.0, 5.0]).view(2, 1, 1, 1)).tolist() == [3, 5]
