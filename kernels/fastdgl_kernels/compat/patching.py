"""`patch`: other codebases run on our operators, imported before or after. And `unpatch`.

Only functions are replaced, and `forward` of one class, so that what is pickled meanwhile is the host's own.
"""

import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import SourceFileLoader
from types import FunctionType, ModuleType

from .hosts import Change, Left, changes
from .mending import lent

LEVELS = ("plugin", "function", "layer")

_MISSING = object()


def patch(level: str = "layer") -> "Patch":
    """Make other people's StyleGANs, in this process, run on these operators.

        fastdgl_kernels.patch()             # before or after their modules are imported
        print(fastdgl_kernels.patch())      # what was replaced by now, what was not, and why

    Known are trees of NVIDIA's kind (`torch_utils.ops`), of rosinality's (`op`), and BasicSR. No extension of theirs is
    compiled any more, and what keeps them from being imported today is mended.

    Args:
        level: How deep to go; each includes those before it.
            "plugin": in place of the compiled extensions, under the host's own autograd functions.
            "function": their operators, as `bias_act`.
            "layer": their modulated convolutions.

    Returns:
        What was done, to be printed; it grows as modules are imported. In a `with` it is undone at the end.
        A second call returns the one in force, once it has looked again for what has come other than by import.

    Raises:
        ValueError: there is no such level, or another one is in force.
    """
    global _active
    if level not in LEVELS:
        raise ValueError(f"level={level!r}: expected one of {', '.join(map(repr, LEVELS))}")
    if _active is not None and _active.level != level:
        raise ValueError(f"level={level!r}, but {_active.level!r} is in force: call unpatch() first")
    if _active is None:
        _active = Patch(level)
        sys.meta_path.insert(0, _active._finder)
    _active._look()
    _active._holders += 1
    return _active


def unpatch() -> None:
    """Put everything back as `patch` found it; without one, do nothing."""
    global _active
    if _active is not None:
        _active._stop()
        _active = None


@dataclass(frozen=True)
class Replaced:
    """An attribute that was replaced.

    Args:
        owner: Name of the module or class.
        name: Of the attribute.
        by: What stands there now, in words.
        level: One of `LEVELS`; "mend" for what does not run on a current PyTorch, "library" for an attribute of PyTorch
            or torchvision, "import" for a name that another module had taken from where it is defined.
    """

    owner: str
    name: str
    by: str
    level: str


class Patch:
    """What `patch` has done so far.

    Args:
        level: One of `LEVELS`.
    """

    def __init__(self, level: str):
        self.level = level
        self.replaced: list[Replaced] = []
        self.left: list[Left] = []
        # the module that was imported, and the one it was lent
        self.lent: list[tuple[str, str]] = []
        self._holders = 0
        self._undo: list[tuple[ModuleType | type, str, object]] = []
        self._functions: list[tuple[FunctionType, FunctionType]] = []
        self._finder = _Finder(self)

    def __enter__(self) -> "Patch":
        return self

    def __exit__(self, *_) -> None:
        self._holders -= 1
        if self._holders == 0 and _active is self:
            unpatch()

    def __str__(self) -> str:
        lines = [f"patch(level={self.level!r})"]
        lines += [f"  {r.owner}.{r.name}: {r.by} ({r.level})" for r in self.replaced]
        lines += [f"  {borrower}: lent {name} for its import, which is not installed" for borrower, name in self.lent]
        hosts = [r for r in self.replaced if r.level not in ("library", "import")]
        lines += [] if hosts else ["  nothing yet of a host: no module that is known has been imported"]
        lines += ["left alone"] if self.left else []
        lines += [f"  {left.owner}.{left.name}: {left.why}" for left in self.left]
        return "\n".join(lines)

    def _look(self) -> None:
        """Replace what there is to replace in all that is imported."""
        for module in _modules():
            self.attend(module)
        for module, name, ours in _bindings(self._functions):
            setattr(module, name, ours)
            self._note(Replaced(module.__name__, name, f"that of {ours.__module__}", "import"))

    def _stop(self) -> None:
        sys.meta_path.remove(self._finder)
        # modules imported since have taken ours by name
        for module, name, theirs in _bindings((ours, theirs) for theirs, ours in self._functions):
            setattr(module, name, theirs)
        for owner, name, before in reversed(self._undo):
            if before is not _MISSING:
                setattr(owner, name, before)
            elif name in vars(owner):
                delattr(owner, name)

    def attend(self, module: ModuleType) -> None:
        """Replace what there is to replace in a module."""
        for change in list(changes(module, _contents(module), self.attend)):
            if change.level in LEVELS and LEVELS.index(change.level) > LEVELS.index(self.level):
                continue
            if isinstance(change, Left):
                self._note(change)
            else:
                self._apply(change)

    def _apply(self, change: Change) -> None:
        theirs = vars(change.owner).get(change.name, _MISSING)
        if any(theirs is ours for _, ours in self._functions):
            return
        ours = change.make(theirs)
        # an extension that was asked for while it was imported is there already
        if ours is not theirs:
            self._undo.append((change.owner, change.name, theirs))
            setattr(change.owner, change.name, ours)
        owner = change.owner.__name__
        if isinstance(change.owner, type):
            owner = f"{change.owner.__module__}.{owner}"
        elif isinstance(theirs, FunctionType):
            self._functions.append((theirs, ours))
        self._note(Replaced(owner, change.name, change.by, change.level))

    def _note(self, entry: Replaced | Left) -> None:
        entries = self.left if isinstance(entry, Left) else self.replaced
        if entry not in entries:
            entries.append(entry)


class _Finder(MetaPathFinder):
    """Finds nothing itself; what the others find is attended to once it has been imported."""

    def __init__(self, patch: Patch):
        self._patch = patch
        self._searching = threading.local()

    def find_spec(self, fullname, path, target=None):
        outer = getattr(self._searching, "name", None)
        # another of this kind, of a copy of this package, asks us in its turn
        if outer == fullname:
            return None
        self._searching.name = fullname
        try:
            found = (finder.find_spec(fullname, path, target) for finder in list(sys.meta_path) if finder is not self)
            spec = next((spec for spec in found if spec is not None), None)
        finally:
            self._searching.name = outer
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            self._attend_after(spec.loader)
        return spec

    def _attend_after(self, loader: SourceFileLoader) -> None:
        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            with lent(module.__name__, loader) as missing:
                loader.exec_module(module)
            if _active is self._patch:
                self._patch.lent += [(module.__name__, name) for name in missing]
                self._patch.attend(module)

        # on this loader only: its class, by which others know it, stays what it was
        loader.exec_module = exec_module


_active: Patch | None = None


def _modules() -> Iterator[ModuleType]:
    return (module for module in list(sys.modules.values()) if isinstance(module, ModuleType))


def _contents(module: ModuleType) -> dict:
    """Its dictionary, without waking modules that load when first looked at."""
    return object.__getattribute__(module, "__dict__")


def _bindings(pairs: Iterable[tuple[object, object]]) -> Iterator[tuple[ModuleType, str, object]]:
    """Each module and name that holds the first of a pair, with the second."""
    second = {id(one): other for one, other in pairs}
    for module in _modules():
        for name, value in list(_contents(module).items()):
            if id(value) in second:
                yield module, name, second[id(value)]
