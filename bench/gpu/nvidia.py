"""NVIDIA's own operators and networks, from a checkout of stylegan3 or stylegan2-ada-pytorch of the user's. Nothing of it is copied."""

import importlib.util
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

from torch.nn import Module
from torch.torch_version import TorchVersion


def use(checkout: Path) -> None:
    """Import from this checkout from now on.

    Raises:
        ValueError: It is not one.
    """
    if not (checkout / "torch_utils" / "ops" / "bias_act.cu").is_file():
        raise ValueError(f"--nvidia {checkout}: expected a checkout of stylegan3 or stylegan2-ada-pytorch, with torch_utils/ops/bias_act.cu")
    sys.path.append(str(checkout))
    # setuptools has dropped it, and a comparison of versions is all they take of it
    if importlib.util.find_spec("pkg_resources") is None:
        stand_in = ModuleType("pkg_resources")
        stand_in.parse_version = TorchVersion
        sys.modules["pkg_resources"] = stand_in


@cache
def operators() -> SimpleNamespace:
    """bias_act, upfirdn2d, fma, modulated_conv2d, Generator and Discriminator, built.

    Raises:
        RuntimeError: Their CUDA code does not build; without it, some of theirs would quietly run in plain PyTorch.
    """
    bias_act, upfirdn2d, fma, gradfix = (
        importlib.import_module(f"torch_utils.ops.{name}") for name in ("bias_act", "upfirdn2d", "fma", "conv2d_gradfix")
    )
    if not (bias_act._init() and upfirdn2d._init()):
        raise RuntimeError("NVIDIA's CUDA operators did not build: see what nvcc says when their bias_act is called")
    # as their training does
    gradfix.enabled = True
    found = networks()
    return SimpleNamespace(bias_act=bias_act.bias_act, upfirdn2d=upfirdn2d.upfirdn2d, fma=fma.fma, **vars(found))


def networks() -> SimpleNamespace:
    """Return their modulated_conv2d, Generator and Discriminator; nothing is built."""
    ada = importlib.util.find_spec("training.networks_stylegan2") is None
    networks = importlib.import_module("training.networks" if ada else "training.networks_stylegan2")
    return SimpleNamespace(
        modulated_conv2d=networks.modulated_conv2d,
        Generator=partial(_ada_generator, networks.Generator) if ada else networks.Generator,
        Discriminator=networks.Discriminator,
    )


def _ada_generator(
    Generator: Callable, *, z_dim: int, c_dim: int, w_dim: int, img_resolution: int, img_channels: int, **synthesis
) -> Module:
    """stylegan2-ada-pytorch's takes the numbers of the synthesis network in a dictionary."""
    return Generator(z_dim, c_dim, w_dim, img_resolution, img_channels, synthesis_kwargs=synthesis)
