"""What runs on this machine, why, and whether it is right: `python -m fastdgl_kernels`."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from . import (
    bias_act,
    conv2d_resample,
    explain,
    filtered_lrelu,
    modulated_conv2d,
    modulated_conv2d_bias_act,
    scale_shift_act,
    setup_filter,
    upfirdn2d,
)
from ._fallback import LaunchError, failures_raised, summary
from .certify.command import summary as certification

# in units of rounding at the largest value: sums of some hundred terms stay far below, wrong numbers do not
ROUNDINGS = 64

FILTERS = ("f", "fu", "fd", "resample_filter")
IMPLEMENTATIONS = ("reference", "triton", "cudnn")


@dataclass(frozen=True)
class Case:
    """An operator and what it is called with.

    Args:
        operator: One of ours.
        shapes: Of the tensors it is differentiated by, its first arguments.
        keywords: Its other arguments; filters as their taps.
        dtype: Of the tensors.
    """

    operator: Callable[..., Tensor]
    shapes: Sequence[tuple[int, ...]]
    keywords: dict = field(default_factory=dict)
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        numbers = (f"{name}={value}" for name, value in self.keywords.items() if name not in FILTERS)
        return f"{self.operator.__name__} {next(numbers)} {self.dtype}".replace("torch.", "")

    def inputs(self, device: str) -> list[Tensor]:
        """Normal numbers, the same every time."""
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(shape, generator=generator).to(device, self.dtype) for shape in self.shapes]

    def arguments(self, device: str) -> dict:
        """The keywords, with filters on the device."""
        return {
            name: setup_filter(value, device) if name in FILTERS else value
            for name, value in self.keywords.items()
        }


TAPS = [1, 3, 3, 1]
LAYER = dict(up=2, padding=1, resample_filter=TAPS, flip_weight=False)
CASES = [
    Case(bias_act, [(2, 3, 9, 7), (3,)], dict(act="lrelu", clamp=2.0)),
    Case(bias_act, [(2, 3, 9, 7), (3,)], dict(act="swish")),
    Case(upfirdn2d, [(2, 3, 9, 7)], dict(f=TAPS, up=2, padding=[2, 1, 2, 1], gain=4)),
    Case(upfirdn2d, [(2, 3, 9, 7)], dict(f=[1, 2, 3], down=[2, 1], padding=-1, flip_filter=True)),
    Case(filtered_lrelu, [(1, 2, 5, 4)], dict(fu=TAPS, fd=TAPS, up=2, down=2, padding=3, clamp=1.0)),
    Case(conv2d_resample, [(2, 3, 6, 6), (4, 3, 3, 3)], dict(f=TAPS, down=2, padding=1)),
    Case(modulated_conv2d, [(2, 3, 4, 4), (4, 3, 3, 3), (2, 3)], LAYER),
    Case(modulated_conv2d, [(1, 64, 8, 8), (64, 64, 3, 3), (1, 64)], dict(padding=1), torch.float16),
    Case(modulated_conv2d_bias_act, [(2, 3, 4, 4), (4, 3, 3, 3), (2, 3), (8, 8), (4,)], LAYER),
    Case(scale_shift_act, [(2, 3, 5, 5), (2, 3), (2, 3)], dict(up=2)),
]


def main() -> int:
    """Print versions, what each operator would run as and why, and the self-check. Returns 0 if it passes, else 1."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print("\n".join(environment(device)))
    explained = {case.operator: case for case in reversed(CASES)}
    for case in reversed(explained.values()):
        print("\n" + explain(case.operator, *case.inputs(device), **case.arguments(device)))
    where = device if device == "cuda" else "cpu, where kernels are interpreted"
    print(f"\nvalue, gradients and second gradients on {where}")
    print(f"largest error, in roundings of the largest value; up to {ROUNDINGS} is well")
    if device == "cpu" and "triton" not in sys.modules:
        # read when Triton is imported
        os.environ.setdefault("TRITON_INTERPRET", "1")
    passed = [check(case, name, device) for case in CASES for name in IMPLEMENTATIONS]
    print("all is well" if all(passed) else f"{passed.count(False)} of {len(passed)} checks failed")
    return 0 if all(passed) else 1


def environment(device: str) -> list[str]:
    """Versions, and where and on what the operators are."""
    lines = [
        f"{__package__} in {Path(__file__).parent}",
        f"python {platform.python_version()}, torch {torch.__version__}, triton {_version('triton')}",
        "no GPU: CPU",
    ]
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        lines[-1] = f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}, CUDA {torch.version.cuda}"
    return [
        *lines,
        f"FASTDGL_IMPL: {os.environ.get('FASTDGL_IMPL') or 'not set'}",
        f"certification: {certification(torch.device(device))}",
    ]


def check(case: Case, name: str, device: str) -> bool:
    """Hold one implementation against the reference in float64, and print how far it is off. What it lacks passes."""
    try:
        with failures_raised():
            got = _derivatives(case, name, case.inputs(device), case.arguments(device))
    except LaunchError as error:
        print(f"  {case!s:44}{name:10} does not run here: {summary(error.__cause__)}")
        return False
    except ValueError as error:
        if "has no such implementation" in str(error):
            return True
        raise
    except RuntimeError as error:
        if "cannot run" not in str(error):
            raise
        print(f"  {case!s:44}{name:10} not here: {error}")
        return True
    expected = _derivatives(case, "reference", [x.double() for x in case.inputs("cpu")], case.arguments("cpu"))
    off = [_roundings(y, right, case.dtype) for y, right in zip(got, expected)]
    # not `max(off) <= ROUNDINGS`: NaN fails
    passed = all(roundings <= ROUNDINGS for roundings in off)
    print(f"  {case!s:44}{name:10} {max(off):7.1f}  {'ok' if passed else 'WRONG'}")
    return passed


def _derivatives(case: Case, name: str, inputs: list[Tensor], keywords: dict) -> list[Tensor]:
    """The value, the gradients, and the gradients of their squared norm, as R1 takes them."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        y = case.operator(*(x.requires_grad_() for x in inputs), **keywords, impl=name)
        # between two layers of a network, the second derivative passes through the incoming gradient
        dy = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).to(y).reshape(y.shape).requires_grad_()
        dx = torch.autograd.grad(y, inputs, dy, create_graph=True)
        norm = sum(g.square().sum(dtype=torch.promote_types(g.dtype, torch.float32)) for g in dx)
        inputs = [*inputs, dy]
        ddx = torch.autograd.grad(norm, inputs, allow_unused=True)
    return [y, *dx, *(torch.zeros_like(x) if g is None else g for g, x in zip(ddx, inputs))]


def _roundings(y: Tensor, right: Tensor, dtype: torch.dtype) -> float:
    error, largest = (y.double().cpu() - right).abs().max(), right.abs().max()
    return (error / (largest * torch.finfo(dtype).eps)).item() if error != 0 else 0.0


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
