"""NVIDIA's own operators and networks, from a checkout of stylegan3 or stylegan2-ada-pytorch of the user's. Nothing of it is copied."""

import importlib
import sys
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

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
    name = "networks_stylegan2" if importlib.util.find_spec("training.networks_stylegan2") else "networks"
    networks = importlib.import_module(f"training.{name}")
    return SimpleNamespace(
        bias_act=bias_act.bias_act,
        upfirdn2d=upfirdn2d.upfirdn2d,
        fma=fma.fma,
        modulated_conv2d=networks.modulated_conv2d,
        Generator=networks.Generator,
        Discriminator=networks.Discriminator,
    )
