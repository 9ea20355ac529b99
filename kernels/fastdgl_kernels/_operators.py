"""Functions as operators of PyTorch, for whoever traces them, as torch.compile does; otherwise they are just called.

A door is taken apart again once gradients are traced; an opaque operator is not looked into. Both are needed: Dynamo
cannot read how an implementation is chosen, and kernels are started from Python that must see tensors with numbers.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from functools import wraps

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad

# a copy of this package under another name has operators of its own
NAMESPACE = __package__.replace(".", "__")

TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    bool: "bool",
    int: "int",
    float: "float",
    float | None: "float?",
    str: "str",
    str | None: "str?",
    # [1] takes a number as well
    int | Sequence[int]: "int[1]",
    tuple[int, int]: "int[]",
    tuple[int, int, int, int]: "int[]",
}

_library = torch.library.Library(NAMESPACE, "FRAGMENT")

# called before a public operator runs, as note(name, arguments by parameter)
_recorder: ContextVar[Callable | None] = ContextVar("fastdgl_kernels recorder of calls", default=None)


@contextmanager
def recorded(note: Callable) -> Iterator[None]:
    """Call `note(name, arguments)` before each public operator that is called inside, on this thread."""
    token = _recorder.set(note)
    try:
        yield
    finally:
        _recorder.reset(token)


def door(function: Callable) -> Callable:
    """A public operator that Dynamo does not look into, and all that comes after it does.

    What is chosen inside, such as the implementation in force, is chosen when the call is compiled. Autocast changes no
    dtype inside.

    Args:
        function: Its annotations are in `TYPES`; it returns one tensor.
    """
    signature = inspect.signature(function)
    parameters, name = signature.parameters.values(), function.__name__
    _library.define(f"{name}({', '.join(map(_declared, parameters))}) -> Tensor")
    aside = _without_autocast(function)
    _library.impl(name, aside, "CompositeImplicitAutograd")
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default

    @wraps(function)
    def enter(*arguments, **keywords):
        if torch.compiler.is_dynamo_compiling():
            return operator(*arguments, **keywords)
        note = _recorder.get()
        if note is not None:
            note(name, signature.bind(*arguments, **keywords).arguments)
        return function(*arguments, **keywords) if not _is_autocast_on() else aside(*arguments, **keywords)

    return enter


def _is_autocast_on() -> bool:
    """Return whether autocast is on for any kind of device."""
    return torch._C._is_any_autocast_enabled()


def _without_autocast(function: Callable) -> Callable:
    """Return the function with autocast off for the device of its first tensor."""

    def aside(*arguments, **keywords):
        x = next((t for t in (*arguments, *keywords.values()) if isinstance(t, Tensor)), None)
        with nullcontext() if x is None else without_autocast(x.device):
            return function(*arguments, **keywords)

    return aside


class Function(torch.autograd.Function):
    """A Function whose `apply` costs less of the host's time: it takes arguments by position and binds no signature."""

    @classmethod
    def apply(cls, *arguments):
        if torch._C._are_functorch_transforms_active():
            return super().apply(*arguments)
        # what PyTorch's own `apply` does once it has bound the arguments
        return super(torch.autograd.Function, cls).apply(*unwrap_dead_wrappers(arguments))


def check_tensor(t, name: str) -> None:
    """Refuse what is no tensor."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")


def is_transformed() -> bool:
    """Return whether a transform of torch.func (grad, vmap, jvp) or forward mode is in force."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_wrapped(t: Tensor | None) -> bool:
    """Return whether a transform of torch.func follows `t`."""
    return t is not None and torch._C._functorch.is_functorch_wrapped_tensor(t)


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Return a context in which autocast leaves dtypes alone: an operator's caller has chosen them."""
    if not _is_autocast_on():
        return _nothing
    kind = device.type
    # torch.autocast raises for devices that have none, such as "meta"; where it is off, an exported program needs no word of it
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else _nothing


_nothing = nullcontext()


def opaque(output: Callable | None = None) -> Callable[[Callable], Callable]:
    """Make a function that starts kernels one operator, which nobody looks into.

    Its arguments are of `TYPES`, or records of such; others, None by default, cannot be given where it is traced. It
    returns a tensor, or several, of which some may be None; none of them shares memory with what it was given.

    Args:
        output: Gives tensors like the function's from its arguments; None where the function itself does, less
            its launches.
    """

    def decorate(function: Callable) -> Callable:
        return _opaque(function, output)

    return decorate


def _opaque(function: Callable, output: Callable | None) -> Callable:
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters.values() if p.annotation in TYPES or _parts(p.annotation)]
    names = {p.name for p in parameters}
    several = signature.return_annotation is not Tensor
    name = "_".join([*function.__module__.removeprefix(__package__ + ".").split("."), function.__name__])
    declared = ", ".join(_declared(flat) for p in parameters for flat in _flat_parameters(p))

    def run(*numbers):
        found = function(**_structured(parameters, numbers))
        return [_placeholder(t) for t in found] if several else found

    def fake(*numbers):
        from ._launch import launches_to

        with launches_to(lambda *call: None):
            return run(*numbers) if output is None else output(**_structured(parameters, numbers))

    tags = (torch.Tag.needs_exact_strides,)
    _library.define(f"{name}({declared}) -> Tensor{'[]' if several else ''}", tags=tags)
    for key in ("CPU", "CUDA"):
        _library.impl(name, run, key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default

    @wraps(function)
    def call(*arguments, **keywords):
        if not _traced():
            return function(*arguments, **keywords)
        bound = signature.bind(*arguments, **keywords)
        bound.apply_defaults()
        if others := [n for n in bound.arguments if n not in names and bound.arguments[n] is not None]:
            raise NotImplementedError(f"{name} cannot be traced with {', '.join(others)}")
        found = operator(*(flat for p in parameters for flat in _flat(p, bound.arguments[p.name])))
        return tuple(None if t.dtype == torch.bool else t for t in found) if several else found

    return call


def _traced() -> bool:
    """Whether someone looks at every operator, other than this package itself."""
    if torch._C._len_torch_dispatch_stack() == 0:
        return False
    from ._launch import are_taken

    return not are_taken()


def _placeholder(t: Tensor | None) -> Tensor:
    """What stands for None in a list of tensors; no kernel returns truth values."""
    return torch.empty(0, dtype=torch.bool) if t is None else t


def _declared(p: inspect.Parameter) -> str:
    default = "" if p.default is p.empty else f"={_literal(p.default)}"
    return f"{TYPES[p.annotation]} {p.name}{default}"


def _literal(value) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _parts(annotation: type) -> dict[str, type]:
    """The fields of a record, with their types; none of what is none."""
    if is_dataclass(annotation):
        return {field.name: field.type for field in fields(annotation)}
    return inspect.get_annotations(annotation) if hasattr(annotation, "_fields") else {}


def _flat_parameters(p: inspect.Parameter) -> list[inspect.Parameter]:
    parts = _parts(p.annotation)
    if not parts:
        return [p.replace(default=p.empty)]
    return [p.replace(name=f"{p.name}_{name}", annotation=kind, default=p.empty) for name, kind in parts.items()]


def _flat(p: inspect.Parameter, value) -> list:
    parts = _parts(p.annotation)
    return [getattr(value, name) for name in parts] if parts else [value]


def _structured(parameters: list[inspect.Parameter], numbers: tuple) -> dict:
    """The arguments of which these are the parts."""
    numbers = (tuple(n) if isinstance(n, list) else n for n in numbers)
    arguments = {}
    for p in parameters:
        parts = _parts(p.annotation)
        arguments[p.name] = p.annotation(*(next(numbers) for _ in parts)) if parts else next(numbers)
    return arguments
