"""The generator's random inputs: in training latents, classes, style mixing, noise; afterwards the z of a seed.

In training everything is drawn for the whole batch on every rank, from one seed, and each rank takes its share. So a run does not
depend on how many ranks carry it, at the price of drawing noise that other ranks use.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

# of a standard normal number, the smallest bound it is drawn anew for: 1 in 125 is below
LEAST_THRESHOLD = 0.01


def seeded_z(seed: int, z_dim: int, threshold: float | None = None) -> Tensor:
    """The z that a seed stands for, `[1, z_dim]`: numpy's `RandomState(seed).randn(1, z_dim)`, as in NVIDIA's tools.

    Args:
        threshold: A number beyond it in magnitude is drawn anew until it is not. The new numbers are the next ones of the
            same RandomState, given in order to the places that need one, round by round. None leaves all as they are.

    Raises:
        ValueError: The threshold is below 0.01, where drawing anew would take too long.

    Source: Brock et al. 2019, "Large Scale GAN Training for High Fidelity Natural Image Synthesis", section 3.1, the
    truncation trick.
    """
    if threshold is not None and not threshold >= LEAST_THRESHOLD:
        raise ValueError(f"the truncation threshold of z must be at least {LEAST_THRESHOLD}, got {threshold:g}")
    random = np.random.RandomState(seed)
    z = random.randn(1, z_dim)
    while threshold is not None and (beyond := np.abs(z) > threshold).any():
        z[beyond] = random.randn(int(beyond.sum()))
    return torch.from_numpy(z).float()


class RepeatedNoise:
    """Random numbers for two networks of the same layers: the first draws them, the second is given the same ones again.

    Args:
        normal: Draws standard normal numbers, called as torch.randn is.
    """

    def __init__(self, normal: Callable[..., Tensor]):
        self.normal = normal
        self.drawn: list[Tensor] = []

    def draw(self, size: list[int], device: torch.device | None = None) -> Tensor:
        self.drawn.append(self.normal(size, device=device))
        return self.drawn[-1]

    def repeat(self, size: list[int], device: torch.device | None = None) -> Tensor:
        """The oldest numbers that have not been repeated yet, which are of this size."""
        return self.drawn.pop(0)


class Latents:
    """A source of random inputs for one rank.

    Args:
        seed: Of the run; the same on all ranks.
        labels: Of the training set, from which they are drawn with their frequency: `int64 [K]` of classes, or
            `float32 [K, c_dim]` of vectors.
        c_dim: How many classes there are; vectors tell it themselves.
        rank, world_size: This rank takes samples rank, rank + world_size, ... of each batch, as it does of the images.
    """

    def __init__(self, seed: int, labels: Tensor, device: torch.device, rank: int = 0, world_size: int = 1,
                 c_dim: int | None = None):
        self.generator = torch.Generator(device)
        # decisions that choose code are drawn on the host: they cost no synchronisation there
        self.host_generator = torch.Generator()
        self._seed(seed)
        self.labels, self.c_dim = labels.to(device), c_dim
        self.device, self.rank, self.world_size = device, rank, world_size

    def _seed(self, seed: int) -> None:
        self.generator.manual_seed(seed)
        self.host_generator.manual_seed(seed)

    def reseed(self, numbers: list[int]) -> None:
        """From now on draw what these numbers stand for, each 0 or more; the same on all ranks."""
        # torch's CPU generator uses the low 32 bits of its seed only
        self._seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))

    def share(self, batch: Tensor) -> Tensor:
        """This rank's samples of a whole batch: every `world_size`-th, so that the groups of the minibatch standard
        deviation hold the same samples on any number of ranks."""
        # its own memory, or the whole batch would live as long as the share
        return batch[self.rank::self.world_size].clone()

    def normal(self, size: list[int], device: torch.device | None = None) -> Tensor:
        """Standard normal numbers `[N, ...]`, where N is this rank's share of the batch."""
        whole = [size[0] * self.world_size, *size[1:]]
        return self.share(torch.randn(whole, generator=self.generator, device=self.device))

    def classes(self, N: int) -> Tensor:
        """Labels `[N, c_dim]` of N samples, drawn from the training set."""
        chosen = torch.randint(len(self.labels), [N * self.world_size], generator=self.generator, device=self.device)
        drawn = self.share(self.labels[chosen])
        if drawn.ndim > 1:
            return drawn
        # F.one_hot looks at the values first, which is to wait for them on some devices
        return torch.zeros([len(drawn), self.c_dim], device=self.device).scatter_(1, drawn[:, None], 1)

    def mixing_cutoff(self, num_ws: int, probability: float) -> int:
        """The layer at which style mixing changes to a second z; `num_ws` for no mixing. One for the whole batch."""
        cutoff = int(torch.randint(1, num_ws, [], generator=self.host_generator))
        mixed = float(torch.rand([], generator=self.host_generator)) < probability
        return cutoff if mixed else num_ws

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state(), "host_generator": self.host_generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["generator"])
        self.host_generator.set_state(state["host_generator"])
