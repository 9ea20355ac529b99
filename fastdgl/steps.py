"""The algorithm: one iteration of a GAN with lazy regularization, in which DGL is one term of G's loss."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import config as configs
from .engines import Engine, average_over_ranks
from .guidance import Guide, guidance_loss
from .latents import Latents
from .losses import nonsaturating_discriminator_loss, nonsaturating_generator_loss, path_lengths, r1_penalty

# called as record(name, values) with tensors that stay on their device
Record = Callable[[str, Tensor], None]


@dataclass
class Adversaries:
    """All that a step touches.

    G, D: The student's two networks, in their engines.
    guide: The teachers, for G's loss.
    updated_teachers: Engines of those teachers that learn, each of which is also one of the guide's discriminators.
    path_length_mean: The running mean of path lengths, a scalar: a.
    """

    G: Engine
    D: Engine
    guide: Guide
    updated_teachers: Sequence[Engine]
    path_length_mean: Tensor


@contextmanager
def learning(network: nn.Module) -> Iterator[None]:
    """Gradients for `network` inside, none outside: no step may leave gradients in another's network."""
    network.requires_grad_(True)
    try:
        yield
    finally:
        network.requires_grad_(False)


def generate(G: nn.Module, latents: Latents, c: Tensor, style_mixing: float, update_w_avg: bool = False) -> tuple[Tensor, Tensor]:
    """Training images of classes `c`, and the latents they were made from: `[N, C, H, W]`, `[N, num_ws, w_dim]`."""
    N = len(c)
    ws = G.mapping(latents.normal([N, G.z_dim]), c, update_w_avg=update_w_avg)
    cutoff = latents.mixing_cutoff(G.num_ws, style_mixing)
    if cutoff < G.num_ws:
        second = G.mapping(latents.normal([N, G.z_dim]), c)
        ws = torch.cat([ws[:, :cutoff], second[:, cutoff:]], dim=1)
    return G.synthesis(ws, normal=latents.normal), ws


def generator_step(gan: Adversaries, latents: Latents, loss: configs.Loss, N: int, guidance_weight: float, record: Record) -> None:
    """G minimises its own adversarial loss plus lambda times the teachers', on the same images.

        softplus(-D(G(z))) + lambda * sum_i softplus(-D_bar_i(G(z)))

    Args:
        N: Images of this rank.
        guidance_weight: lambda now.
    """
    G, D = gan.G.module, gan.D.module
    with learning(G):
        c = latents.classes(N)
        fake, _ = generate(G, latents, c, loss.style_mixing, update_w_avg=True)
        logits = D(fake, c)
        adversarial = nonsaturating_generator_loss(logits)
        objective = adversarial.mean()
        record("Loss/scores/fake", logits)
        record("Loss/signs/fake", logits.sign())
        record("Loss/G/adversarial", adversarial)
        if gan.guide.discriminators:
            # at lambda 0 the teachers are watched, and cannot do harm
            with torch.set_grad_enabled(guidance_weight > 0):
                scores = gan.guide.scores(fake, c)
                guidance = guidance_loss(scores, gan.guide.dynamic)
            if guidance_weight > 0:
                objective = objective + guidance_weight * guidance.mean()
            record("Loss/G/guidance", guidance)
            for i, score in enumerate(scores):
                record(f"Loss/scores/teacher{i}_fake", score)
        record("Loss/G/loss", objective)
        gan.G.backward(objective)
        gan.G.step()
    average_over_ranks([G.mapping.w_avg])


def path_length_step(gan: Adversaries, latents: Latents, loss: configs.Loss, N: int, record: Record) -> None:
    """Keep the generator's steps in image space even, on a smaller batch; the teachers have no part in it.

        w_pl * k * (|J^T y| - a)^2,   a the running mean of |J^T y|

    Source: Karras et al. 2020, equation 4; k, the interval of lazy regularization, from appendix B.
    """
    G = gan.G.module
    with learning(G):
        fake, ws = generate(G, latents, latents.classes(N // loss.path_length_batch_shrink), loss.style_mixing)
        lengths = path_lengths(fake, ws, latents.normal)
        mean = lengths.detach().mean()
        average_over_ranks([mean])
        gan.path_length_mean.lerp_(mean, loss.path_length_decay)
        penalty = (lengths - gan.path_length_mean).square()
        record("Loss/pl_penalty", penalty)
        weight = loss.path_length_weight * loss.path_length_interval
        gan.G.backward((weight * penalty + touch(fake)).mean())
        gan.G.step()


def discriminator_step(gan: Adversaries, real: Tensor, real_c: Tensor, latents: Latents, loss: configs.Loss, record: Record) -> None:
    """D tells real from fresh fake images; a teacher that learns does so on the same images.

        softplus(D(G(z'))) + softplus(-D(x))
    """
    with torch.no_grad():
        c = latents.classes(len(real))
        fake, _ = generate(gan.G.module, latents, c, loss.style_mixing)

    for engine, teacher in discriminators(gan):
        D = engine.module
        with learning(D):
            fake_logits, real_logits = D(fake, c), D(real, real_c)
            objective = nonsaturating_discriminator_loss(real_logits, fake_logits)
            record(f"Loss/scores/{teacher}real", real_logits)
            record(f"Loss/signs/{teacher}real", real_logits.sign())
            record(f"Loss/{teacher}D/loss", objective)
            engine.backward(objective.mean())
            engine.step()


def r1_step(gan: Adversaries, real: Tensor, real_c: Tensor, loss: configs.Loss, gamma: float, record: Record) -> None:
    """Keep D flat around the real images, and each teacher that learns.

        (gamma / 2) * k * |grad_x D(x)|^2,   k the interval of lazy regularization
    """
    for engine, teacher in discriminators(gan):
        D = engine.module
        with learning(D):
            images = real.detach().requires_grad_(True)
            logits = D(images, real_c)
            penalty = r1_penalty(logits, images)
            record(f"Loss/{teacher}r1_penalty", penalty)
            engine.backward((gamma / 2 * loss.r1_interval * penalty + touch(logits)).mean())
            engine.step()


def discriminators(gan: Adversaries) -> Iterator[tuple[Engine, str]]:
    """The student's D, then the teachers that learn; each with what its statistics are called by."""
    yield gan.D, ""
    for i, engine in enumerate(gan.updated_teachers):
        yield engine, f"updated{i}_"


def touch(output: Tensor) -> Tensor:
    """Zero per sample, with a gradient of zero for every parameter behind `output`.

    The last bias drops out of a gradient penalty; without this it would have no gradient at all, and Adam's moments
    would not decay for it.
    """
    return output.flatten(1)[:, 0] * 0
