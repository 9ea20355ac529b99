"""The steps of StyleGAN2, config F, as an NVIDIA GPU would run them, on tensors that have shapes alone."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest import mock

import torch
from fastdgl_kernels import _dispatch, implementation
from fastdgl_kernels.resampling import kernel as filters
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdgl import ema
from fastdgl.engines import TorchEngine
from fastdgl.engines.optimizers import make_adam
from fastdgl.models.layers import RESAMPLE_TAPS
from fastdgl.models.stylegan2 import Discriminator, Generator

from ..gpu.networks import STEPS, networks, ready
from ..shapes import NETWORKS
from .counting import Count, counted

META = torch.device("meta")
# steps of an iteration, by how many iterations share one: the intervals of lazy regularization, which step an optimizer, too
INTERVALS = {"G": 1, "D": 1, "R1": 16, "path length": 4, "optimizer of G": 1 / (1 + 1 / 4), "optimizer of D": 1 / (1 + 1 / 16), "EMA": 1}


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Take tensors of the "meta" device for those of a GPU that runs Triton."""
    taps = torch.tensor(RESAMPLE_TAPS, dtype=torch.float32) / sum(RESAMPLE_TAPS)
    with ExitStack() as stack:
        for place, name, value in (
            (torch.Tensor, "is_cuda", True),
            (torch.Tensor, "is_cpu", False),
            (torch.cuda, "is_current_stream_capturing", lambda: False),
            (_dispatch, "is_gpu", lambda device: True),
            (_dispatch, "why_not_triton", lambda device: None),
            # the taps of a filter without numbers
            (filters, "_separate", lambda f: (taps, taps)),
        ):
            stack.enter_context(mock.patch.object(place, name, value))
        yield


def count_steps(resolution: int, chosen: str) -> dict[str, Count]:
    """Count each step at the batch of one GPU.

    Args:
        chosen: "kernels" or "reference".
    """
    N, counts = NETWORKS[resolution], {}
    with pretended_gpu(), implementation({"kernels": "fastest"}.get(chosen, chosen)):
        G, D = networks(Generator, Discriminator, resolution, META)
        counts |= count_passes(G, D, N, resolution)
        counts |= {f"optimizer of {name}": count_optimizer(network) for name, network in (("G", G), ("D", D))}
        counts["EMA"] = count_ema(G)
    return counts


def count_passes(G: nn.Module, D: nn.Module, N: int, resolution: int) -> dict[str, Count]:
    """Count the forward and backward passes of G, D, R1 and path length."""
    z, real = torch.empty([N, 512], device=META), torch.empty([N, 3, resolution, resolution], device=META)
    return {name: _after_a_first(ready(name, G, D, z, real)) for name in STEPS}


def count_optimizer(network: nn.Module) -> Count:
    """Count a step of fused Adam, as the engine takes it on a GPU, with the bound on overflowing gradients."""
    with _fake_parameters(network) as module:
        optimizer = make_adam(module.parameters(), "fused", torch.device("cuda"), lr=1e-3, betas=(0.0, 0.99), eps=1e-8)
        engine = TorchEngine(module, optimizer, bounded=True)

        def step() -> None:
            for p in module.parameters():
                p.grad = torch.empty_like(p)
            # the gradients are there: what a backward adds is the bound
            engine.backward(mock.Mock())
            engine.step()

        return _after_a_first(step)


def count_ema(G: nn.Module) -> Count:
    """Count a step of the average generator."""
    average = ema.averaged_copy(G)
    return _after_a_first(partial(ema.update, average, G, 0.999, G.averaged_buffers))


@contextmanager
def _fake_parameters(network: nn.Module) -> Iterator[nn.Module]:
    """Yield a module with the parameters of `network`: PyTorch's fused Adam takes no "meta" tensors, and fake ones of a CPU."""
    with FakeTensorMode():
        yield nn.ParameterList([nn.Parameter(torch.empty(p.shape, dtype=p.dtype)) for p in network.parameters()])


def _after_a_first(step: Callable[[], object]) -> Count:
    """Count the second step: the first one makes what all others find."""
    for _ in range(2):
        with counted() as count:
            step()
    return count
