"""Whole steps of training at the size of the paper's networks: forward and backward, eager and as one CUDA graph."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from fastdgl.losses import (
    hinge_discriminator_loss,
    hinge_generator_loss,
    nonsaturating_discriminator_loss,
    nonsaturating_generator_loss,
    path_lengths,
    r1_penalty,
)
from fastdgl.models import biggan
from fastdgl.models.stylegan2 import Discriminator, Generator
from fastdgl_kernels import implementation
from torch import Tensor, nn

from ..shapes import CLAMP, HALF
from .errors import told
from .nvidia import operators as nvidia
from .timing import cuda_stopwatch, times

Gradients = Sequence[Tensor | None]


def generator_step(G: nn.Module, D: nn.Module, z: Tensor, real: Tensor) -> Gradients:
    """The gradients of G's loss; those of D are not taken."""
    loss = nonsaturating_generator_loss(D(G.synthesis(G.mapping(z, None)), None)).mean()
    return _gradients(loss, G)


def discriminator_step(G: nn.Module, D: nn.Module, z: Tensor, real: Tensor) -> Gradients:
    """The gradients of D's loss, fakes included in the time."""
    with torch.no_grad():
        fake = G.synthesis(G.mapping(z, None))
    return _gradients(nonsaturating_discriminator_loss(D(real, None), D(fake, None)).mean(), D)


def r1_step(G: nn.Module, D: nn.Module, z: Tensor, real: Tensor) -> Gradients:
    """The gradients of the R1 penalty."""
    images = real.detach().requires_grad_()
    return _gradients(r1_penalty(D(images, None), images).mean(), D)


def path_length_step(G: nn.Module, D: nn.Module, z: Tensor, real: Tensor) -> Gradients:
    """The gradients of the path length penalty, on half of the batch."""
    ws = G.mapping(z[: len(z) // 2], None)
    lengths = path_lengths(G.synthesis(ws), ws)
    return _gradients((lengths - lengths.detach().mean()).square().mean(), G)


# by name; and which of the networks learns
STEPS: dict[str, tuple[Callable[..., Gradients], str]] = {
    "G": (generator_step, "G"),
    "D": (discriminator_step, "D"),
    "R1": (r1_step, "D"),
    "path length": (path_length_step, "G"),
}


def biggan_generator_step(G: nn.Module, D: nn.Module, z: Tensor, c: Tensor, real: Tensor) -> Gradients:
    """The gradients of the hinge loss of BigGAN's G."""
    return _gradients(hinge_generator_loss(D(G(z, c), c)).mean(), G)


def biggan_discriminator_step(G: nn.Module, D: nn.Module, z: Tensor, c: Tensor, real: Tensor) -> Gradients:
    """The gradients of the hinge loss of BigGAN's D, fakes included in the time."""
    with torch.no_grad():
        fake = G(z, c)
    return _gradients(hinge_discriminator_loss(D(real, c), D(fake, c)).mean(), D)


BIGGAN_STEPS: dict[str, tuple[Callable[..., Gradients], str]] = {
    "BigGAN G": (biggan_generator_step, "G"),
    "BigGAN D": (biggan_discriminator_step, "D"),
}


def _gradients(loss: Tensor, network: nn.Module) -> Gradients:
    # the last bias drops out of a penalty
    return torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)


def networks(
    G: Callable[..., nn.Module], D: Callable[..., nn.Module], resolution: int, device: torch.device, **width: int
) -> tuple[nn.Module, nn.Module]:
    """G and D of config F, the highest resolutions in fp16; `width` makes them smaller."""
    shared = dict(c_dim=0, img_resolution=resolution, img_channels=3, num_fp16_res=HALF, conv_clamp=CLAMP)
    shared |= {"channel_base": 32768, "channel_max": 512} | width
    # drawn where they are to be, but for a few buffers
    with device:
        return G(z_dim=512, w_dim=512, **shared).to(device), D(**shared).to(device)


def inputs(N: int, resolution: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """z and real images."""
    return torch.randn(N, 512, device=device), torch.rand(N, 3, resolution, resolution, device=device) * 2 - 1


def biggan_networks(ch: int, device: torch.device, resolution: int = 128, **sizes: int) -> tuple[nn.Module, nn.Module]:
    """G and D of BigGAN in bfloat16, of 1000 classes."""
    shared = {"c_dim": 1000, "img_resolution": resolution, "ch": ch, "init": "normal"} | sizes
    with device:
        return biggan.Generator(**shared).to(device).bfloat16(), biggan.Discriminator(**shared).to(device).bfloat16()


def biggan_inputs(N: int, G: nn.Module, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """z, one-hot classes, and real images."""
    c = torch.nn.functional.one_hot(torch.arange(N, device=device) % G.c_dim, G.c_dim).float()
    real = torch.rand(N, 3, G.img_resolution, G.img_resolution, device=device) * 2 - 1
    return torch.randn(N, G.z_dim, device=device), c, real


def ready(step: str, G: nn.Module, D: nn.Module, *given: Tensor) -> Callable[[], Gradients]:
    """A step to be called again and again."""
    run, learning = (STEPS | BIGGAN_STEPS)[step]
    G.requires_grad_(learning == "G")
    D.requires_grad_(learning == "D")
    return partial(run, G, D, *given)


def stylegan2_times(step: str, resolution: int, N: int, device: torch.device, with_nvidia: bool) -> dict:
    """See `step_times`."""

    def made(theirs: bool = False) -> Callable[[], Gradients]:
        types = (nvidia().Generator, nvidia().Discriminator) if theirs else (Generator, Discriminator)
        return ready(step, *networks(*types, resolution, device), *inputs(N, resolution, device))

    return step_times({"reference": made} | ({"nvidia": partial(made, theirs=True)} if with_nvidia else {}) | {"fastest": made})


def biggan_times(step: str, ch: int, N: int, device: torch.device) -> dict:
    """See `step_times`."""

    def made() -> Callable[[], Gradients]:
        G, D = biggan_networks(ch, device)
        return ready(step, G, D, *biggan_inputs(N, G, device))

    return step_times({"reference": made, "fastest": made})


def step_times(made: dict[str, Callable[[], Callable[[], Gradients]]]) -> dict:
    """The times of a step by implementation and mode: "reference eager", "fastest graph", ...; or why there is none.

    Args:
        made: By implementation, what makes the step; what has never run comes last: should it break the GPU's state,
            the others are done.
    """
    results = {}
    for name, make in made.items():
        results |= {f"{name} {mode}": result for mode, result in _both_modes(name, make).items()}
        torch.cuda.empty_cache()
    return results


def _both_modes(name: str, make: Callable[[], Callable[[], Gradients]]) -> dict[str, dict]:
    try:
        run = make()
    except Exception as error:
        return {mode: {"error": told(error)} for mode in ("eager", "graph")}
    chosen: AbstractContextManager = nullcontext() if name == "nvidia" else implementation(name)
    stopwatch = partial(cuda_stopwatch, ahead=False)
    with chosen:
        results = times({"eager": [run]}, stopwatch)
        if "error" in results["eager"]:
            return results
        try:
            replay = captured(run)
        # what cannot be captured still trains
        except Exception as error:
            return results | {"graph": {"error": told(error)}}
        return results | times({"graph": [replay]}, stopwatch)


def captured(run: Callable[[], object]) -> Callable[[], None]:
    """`run` as a CUDA graph, to be replayed on the same tensors."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    # a graph has memory of its own
    torch.cuda.empty_cache()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
