"""What is minimised: pure functions of logits, images, latents and features."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import widened


def nonsaturating_generator_loss(fake_logits: Tensor) -> Tensor:
    """`softplus(-D(G(z)))` per sample, `[N, 1]`: small where the discriminator takes the image for real.

    Source: Goodfellow et al. 2014, "Generative Adversarial Networks", section 3.
    """
    return F.softplus(-fake_logits)


def nonsaturating_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """`softplus(D(G(z))) + softplus(-D(x))` per sample, `[N, 1]`."""
    return F.softplus(fake_logits) + F.softplus(-real_logits)


def nonsaturating_slope(fake_logits: Tensor) -> Tensor:
    """Return `sigmoid(-D(G(z)))` per sample, `[N, 1]`, by how much G's loss falls where the logit rises by a little."""
    return torch.sigmoid(-fake_logits)


def hinge_generator_loss(fake_logits: Tensor) -> Tensor:
    """`-D(G(z))` per sample, `[N, 1]`.

    Source: Lim and Ye 2017, "Geometric GAN"; Brock et al. 2019, "Large Scale GAN Training for High Fidelity Natural
    Image Synthesis", section 3.
    """
    return -fake_logits


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """`relu(1 + D(G(z))) + relu(1 - D(x))` per sample, `[N, 1]`: nothing more to gain beyond a margin of 1."""
    return F.relu(1 + fake_logits) + F.relu(1 - real_logits)


@dataclass(frozen=True)
class Adversarial:
    """The two sides of a GAN's game, per sample, `[N, 1]`.

    generator: Of logits of fake images; a teacher's count in the same way.
    discriminator: Of logits of real and of fake images.
    slope: How fast G's loss falls where a logit rises: what weighs the gradient that comes through the discriminator.
    """

    generator: Callable[[Tensor], Tensor]
    discriminator: Callable[[Tensor, Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


# by the name that `loss.adversarial` gives
ADVERSARIAL = {
    "nonsaturating": Adversarial(nonsaturating_generator_loss, nonsaturating_discriminator_loss, nonsaturating_slope),
    "hinge": Adversarial(hinge_generator_loss, hinge_discriminator_loss, torch.ones_like),
}


def orthogonal_penalty(weights: Iterable[Tensor]) -> Tensor:
    """How far the filters of each weight are from orthogonal to one another; their lengths are free.

        sum over weights of |W W^T * (1 - I)|^2 / 2,  whose gradient is 2 (W W^T * (1 - I)) W

    Args:
        weights: `[O, ...]` each, at least one.

    Returns:
        A scalar, differentiable.

    Source: Brock et al. 2019, section 3.1, equation 3, halved as in the authors' code.
    """
    penalties = []
    for weight in weights:
        rows = widened(weight.flatten(1))
        gram = rows @ rows.T                                              # [O, O]
        penalties.append((gram - gram.diagonal().diag()).square().sum() / 2)
    return torch.stack(penalties).sum()


def r1_penalty(real_logits: Tensor, real: Tensor) -> Tensor:
    """Squared gradient of the logits at the real images, without gamma.

        |grad_x D(x)|^2

    Args:
        real_logits: `[N, 1]`, made from `real` with gradients on.
        real: `[N, C, H, W]`.

    Returns:
        `[N]`, differentiable.

    Source: Mescheder et al. 2018, "Which Training Methods for GANs do actually Converge?", equation 9.
    """
    gradient, = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
    return gradient.square().sum(dim=[1, 2, 3])


def path_lengths(images: Tensor, ws: Tensor, normal: Callable[..., Tensor] = torch.randn) -> Tensor:
    """How far the image moves, in a random direction, for a step of the latents.

        |J^T y|,  y ~ N(0, 1) / sqrt(H W)

    Args:
        images: `[N, C, H, W]`, made from `ws` with gradients on.
        ws: `[N, num_ws, w_dim]`, one latent per layer.
        normal: Draws y, called as torch.randn is.

    Returns:
        `[N]`, differentiable.

    Source: Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", equation 4.
    """
    y = normal(list(images.shape), device=images.device) / math.sqrt(images.shape[2] * images.shape[3])
    gradient, = torch.autograd.grad((images * y).sum(), ws, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()


def l1_distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference per sample.

        |x - y|_1 / (C H W)

    Args:
        x, y: Features `[N, C, H, W]`; those in 16 bits are compared in fp32.

    Returns:
        `[N]`, differentiable.
    """
    return (widened(x) - widened(y)).abs().flatten(1).mean(dim=1)


def rmse_distance(x: Tensor, y: Tensor) -> Tensor:
    """Root of the mean squared difference per sample; its gradient is 0 where the two are equal.

        |x - y|_2 / sqrt(C H W)

    The root is of each sample's mean, not of the batch's, so that the distance does not depend on how a batch is shared out.

    Args:
        x, y: Features `[N, C, H, W]`, or anything `[N, ...]`; those in 16 bits are compared in fp32.

    Returns:
        `[N]`, differentiable.

    Source: Li et al. 2021, "Revisiting Discriminator in GAN Compression: A Generator-discriminator Cooperative
    Compression Scheme" (GCC, arXiv 2110.14439).
    """
    difference = (widened(x) - widened(y)).flatten(1)
    # the norm, whose gradient at 0 is 0 and not NaN as the root's is
    return torch.linalg.vector_norm(difference, dim=1) / math.sqrt(difference.shape[1])


def gram_distance(x: Tensor, y: Tensor) -> Tensor:
    """Distance of the Gram matrices, which tell the style of an image and not where in it something is.

        rmse(F_x F_x^T / (C H W), F_y F_y^T / (C H W)),   F the features as a `[C, H W]` matrix

    Args:
        x, y: Features `[N, C, H, W]`; those in 16 bits are compared in fp32.

    Returns:
        `[N]`, differentiable.

    Source: Gatys et al. 2016, "Image Style Transfer Using Convolutional Neural Networks", section 2.2; between
    discriminator features in GCC (arXiv 2110.14439).
    """

    def gram(features: Tensor) -> Tensor:                                 # [N, C, H, W] -> [N, C, C]
        rows = widened(features).flatten(2)
        return rows @ rows.transpose(1, 2) / features[0].numel()

    return rmse_distance(gram(x), gram(y))


# by the names that a config's `distances` give
DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": l1_distance, "rmse": rmse_distance, "gram": gram_distance}
