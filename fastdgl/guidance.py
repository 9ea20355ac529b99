"""DGL: the teachers' discriminators, and what they add to the generator's loss; and its neighbours, which compare features.

Source: Tian et al. 2021, "Discriminator Guided Learning for GAN Compression" (arXiv 2112.06502).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from .config import did_you_mean
from .latents import Latents
from .losses import DISTANCES
from .precision import at_precision


def freeze(teacher: nn.Module) -> nn.Module:
    """A teacher that never changes: eval mode, so that no buffer moves, and no gradients of its own.

    The gradient to the images still flows through a discriminator.
    """
    return teacher.eval().requires_grad_(False)


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


@torch.no_grad()
def pulls(scores: Sequence[Tensor], logits: Tensor, weight: float, dynamic: bool, slope: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Return how strongly each teacher pulls at G's images, relative to the student's own discriminator.

        lambda * mean(sigmoid(-D_bar_i(G(z)))) / mean(sigmoid(-D(G(z)))),   of hinge lambda alone

    With `dynamic`, each sample of the numerator is weighted as in `guidance_loss`. Far below 1, G hardly learns from the teacher.

    Args:
        scores: Logits `[N, 1]` of each teacher.
        logits: Those of the student's own discriminator of the same images, `[N, 1]`.
        weight: lambda now.
        slope: Of `losses.Adversarial`.

    Returns:
        A scalar for each teacher.
    """
    own = slope(logits).mean()
    weights = [(-score).clamp(min=0) if dynamic else 1 for score in scores]
    return [weight * (w * slope(score)).mean() / own for w, score in zip(weights, scores)]


class FeatureBank:
    """What modules of a network put out during one forward pass, by forward hooks that are gone afterwards.

        with FeatureBank(D, ["b32", "b16"]) as features:
            D(images, c)
        features["b16"]                                                   # [N, C, 8, 8], with its gradient

    Args:
        network: Any; G, G-bar and D-bar are what it is for.
        modules: Names of modules in it, as `named_modules` has them.

    Raises:
        ValueError: There is no such module; or, of the forward pass, a module took no part in it or ran twice, or puts out
            something else than one tensor `[N, C, H, W]`.
    """

    def __init__(self, network: nn.Module, modules: Sequence[str]):
        known = dict(network.named_modules())
        for name in modules:
            if name not in known:
                raise ValueError(f"{name!r} is no module of the {type(network).__name__.lower()}" + did_you_mean(name, list(filter(None, known))))
        self.modules = {name: known[name] for name in modules}

    def __enter__(self) -> dict[str, Tensor]:
        self.features: dict[str, Tensor] = {}
        self.hooks = [module.register_forward_hook(partial(self._keep, name)) for name, module in self.modules.items()]
        return self.features

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()
        idle = self.modules.keys() - self.features.keys()
        if idle and error is None:
            raise ValueError(f"module {min(idle)!r} took no part in the forward pass; expected one that puts out features [N, C, H, W]")

    def _keep(self, name: str, module: nn.Module, inputs: tuple, output: object) -> None:
        if not isinstance(output, Tensor) or output.ndim != 4:
            found = list(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise ValueError(f"module {name!r} puts out {found}; expected one that puts out features [N, C, H, W]")
        if name in self.features:
            raise ValueError(f"module {name!r} ran twice; a bank of features is for one forward pass")
        self.features[name] = output


# features [N, C, H, W] of the student, with gradients, each beside the teacher's, without
FeaturePairs = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class FeatureTerm:
    """One term of G's loss: how far features of the student are from a teacher's.

        weight * sum over places and distances of distance(student's, teacher's)

    name: As statistics call it.
    places: Of the features: names of modules of D-bar, or resolutions of G.
    distances: Of `losses.DISTANCES`.
    """

    name: str
    weight: float
    places: Sequence[str] | Sequence[int]
    distances: Sequence[str]

    def __call__(self, pairs: FeaturePairs) -> Tensor:
        """Before the weight, per sample, `[N]`."""
        return torch.stack([DISTANCES[name](mine, theirs) for mine, theirs in pairs for name in self.distances]).sum(dim=0)


@dataclass(frozen=True)
class FeatureTeacher:
    """A frozen teacher to whose features the student's are drawn, on images of the same latents: optional neighbours of DGL.

    Source: of the images' features, Li et al. 2021, "Revisiting Discriminator in GAN Compression" (GCC, arXiv 2110.14439);
    of the generators', a baseline that the authors of DGL compare with.

    G, D: The teacher's averaged generator, and its discriminator.
    images: Compares both images in features of D; None for no such term.
    generators: Compares features of both generators at the same resolution, through adaptors; None for no such term.
    """

    G: nn.Module
    D: nn.Module
    images: FeatureTerm | None
    generators: FeatureTerm | None

    def pairs(self, G: nn.Module, latents: Latents, c: Tensor) -> tuple[FeaturePairs, FeaturePairs]:
        """Features of the two images in D, and of the two generators before any adaptor, each for the places of its term.

        One pass of both generators of classes `c` makes them all; see `paired_images` of G for what the two share.
        """
        resolutions = self.generators.places if self.generators else []
        mine, theirs = [[network.features[R][0] for R in resolutions] for network in (G, self.G)]
        with FeatureBank(G, mine) as student, FeatureBank(self.G, theirs) as teacher:
            fake, target = G.paired_images(self.G, latents, c)
        of_generators = [(student[a], teacher[b]) for a, b in zip(mine, theirs)]
        if self.images is None:
            return [], of_generators
        with FeatureBank(self.D, self.images.places) as student:
            self.D(fake, c)
        with FeatureBank(self.D, self.images.places) as teacher, torch.no_grad():
            self.D(target, c)
        return [(student[name], teacher[name]) for name in self.images.places], of_generators


class Adaptors(nn.ModuleList):
    """1x1 convolutions from the student's features to as many channels as the teacher's have, one per place.

    They stand outside G, which is counted, averaged and saved without them.
    """

    def __init__(self, channels: Sequence[tuple[int, int]]):
        super().__init__(nn.Conv2d(mine, theirs, 1) for mine, theirs in channels)

    def forward(self, pairs: FeaturePairs) -> FeaturePairs:
        return [(convolution(at_precision(mine, convolution.weight.dtype)), theirs) for convolution, (mine, theirs) in zip(self, pairs)]
