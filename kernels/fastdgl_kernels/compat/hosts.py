"""What of a module is to be replaced, and by what: codebases are known by names and interfaces, never guessed."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType, ModuleType

from torch import autograd

from . import basicsr, libraries, nvlabs, rosinality
from .interfaces import described, inner, matching, names

_PACKAGE = __name__.removesuffix(".compat.hosts")


@dataclass(frozen=True)
class Change:
    """An attribute to be replaced.

    Args:
        owner: The module or class.
        name: Of the attribute.
        make: What shall stand there, from what does.
        by: That in words.
        level: "plugin", "function" or "layer"; "mend" for what does not run on a current PyTorch; "library" for what
            PyTorch or torchvision does not take from hosts.
    """

    owner: ModuleType | type
    name: str
    make: Callable
    by: str
    level: str


@dataclass(frozen=True)
class Left:
    """An attribute that bears a name of ours to replace, and is not to be touched.

    Args:
        owner: Name of the module or class.
        name: Of the attribute.
        why: The reason.
        level: Of the change that would have been.
    """

    owner: str
    name: str
    why: str
    level: str


def changes(module: ModuleType, has: dict, attend: Callable[[ModuleType], None]) -> Iterator[Change | Left]:
    """All that is to be replaced in a module, and what might seem to.

    Args:
        module: As it is after its import.
        has: Its dictionary.
        attend: To be called with modules that come to be otherwise than by import.
    """
    if f"{module.__name__}.".startswith(f"{_PACKAGE}."):
        return
    last = module.__name__.rpartition(".")[2]
    for (where, name), candidates in _FUNCTIONS.items():
        if where == last and isinstance(has.get(name), FunctionType):
            level = "mend" if (where, name) in nvlabs.MENDED else "function"
            yield _function(module, name, has[name], candidates, level)
    yield from _libraries(module, has)
    yield from _grid_samples(module, has)
    yield from _plugins(module, has, last)
    yield from _loaders(module, has, last, attend)
    yield from _layers(module, has)


def _libraries(module: ModuleType, has: dict) -> Iterator[Change]:
    """Yield the changes by which PyTorch and torchvision accept what they reject today."""
    for kind, name, make, by in libraries.CHANGES.get(module.__name__, ()):
        owner = module if kind is None else has.get(kind)
        if kind is None and isinstance(has.get(name), FunctionType) or isinstance(owner, type):
            yield Change(owner, name, make, by, "library")


def _function(
    module: ModuleType, name: str, theirs: FunctionType, candidates: Iterable[Callable], level: str
) -> Change | Left:
    ours = matching(theirs, candidates)
    if ours is None:
        known = " or ".join(map(described, candidates))
        return Left(module.__name__, name, f"it takes {described(theirs)}, known is {known}", level)
    return Change(module, name, functools.partial(_stand_in, ours), f"{_PACKAGE}'s {ours.__name__}", level)


def _stand_in(ours: Callable, theirs: FunctionType) -> FunctionType:
    # a function for each of theirs, so that it can be told apart, and is found by its name when pickled
    @functools.wraps(theirs)
    def stand_in(*arguments, **keywords):
        return ours(*arguments, **keywords)

    return stand_in


def _layers(module: ModuleType, has: dict) -> Iterator[Change | Left]:
    theirs = has.get("modulated_conv2d")
    if isinstance(theirs, FunctionType) and inner(theirs).__module__ == module.__name__:
        yield _function(module, "modulated_conv2d", theirs, nvlabs.MODULATED_CONV2D, "layer")
    layer = has.get("ModulatedConv2d")
    if isinstance(layer, type) and layer.__module__ == module.__name__ and isinstance(layer.__init__, FunctionType):
        yield _modulated_conv2d(layer)


def _grid_samples(module: ModuleType, has: dict) -> Iterator[Change]:
    """Autograd functions, whatever their names, that call the gradient of `grid_sample` as PyTorch no longer lets them."""
    for kind in list(has.values()):
        if type(kind) is type(autograd.Function) and kind.__module__ == module.__name__:
            theirs = vars(kind).get("forward")
            code = getattr(getattr(theirs, "__func__", None), "__code__", None)
            if code and nvlabs.GRID_SAMPLE_BACKWARD in code.co_consts and names(theirs.__func__) == _GRID_SAMPLE_BACKWARD:
                by = "PyTorch's gradient of grid_sample"
                yield Change(kind, "forward", lambda theirs: staticmethod(nvlabs.grid_sample_backward), by, "mend")


def _modulated_conv2d(layer: type) -> Change | Left:
    arguments = names(layer.__init__)
    ours = _MODULATED_CONV2D.get(arguments)
    if ours is None or names(layer.forward) != names(ours):
        owner = f"{layer.__module__}.{layer.__name__}"
        return Left(owner, "forward", f"its constructor takes ({', '.join(arguments)}), which is not known", "layer")
    return Change(layer, "forward", lambda theirs: ours, f"{_PACKAGE}'s modulated_conv2d", "layer")


def _plugins(module: ModuleType, has: dict, last: str) -> Iterator[Change]:
    ours = nvlabs.PLUGINS.get(last)
    if ours is not None and "_plugin" in has and isinstance(has.get("_init"), FunctionType):
        yield _plugin(module, "_plugin", ours)
        if "_inited" in has:
            # or it would go on to compile
            yield Change(module, "_inited", lambda theirs: True, "True", "plugin")
    for name, (aliases, ours) in rosinality.PLUGINS.items():
        caller = has.get(name)
        if isinstance(caller, type) and caller.__module__ == module.__name__:
            called = aliases.intersection(caller.forward.__code__.co_names)
            yield from (_plugin(module, alias, ours) for alias in called)


def _plugin(module: ModuleType, name: str, ours: type) -> Change:
    return Change(module, name, lambda theirs: ours, f"{_PACKAGE}'s {ours.__name__}", "plugin")


def _loaders(module: ModuleType, has: dict, last: str, attend: Callable[[ModuleType], None]) -> Iterator[Change]:
    """What compiles extensions, and what makes modules of the source in pickles."""
    if module.__name__ == "torch.utils.cpp_extension":
        yield _loader(module, "load", rosinality.plugin)
    theirs = has.get("get_plugin")
    if last == "custom_ops" and isinstance(theirs, FunctionType) and names(theirs)[:2] == ("module_name", "sources"):
        yield _loader(module, "get_plugin", nvlabs.plugin)
    theirs = has.get("_src_to_module")
    if last == "persistence" and isinstance(theirs, FunctionType) and names(theirs) == ("src",):
        by = f"itself, and {_PACKAGE} looks through what it makes"
        yield Change(module, "_src_to_module", functools.partial(_attended, attend), by, "layer")


def _loader(module: ModuleType, name: str, plugin: Callable) -> Change:
    by = f"{_PACKAGE}'s, for extensions it knows"
    return Change(module, name, functools.partial(_asked_first, plugin), by, "plugin")


def _asked_first(plugin: Callable, theirs: FunctionType) -> FunctionType:
    signature = inspect.signature(theirs)

    @functools.wraps(theirs)
    def load(*arguments, **keywords):
        name, sources, *_ = signature.bind(*arguments, **keywords).args
        return plugin(name, sources) or theirs(*arguments, **keywords)

    return load


def _attended(attend: Callable[[ModuleType], None], theirs: FunctionType) -> FunctionType:
    @functools.wraps(theirs)
    def source_to_module(src):
        module = theirs(src)
        attend(module)
        return module

    return source_to_module


_GRID_SAMPLE_BACKWARD = names(nvlabs.grid_sample_backward)
_MODULATED_CONV2D = rosinality.MODULATED_CONV2D | basicsr.MODULATED_CONV2D
_FUNCTIONS = {
    key: [ours for host in (nvlabs.FUNCTIONS, nvlabs.MENDED, rosinality.FUNCTIONS) for ours in host.get(key, [])]
    for key in {**nvlabs.FUNCTIONS, **nvlabs.MENDED, **rosinality.FUNCTIONS}
}
