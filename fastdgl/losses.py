"""What is minimised: pure functions of logits, images and latents."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def nonsaturating_generator_loss(fake_logits: Tensor) -> Tensor:
    """`softplus(-D(G(z)))` per sample, `[N, 1]`: small where the discriminator takes the image for real.

    Source: Goodfellow et al. 2014, "Generative Adversarial Networks", section 3.
    """
    return F.softplus(-fake_logits)


def nonsaturating_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """`softplus(D(G(z))) + softplus(-D(x))` per sample, `[N, 1]`."""
    return F.softplus(fake_logits) + F.softplus(-real_logits)


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
