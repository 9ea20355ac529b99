"""What an image costs in training: so that arms can be compared at equal computation too."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fastdgl import config as configs, steps
from fastdgl.assembly import assemble
from fastdgl.engines import Run
from fastdgl.images import ImageDataset
from fastdgl.latents import Latents


class FlopCounter(TorchDispatchMode):
    """Counts what PyTorch's FlopCounterMode does, also in the gradient of a gradient, where that one's hooks on modules fail."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=output)
        return output


def flops_per_image(config: configs.Config, dataset: ImageDataset, run: Run) -> float:
    """Floating-point operations of convolutions and matrix products, forward and backward, per real image shown to D."""
    student = assemble(config, dataset, run, resumed=False)
    latents = Latents(0, torch.from_numpy(dataset.all_labels()), run.device, c_dim=dataset.label_dim)
    settings, loss, gan = config.train, config.loss, student.gan
    N = settings.batch
    real, real_c = torch.zeros(N, dataset.channels, dataset.resolution, dataset.resolution), latents.classes(N)

    def flops(step, *arguments) -> int:
        with FlopCounter() as counter:
            step(gan, *arguments)
        return counter.total

    def record(name: str, values: torch.Tensor) -> None:
        pass

    total = flops(steps.generator_step, latents, loss, settings.generator_images, config.guidance.weight, record)
    total += settings.discriminator_steps * flops(steps.discriminator_step, real, real_c, latents, loss, record)
    if loss.r1_interval:
        total += settings.discriminator_steps * flops(steps.r1_step, real, real_c, loss, config.r1_gamma, record) / loss.r1_interval
    return total / (N * settings.discriminator_steps)
