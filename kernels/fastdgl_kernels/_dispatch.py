"""Which implementation of an operator runs. Decided here and nowhere else."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

NAMES = ("auto", "reference", "triton", "cudnn")

# what NVIDIA's operators call them
SPELLINGS = {"cuda": "auto", "ref": "reference"}

_chosen: ContextVar[str | None] = ContextVar("fastdgl_kernels implementation", default=None)


@contextmanager
def implementation(name: str) -> Iterator[None]:
    """Run the operators called inside the `with` by one implementation.

        with implementation("reference"):
            y = bias_act(x, b)

    It holds for this thread or task only, and for calls that do not name an `impl` of their own.

    Args:
        name: "reference", or "auto" for the fastest an operator has.
    """
    token = _chosen.set(_canonical(name, "implementation"))
    try:
        yield
    finally:
        _chosen.reset(token)


def dispatch(x: Tensor, impl: str | None, **implementations: Callable) -> Callable:
    """Pick the implementation of an operator for `x`.

    Asked in this order: the argument `impl`, the surrounding `implementation(...)`, the environment
    variable FASTDGL_IMPL, "auto". A name asked for and not to be had is an error, never a substitute.

    Args:
        x: The operator's main input: what can run depends on its device and dtype.
        impl: The caller's wish, or None.
        implementations: The operator's own, by name, the fastest first. All of them carry its name.
    """
    name = _wanted(impl)
    if name == "auto":
        return next(iter(implementations.values()))
    if name not in implementations:
        operator = next(iter(implementations.values())).__name__
        raise ValueError(f"impl={name!r}: {operator} has no such implementation, it has {_listed(implementations)}")
    return implementations[name]


def _wanted(impl: str | None) -> str:
    if impl is not None:
        return _canonical(impl, "impl")
    return _chosen.get() or _canonical(os.environ.get("FASTDGL_IMPL") or "auto", "FASTDGL_IMPL")


def _canonical(name: str, source: str) -> str:
    canonical = SPELLINGS.get(name, name)
    if canonical not in NAMES:
        raise ValueError(f"{source}={name!r}: expected one of {_listed(NAMES)}")
    return canonical


def _listed(names) -> str:
    return ", ".join(repr(name) for name in names)
