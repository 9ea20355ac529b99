"""Knowing a function of another codebase by its interface: the names, order and defaults of its arguments."""

import inspect
from collections.abc import Callable, Iterable
from types import FunctionType


def matching(theirs: Callable, candidates: Iterable[Callable]) -> Callable | None:
    """The first of the candidates that can be called as `theirs` can, and takes it to mean the same.

    `impl`, which implementation to take, does not count: it changes no value.
    """
    return next((ours for ours in candidates if _arguments(ours) == _arguments(theirs)), None)


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
    arguments = (name if default is empty else f"{name}={default!r}" for name, default in _arguments(function))
    return f"({', '.join(arguments)})"


def _arguments(function: Callable) -> list[tuple[str, object]]:
    parameters = inspect.signature(inner(function)).parameters.values()
    return [(p.name, p.default) for p in parameters if p.name != "impl"]
