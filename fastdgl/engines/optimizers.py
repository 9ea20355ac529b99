"""Adam, in each implementation that `optimizer.implementation` names: PyTorch's own three, and NVIDIA apex's.

All keep the same state for a parameter: `step`, `exp_avg`, `exp_avg_sq`. They differ in where `step` lives, so a checkpoint stores it as a
number on the CPU: `step_count` reads it, `step_kept_by` gives it back.
"""

import importlib
import importlib.metadata
import importlib.util
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .. import config as configs
from .peers import in_short

# what torch.optim.Adam takes for each; on a CPU `auto` is the plain loop, whose numbers are those of before this choice existed
TORCH = {"loop": {}, "foreach": {"foreach": True}, "fused": {"fused": True}}
# what apex's kernel counts in
MOST_STEPS = 2**31 - 1


def chosen(implementation: str, device: torch.device) -> str:
    """Return the implementation that runs on `device`: `auto` is `fused` on a GPU, and torch's loop over the parameters elsewhere."""
    if implementation != "auto":
        return implementation
    return "fused" if device.type == "cuda" else "loop"


def make_adam(parameters: Iterable[nn.Parameter], implementation: str, device: torch.device, *, lr: float, betas: tuple[float, float],
              eps: float) -> torch.optim.Optimizer:
    """Return Adam over `parameters`, without weight decay.

    Args:
        implementation: `auto`, `foreach`, `fused` or `apex`.
        device: Of what the optimizer will step.

    Raises:
        ConfigError: `implementation` does not run here.
    """
    name = chosen(implementation, device)
    if name == "apex":
        return _apex_adam()(parameters, lr=lr, betas=betas, eps=eps, adam_w_mode=False)
    return torch.optim.Adam(parameters, lr=lr, betas=betas, eps=eps, **TORCH[name])


def check_implementation(config: configs.Config, device: torch.device) -> None:
    """Reject, before anything is built, an implementation that is missing or that cannot step tensors on `device`.

    Raises:
        ConfigError: In one sentence, with what to use instead.
    """
    implementation = config.optimizer.implementation
    # torch's loop steps whatever there is
    if chosen(implementation, device) == "loop":
        return
    probe = nn.Parameter(torch.zeros(1, device=device))
    probe.grad = torch.zeros_like(probe)
    try:
        make_adam([probe], implementation, device, lr=1e-3, betas=(0.0, 0.99), eps=1e-8).step()
    # apex imports and launches compiled code, which fails in its own ways where it was built for another torch, or there is no GPU
    except (RuntimeError, ImportError, OSError, TypeError, ValueError, AssertionError) as error:
        if isinstance(error, configs.ConfigError):
            raise
        raise configs.ConfigError(f"optimizer.implementation: {implementation} cannot step a parameter on {device} ({in_short(error)}); "
                                  f"use auto, foreach or fused") from None


def step_count(step: Tensor | int) -> Tensor:
    """Return an optimizer's `step` as a checkpoint stores it: an fp32 scalar on the CPU."""
    return torch.as_tensor(step, dtype=torch.float32, device="cpu").detach().clone()


def step_kept_by(optimizer: torch.optim.Optimizer, step: Tensor, device: torch.device) -> Tensor | int:
    """Return a stored `step` in the form that `optimizer` counts in: a scalar, beside the parameter where its kernel reads it there, or an int.

    Args:
        device: Of the parameter.
    """
    if not isinstance(optimizer, torch.optim.Adam):
        return int(step)
    return step.to(device if optimizer.param_groups[0]["fused"] else "cpu", torch.float32, copy=True)


def forget_steps(optimizer: torch.optim.Optimizer) -> None:
    """Count from 0 again, and keep the moments."""
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] = state["step"].zero_() if isinstance(state["step"], Tensor) else 0


def apex_found() -> tuple[str, type[torch.optim.Optimizer] | None]:
    """Look for NVIDIA's apex.

    The package index has another project of that name, and apex can be built without its CUDA extensions.

    Returns:
        What is found, in words; and `apex.optimizers.FusedAdam`, or None where it is missing.
    """
    if not _there("apex"):
        return "not installed", None
    try:
        fused_adam = importlib.import_module("apex.optimizers").FusedAdam
    except (ModuleNotFoundError, AttributeError):
        return f"{_where()} is another project than NVIDIA's: it has no apex.optimizers.FusedAdam", None
    # whatever a package that is broken, or built for another torch, raises while it is imported
    except Exception as error:
        return f"{_where()} cannot be imported ({in_short(error)})", None
    if not _there("amp_C"):
        return f"{_where()} was built without its CUDA extensions: there is no amp_C", None
    return f"NVIDIA's {_where()}", fused_adam


def _there(module: str) -> bool:
    return module in sys.modules or importlib.util.find_spec(module) is not None


def _where() -> str:
    try:
        version = importlib.metadata.version("apex")
    except importlib.metadata.PackageNotFoundError:
        version = "of no known version"
    module = sys.modules.get("apex") or importlib.util.find_spec("apex")
    places = getattr(module, "__path__", None) or getattr(module, "submodule_search_locations", None) or ["an unknown place"]
    return f"apex {version} in {next(iter(places))}"


def _apex_adam() -> Callable[..., torch.optim.Optimizer]:
    """Return apex's FusedAdam as a class that counts the steps of each parameter, as torch's Adam does.

    Apex counts the steps of a whole parameter group. That count is wrong for a parameter without a gradient in some steps, and for ZeRO 3,
    which steps the parts of a group one after the other. Here each parameter's state holds its own, which is handed to apex for the step.

    Raises:
        ConfigError: There is no apex, or it is not NVIDIA's.
    """
    found, FusedAdam = apex_found()
    if FusedAdam is None:
        found = f"which is {found}" if found == "not installed" else f"and {found}"
        raise configs.ConfigError(f"optimizer.implementation: apex needs NVIDIA's apex with its CUDA extensions, {found}; "
                                  f"it comes with NVIDIA's PyTorch containers or from github.com/NVIDIA/apex; or use fused, which torch has")

    class ApexAdam(FusedAdam):

        def step(self, closure: None = None) -> None:
            counts: dict[int, list[nn.Parameter]] = defaultdict(list)
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        counts[self.state[parameter].pop("step", 0)].append(parameter)
            gradients = {parameter: parameter.grad for some in counts.values() for parameter in some}
            for count, some in counts.items():
                for group in self.param_groups:
                    group["step"] = count
                # apex passes over parameters without a gradient
                if len(counts) > 1:
                    for parameter in gradients:
                        parameter.grad = None
                    for parameter in some:
                        parameter.grad = gradients[parameter]
                super().step()
                for parameter in some:
                    self.state[parameter]["step"] = count + 1
            if len(counts) > 1:
                for parameter, gradient in gradients.items():
                    parameter.grad = gradient

        # apex's own takes no argument
        def zero_grad(self, set_to_none: bool = True) -> None:
            torch.optim.Optimizer.zero_grad(self, set_to_none)

    return ApexAdam


def check_step(name: str, step: Any) -> None:
    """Reject a stored `step` that counts nothing.

    Raises:
        ValueError: It is negative, broken or infinite.
    """
    value = float(step)
    if not (0 <= value <= MOST_STEPS and value.is_integer()):
        raise ValueError(f"step of {name} is {value:g}, expected a whole number from 0 to {MOST_STEPS}")
