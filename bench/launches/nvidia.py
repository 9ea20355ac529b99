"""NVIDIA's networks out of a checkout of the user's: what their compiled operators would launch is counted, and nothing is compiled."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor, nn

from ..gpu import nvidia
from ..gpu.networks import networks
from ..shapes import NETWORKS
from .counting import Count
from .steps import META, _after_a_first, _fake_parameters, count_passes, pretended_gpu


def count_steps(resolution: int) -> dict[str, Count]:
    """Count each step of their networks; optimizer and average as their training loop has them.

    Raises:
        ValueError: Their code needs a package that is not installed.
    """
    try:
        found = nvidia.networks()
    except ModuleNotFoundError as error:
        raise ValueError(f"--nvidia: their code imports {error.name}, which is not installed: install it, or leave --nvidia out") from None
    with pretended_gpu(), _plugins():
        # their filters are made on the CPU, whatever the device
        G, D = (network.to(META) for network in networks(found.Generator, found.Discriminator, resolution, torch.device("cpu")))
        counts = count_passes(G, D, NETWORKS[resolution], resolution)
        counts |= {f"optimizer of {name}": _count_optimizer(network) for name, network in (("G", G), ("D", D))}
        counts["EMA"] = _count_ema(G)
    return counts


@contextmanager
def _plugins() -> Iterator[None]:
    """Let their Python run as where their extensions are built; a call of an extension is one kernel."""
    bias_act, upfirdn2d = (importlib.import_module(f"torch_utils.ops.{name}") for name in ("bias_act", "upfirdn2d"))

    def of_bias_act(x, b=None, dim=1, act="linear", alpha=None, gain=None, clamp=None, impl="cuda"):
        return bias_act._bias_act_cuda(dim=dim, act=act, alpha=alpha, gain=gain, clamp=clamp).apply(x, b)

    def of_upfirdn2d(x, f, up=1, down=1, padding=0, flip_filter=False, gain=1, impl="cuda"):
        made = upfirdn2d._upfirdn2d_cuda(up=up, down=down, padding=padding, flip_filter=flip_filter, gain=gain)
        return made.apply(x, f)

    with (
        mock.patch.object(bias_act, "bias_act", of_bias_act),
        mock.patch.object(upfirdn2d, "upfirdn2d", of_upfirdn2d),
        mock.patch.object(bias_act, "_plugin", SimpleNamespace(bias_act=_bias_act)),
        mock.patch.object(upfirdn2d, "_plugin", SimpleNamespace(upfirdn2d=_upfirdn2d)),
    ):
        yield


def _bias_act(x: Tensor, b: Tensor, xref: Tensor, yref: Tensor, dy: Tensor, *numbers) -> Tensor:
    y = torch.empty_like(x)
    _note("bias_act", x, b, xref, yref, dy, y)
    return y


def _upfirdn2d(x: Tensor, f: Tensor, upx, upy, downx, downy, padx0, padx1, pady0, pady1, flip, gain) -> Tensor:
    N, C, H, W = x.shape
    h, w = f.shape
    size = (H * upy + pady0 + pady1 - h + downy) // downy, (W * upx + padx0 + padx1 - w + downx) // downx
    channels_last = x.stride(1) == 1 and C > 1
    y = torch.empty([N, C, *size], dtype=x.dtype, device=x.device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    _note("upfirdn2d", x, y)
    return y


def _note(name: str, *tensors: Tensor) -> None:
    for mode in torch.utils._python_dispatch._get_current_dispatch_mode_stack():
        if isinstance(mode, Count):
            mode.note(name, *tensors)


def _count_optimizer(network: nn.Module) -> Count:
    """Count what their loop does after a backward: one flat gradient, its overflow bounded, and Adam as PyTorch chooses it on a GPU."""
    with _fake_parameters(network) as module:
        parameters = list(module.parameters())
        optimizer = torch.optim.Adam(parameters, lr=2e-3, betas=(0.0, 0.99), eps=1e-8, foreach=True)

        def step() -> None:
            flat = torch.cat([torch.empty_like(p).flatten() for p in parameters])
            torch.nan_to_num(flat, nan=0, posinf=1e5, neginf=-1e5, out=flat)
            for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
                p.grad = part.reshape(p.shape)
            optimizer.step()

        return _after_a_first(step)


def _count_ema(G: nn.Module) -> Count:
    """Count what their loop does for the average: two launches for each parameter, one for each buffer."""

    @torch.no_grad()
    def step() -> None:
        for p in G.parameters():
            torch.empty_like(p).copy_(p.lerp(p, 0.999))
        for b in G.buffers():
            torch.empty_like(b).copy_(b)

    return _after_a_first(step)


def use(checkout: Path) -> None:
    """Import from this checkout from now on.

    Raises:
        ValueError: It is not one.
    """
    nvidia.use(checkout)
