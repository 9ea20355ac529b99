"""Knowing a function of another codebase by its interface: the names, order and defaults of its arguments."""

import inspect
from collections.abc import Callable, Iterable
from types import FunctionType


def matching(theirs: Callable, candidates: Iterable[Callable]) -> Callable | None:
    """The first of the candidates that can be called as `theirs` can, and takes it to mean the same.

    `impl`, which implementation to take, does not count where it is as NVIDIA has it: it changes no value. Elsewhere it
    does, so that copies of this package are not taken for something else.
    """
    return next((ours for ours in candidates if _arguments(ours, impl=None) == _arguments(theirs, impl="cuda")), None)


def names(function: Callable) -> tuple[str, ...]:
    """Of its arguments; of a constructor or method, less `self`."""
    return tuple(name for name in inspect.signature(inner(function)).parameters if name != "self")


def inner(function: FunctionType) -> FunctionType:
    """The function itself where a decorator that keeps its name, but not its signature, stands around it."""
    wrapped = inspect.unwrap(function)
    for cell in wrapped.__closure__ or ():
        held = cell.cell_contents
        if isinstance(held, FunctionType) and held.__name__ == function.__name__:
            return inner(held)
    return wrapped


def described(function: Callable) -> str:
    """Its arguments and their defaults, to be read."""
    empty = inspect.Parameter.empty
    arguments = _arguments(function, impl=None)
    arguments = (name if default is empty else f"{name}={default!r}" for name, default in arguments)
    return f"({', '.join(arguments)})"


def _arguments(function: Callable, impl: str | None) -> list[tuple[str, object]]:
    """Names and defaults, without an `impl` of this default."""
    parameters = inspect.signature(inner(function)).parameters.values()
    return [(p.name, p.default) for p in parameters if p.name != "impl" or p.default != impl]
