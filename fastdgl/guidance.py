"""DGL: the teachers' discriminators, and what they add to the generator's loss.

Source: Tian et al. 2021, "Discriminator Guided Learning for GAN Compression" (arXiv 2112.06502).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


def freeze(discriminator: nn.Module) -> nn.Module:
    """A teacher that scores and never changes: eval mode, so that no buffer moves, and no gradients of its own.

    The gradient to the images still flows through it.
    """
    return discriminator.eval().requires_grad_(False)


@dataclass(frozen=True)
class Guide:
    """The teachers and their weight.

    discriminators: The teachers' D-bar, which score the same images as the student's own discriminator.
    weight: lambda, the weight once the ramp is over.
    ramp_images: Images over which lambda grows from 0; 0 for none.
    dynamic: Weight each teacher's loss of a sample by `max(-D_bar(G(z)), 0)`, how much it dislikes the sample.
    """

    discriminators: Sequence[nn.Module] = field(default_factory=list)
    weight: float = 0.0
    ramp_images: float = 0
    dynamic: bool = False

    def weight_at(self, images: int) -> float:
        """lambda after the stage has shown `images` images; 0 without teachers."""
        if not self.discriminators:
            return 0.0
        return self.weight * min(images / self.ramp_images, 1) if self.ramp_images > 0 else self.weight

    def scores(self, images: Tensor, c: Tensor) -> list[Tensor]:
        """Each teacher's logits, `[N, 1]`."""
        return [discriminator(images, c) for discriminator in self.discriminators]


def guidance_loss(scores: Sequence[Tensor], dynamic: bool, generator_loss: Callable[[Tensor], Tensor]) -> Tensor:
    """What the teachers add to G's loss, before lambda, per sample.

        uniform: sum_i L(D_bar_i(G(z)))
        dynamic: sum_i max(-D_bar_i(G(z)), 0) * L(D_bar_i(G(z))),  the weight detached

    Args:
        scores: Logits `[N, 1]` of each teacher on the same images.
        generator_loss: L, what G minimises of its own discriminator's logits.

    Returns:
        `[N, 1]`.
    """
    losses = [generator_loss(score) for score in scores]
    if dynamic:
        losses = [(-score.detach()).clamp(min=0) * loss for score, loss in zip(scores, losses)]
    return torch.stack(losses).sum(dim=0)
