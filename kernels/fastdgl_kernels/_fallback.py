"""What happens when a kernel does not compile, or does not fit the GPU, at run time: PyTorch computes in its place.

Each function that launches kernels has a formula in plain PyTorch beside it, of the same arguments. The first kernel of
an operator that a device rejects is reported in one warning; from then on the formulas compute for that operator on
that device, in forward, backward and double backward, and "auto" and "fastest" take its reference.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

import torch

# the operator that the kernels of a module belong to
OPERATORS = {
    "activation": "bias_act",
    "convolution": "convolution",
    "modulation.epilogue": "modulated_conv2d",
    "modulation.to_rgb_kernel": "to_rgb",
    "normalization": "scale_shift_act",
    "resampling": "upfirdn2d",
}

# operators that consist of another one's kernels
SAME_KERNELS = {"modulated_conv2d_bias_act": "modulated_conv2d"}

# reasons, by operator and device, for the life of the process
_failures: dict[tuple[str, torch.device], str] = {}

# not of a context: backwards run on threads of their own
_raises = False


class LaunchError(RuntimeError):
    """A kernel that did not compile, or does not fit its device."""


def raise_failures(wanted: bool = True) -> bool:
    """Choose whether `LaunchError` is raised, on all threads, where formulas would compute: for those who check kernels.

    Returns:
        What was chosen before.
    """
    global _raises
    before, _raises = _raises, wanted
    return before


@contextmanager
def failures_raised() -> Iterator[None]:
    """`raise_failures`, inside the `with`."""
    before = raise_failures()
    try:
        yield
    finally:
        raise_failures(before)


def failure(operator: str, device: torch.device) -> str | None:
    """Return the reason that an operator's kernels are no longer launched on a device, or None while they are."""
    if not _failures:
        return None
    reason = _failures.get((SAME_KERNELS.get(operator, operator), device))
    return None if reason is None else f"a kernel of it failed in this process: {reason}"


def failed_operators() -> tuple | None:
    """Return the operators and devices that have failed, or None."""
    return tuple(_failures) if _failures else None


def report(module: str, device: torch.device, error: BaseException) -> None:
    """Remember that a kernel failed on a device, and say so the first time for its operator.

    Args:
        module: Name of the module that the kernel is in.
    """
    operator, reason = operator_of(module), summary(error)
    if _failures.setdefault((operator, device), reason) is reason:
        warnings.warn(
            f"{operator}: a kernel does not run on {_name(device)}: {reason}; "
            f"PyTorch computes {operator} there in its place, until this process ends",
            RuntimeWarning,
            stacklevel=2,
        )


def or_else(formula: Callable) -> Callable[[Callable], Callable]:
    """Let `formula` compute where a kernel that the function launches is rejected.

    Args:
        formula: Of the same arguments, in plain PyTorch; the first of them is a tensor.
    """

    def decorate(function: Callable) -> Callable:
        module = function.__module__
        operator = operator_of(module)

        @wraps(function)
        def run(*arguments, **keywords):
            if not _failures or _raises or (operator, device_of(arguments, keywords)) not in _failures:
                try:
                    return function(*arguments, **keywords)
                except LaunchError as error:
                    if _raises:
                        raise
                    report(module, device_of(arguments, keywords), error.__cause__)
            return formula(*arguments, **keywords)

        def device_of(arguments: tuple, keywords: dict) -> torch.device:
            return (arguments[0] if arguments else next(iter(keywords.values()))).device

        return run

    return decorate


def operator_of(module: str) -> str:
    """Return the operator that the kernels of a module of this package belong to."""
    path = module.removeprefix(f"{__package__}.")
    return next((name for part, name in OPERATORS.items() if f"{path}.".startswith(f"{part}.")), path)


def summary(error: BaseException) -> str:
    """Return the kind of an error, and the last line of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:200]}" if lines else type(error).__name__


def _name(device: torch.device) -> str:
    if device.type != "cuda" or not torch.cuda.is_available():
        return str(device)
    return f"{device} ({torch.cuda.get_device_name(device)})"
