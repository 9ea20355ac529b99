"""The algorithm: the steps of a GAN, in which DGL is one term of G's loss. The networks know their family, nothing here does."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .config import BigGANLoss, StyleGAN2Loss
from .engines import Engine, average_over_ranks
from .guidance import FeaturePairs, FeatureTeacher, FeatureTerm, Guide, guidance_loss, pulls
from .latents import Latents
from .losses import ADVERSARIAL, orthogonal_penalty, path_lengths, r1_penalty

Loss = StyleGAN2Loss | BigGANLoss
# called as record(name, values) with tensors that stay on their device
Record = Callable[[str, Tensor], None]


@dataclass
class Adversaries:
    """All that a step touches.

    G, D: The student's two networks, in their engines.
    guide: The teachers, for G's loss.
    updated_teachers: Engines of those teachers that learn, each of which is also one of the guide's discriminators.
    path_length_mean: The running mean of path lengths, a scalar: a.
    feature_teacher: Whose features G is drawn to, besides; None for none.
    adaptors: Between the features of the two generators, in an engine of their own; None where these are not compared.
    """

    G: Engine
    D: Engine
    guide: Guide
    updated_teachers: Sequence[Engine]
    path_length_mean: Tensor
    feature_teacher: FeatureTeacher | None = None
    adaptors: Engine | None = None


@contextmanager
def learning(network: nn.Module) -> Iterator[None]:
    """Gradients for `network` inside, none outside: no step may leave gradients in another's network."""
    network.requires_grad_(True)
    try:
        yield
    finally:
        network.requires_grad_(False)


def generator_step(gan: Adversaries, latents: Latents, loss: Loss, N: int, guidance_weight: float, record: Record, passes: int = 1) -> None:
    """G minimises its own adversarial loss plus lambda times the teachers', on the same images.

        L(D(G(z))) + lambda * sum_i L(D_bar_i(G(z))),   L(s) = softplus(-s) or -s

    Where there is a teacher of features, its terms join these, on images of latents of their own.

    Args:
        N: Images of this rank.
        guidance_weight: lambda now.
        passes: How many parts the images come in, for the memory of one; the step is that of the mean of their gradients.
    """
    G, D = gan.G.module, gan.D.module
    generator_loss = ADVERSARIAL[loss.adversarial].generator
    # orthogonal regularization takes hold of all weights at once
    with learning(G), gan.G.whole() if loss.orthogonal_weight else nullcontext():
        for part in range(passes):
            c = latents.classes(N // passes)
            fake = G.training_images(latents, c, track=True, **loss.sampling)
            logits = D(fake, c)
            adversarial = generator_loss(logits)
            objective = adversarial.mean()
            record("Loss/scores/fake", logits)
            record("Loss/signs/fake", logits.sign())
            record("Loss/G/adversarial", adversarial)
            if gan.guide.discriminators:
                # at lambda 0 the teachers are watched, and cannot do harm
                with torch.set_grad_enabled(guidance_weight > 0):
                    scores = gan.guide.scores(fake, c)
                    guidance = guidance_loss(scores, gan.guide.dynamic, generator_loss)
                if guidance_weight > 0:
                    objective = objective + guidance_weight * guidance.mean()
                record("Loss/G/guidance", guidance)
                of_teachers = pulls(scores, logits, guidance_weight, gan.guide.dynamic, ADVERSARIAL[loss.adversarial].slope)
                for i, (score, pull) in enumerate(zip(scores, of_teachers)):
                    record(f"Loss/scores/teacher{i}_fake", score)
                    record(f"Guidance/teacher{i}_pull", pull)
            if loss.orthogonal_weight:
                penalty = orthogonal_penalty(G.orthogonal_weights())
                objective = objective + loss.orthogonal_weight * penalty
                record("Loss/orthogonal_penalty", penalty)
            of_generators: FeaturePairs = []
            if gan.feature_teacher is not None:
                of_images, of_generators = gan.feature_teacher.pairs(G, latents, c)
                objective = objective + feature_objective(gan, of_images, of_generators, record)
            record("Loss/G/loss", objective)
            gan.G.backward(objective / passes, last=part == passes - 1)
            if gan.adaptors is not None:
                fit_adaptors(gan.adaptors, gan.feature_teacher.generators, of_generators, passes, last=part == passes - 1)
    with learning(G):
        gan.G.step()
        if gan.adaptors is not None:
            gan.adaptors.step()
    average_over_ranks(G.running_statistics())


def feature_objective(gan: Adversaries, of_images: FeaturePairs, of_generators: FeaturePairs, record: Record) -> Tensor:
    """What the teacher of features adds to G's loss, weighted; the adaptors take no gradient of it."""
    terms = []
    if of_images:
        terms.append((gan.feature_teacher.images, of_images))
    if of_generators:
        terms.append((gan.feature_teacher.generators, gan.adaptors.module(of_generators)))
    objectives = []
    for term, pairs in terms:
        distance = term(pairs)
        record(f"Loss/G/{term.name}", distance)
        objectives.append(term.weight * distance.mean())
    return torch.stack(objectives).sum()


def fit_adaptors(adaptors: Engine, term: FeatureTerm, pairs: FeaturePairs, passes: int, last: bool) -> None:
    """The gradients of the adaptors, which minimise the same term as G does, of the features that G's gradients came from.

    They have an engine of their own, and so a backward pass of their own: in G's, the hooks of both would mingle.
    """
    with learning(adaptors.module):
        detached = [(mine.detach(), theirs) for mine, theirs in pairs]
        adaptors.backward(term.weight * term(adaptors.module(detached)).mean() / passes, last=last)


def path_length_step(gan: Adversaries, latents: Latents, loss: StyleGAN2Loss, N: int, record: Record, passes: int = 1) -> None:
    """Keep the generator's steps in image space even, on a smaller batch; the teachers have no part in it.

        w_pl * k * (|J^T y| - a)^2,   a the running mean of |J^T y|, which each pass moves

    Source: Karras et al. 2020, equation 4; k, the interval of lazy regularization, from appendix B.
    """
    G = gan.G.module
    with learning(G):
        with gan.G.whole():
            for part in range(passes):
                c = latents.classes(N // loss.path_length_batch_shrink // passes)
                ws = G.training_ws(latents, c, loss.style_mixing)
                fake = G.synthesis(ws, normal=latents.normal)
                lengths = path_lengths(fake, ws, latents.normal)
                mean = lengths.detach().mean()
                average_over_ranks([mean])
                moved = gan.path_length_mean.lerp(mean, loss.path_length_decay)
                # one length beyond 16 bits would stay in the mean for good
                gan.path_length_mean.copy_(torch.where(mean.isfinite(), moved, gan.path_length_mean))
                penalty = (lengths - gan.path_length_mean).square()
                record("Loss/pl_penalty", penalty)
                weight = loss.path_length_weight * loss.path_length_interval
                gan.G.backward((weight * penalty + touch(fake)).mean() / passes, last=part == passes - 1)
        gan.G.step()


def discriminator_step(gan: Adversaries, real: Tensor, real_c: Tensor, latents: Latents, loss: Loss, record: Record, passes: int = 1) -> None:
    """D tells real from fresh fake images; a teacher that learns does so on the same images.

        softplus(D(G(z'))) + softplus(-D(x)),   or relu(1 + D(G(z'))) + relu(1 - D(x))
    """
    discriminator_loss = ADVERSARIAL[loss.adversarial].discriminator
    parts = []
    with torch.no_grad():
        # consecutive images, which are the same ones of the whole batch on any number of ranks
        for part_real, part_real_c in zip(real.chunk(passes), real_c.chunk(passes)):
            c = latents.classes(len(part_real))
            fake = gan.G.module.training_images(latents, c, track=False, **loss.sampling)
            parts.append((fake, c, part_real, part_real_c))

    for engine, teacher in discriminators(gan):
        D = engine.module
        with learning(D):
            for part, images in enumerate(parts):
                fake_logits, real_logits = scores_of_both(D, *images)
                objective = discriminator_loss(real_logits, fake_logits)
                record(f"Loss/scores/{teacher}real", real_logits)
                record(f"Loss/signs/{teacher}real", real_logits.sign())
                record(f"Loss/{teacher}D/loss", objective)
                engine.backward(objective.mean() / passes, last=part == passes - 1)
            engine.step()


def scores_of_both(D: nn.Module, fake: Tensor, c: Tensor, real: Tensor, real_c: Tensor) -> tuple[Tensor, Tensor]:
    """Logits `[N, 1]` of fake and of as many real images; in one pass, but for a D that compares the samples of a batch."""
    if D.independent_samples:
        fake_logits, real_logits = D(torch.cat([fake, real]), torch.cat([c, real_c])).chunk(2)
        return fake_logits, real_logits
    return D(fake, c), D(real, real_c)


def r1_step(gan: Adversaries, real: Tensor, real_c: Tensor, loss: StyleGAN2Loss, gamma: float, record: Record, passes: int = 1) -> None:
    """Keep D flat around the real images, and each teacher that learns.

        (gamma / 2) * k * |grad_x D(x)|^2,   k the interval of lazy regularization
    """
    for engine, teacher in discriminators(gan):
        D = engine.module
        with learning(D):
            with engine.whole():
                for part, (images, images_c) in enumerate(zip(real.chunk(passes), real_c.chunk(passes))):
                    images = images.detach().requires_grad_(True)
                    logits = D(images, images_c)
                    penalty = r1_penalty(logits, images)
                    record(f"Loss/{teacher}r1_penalty", penalty)
                    engine.backward((gamma / 2 * loss.r1_interval * penalty + touch(logits)).mean() / passes, last=part == passes - 1)
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
