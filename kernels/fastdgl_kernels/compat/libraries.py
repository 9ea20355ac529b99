"""Arguments that PyTorch and torchvision once took, or passed, and hosts still rely on."""

import argparse
import functools
import sys
import threading
from collections.abc import Callable
from numbers import Real
from types import FunctionType

from torch import Tensor, serialization
from torch._weights_only_unpickler import _remove_safe_globals

from .interfaces import names


def sampler_init(theirs) -> Callable:
    """Return `Sampler.__init__` that takes the data source, as PyTorch's once did.

    Another base class that comes after `Sampler` gets the arguments as it would have.
    """
    from torch.utils.data.sampler import Sampler

    def __init__(self, *arguments, **keywords):
        after = super(Sampler, self).__init__
        if getattr(after, "__objclass__", None) is not object or set(keywords) - {"data_source"} or len(arguments) > 1:
            after(*arguments, **keywords)

    return __init__


def adam_init(theirs: FunctionType) -> FunctionType:
    """Return `Adam.__init__` that takes betas of any real numbers, such as 0 for 0.0."""

    @functools.wraps(theirs)
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), *arguments, **keywords):
        if not any(isinstance(beta, Tensor) for beta in betas):
            betas = tuple(float(beta) if isinstance(beta, Real) else beta for beta in betas)
        theirs(self, params, lr, betas, *arguments, **keywords)

    return __init__


def make_grid(theirs: FunctionType) -> FunctionType:
    """Return `make_grid`, and so `save_image`, that takes `range=` for `value_range=`, its name of before."""
    if "range" in names(theirs):
        return theirs

    @functools.wraps(theirs)
    def stand_in(*arguments, **keywords):
        if "range" in keywords:
            keywords.setdefault("value_range", keywords.pop("range"))
        return theirs(*arguments, **keywords)

    return stand_in


def load(theirs: FunctionType) -> FunctionType:
    """Return `torch.load` that reads the options of a run, an `argparse.Namespace`, from a checkpoint."""

    @functools.wraps(theirs)
    def stand_in(*arguments, **keywords):
        with _readable:
            return theirs(*arguments, **keywords)

    return stand_in


def parse_known_args(theirs: FunctionType) -> FunctionType:
    """Return `ArgumentParser.parse_known_args` that takes `--local-rank` where the parser has `--local_rank`.

    `torch.distributed.launch` passes the first since PyTorch 2.0, and passed the second before.
    """

    @functools.wraps(theirs)
    def stand_in(self, args=None, namespace=None, **keywords):
        if "--local_rank" in self._option_string_actions and "--local-rank" not in self._option_string_actions:
            args = [_renamed(argument) for argument in (sys.argv[1:] if args is None else args)]
        return theirs(self, args, namespace, **keywords)

    return stand_in


def _renamed(argument: str) -> str:
    option, equals, value = argument.partition("=")
    return f"--local_rank{equals}{value}" if option == "--local-rank" else argument


# by module: the class in it or none, the attribute, what takes its place, and that in words
CHANGES: dict[str, list[tuple[str | None, str, Callable, str]]] = {
    "torch.utils.data.sampler": [("Sampler", "__init__", sampler_init, "one that takes the data source")],
    "torch.optim.adam": [("Adam", "__init__", adam_init, "itself, with betas of any real numbers")],
    "argparse": [("ArgumentParser", "parse_known_args", parse_known_args, "itself, with --local-rank for --local_rank")],
    "torchvision.utils": [(None, "make_grid", make_grid, "itself, with range= for value_range=")],
    "torch.serialization": [(None, "load", load, "itself, which reads an argparse.Namespace")],
}

# what checkpoints of hosts hold beside tensors and numbers; unpickling one runs nothing
_READ = [argparse.Namespace]


class _Readable:
    """A context in which `torch.load` reads the classes in `_READ`, beside those that the user has allowed."""

    def __init__(self):
        self._lock = threading.Lock()
        self._inside = 0
        self._added: list[type] = []

    def __enter__(self) -> None:
        with self._lock:
            # loads on other threads share what the first has added
            if self._inside == 0:
                self._added = [kind for kind in _READ if kind not in serialization.get_safe_globals()]
                serialization.add_safe_globals(self._added)
            self._inside += 1

    def __exit__(self, *_) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                _remove_safe_globals(self._added)


_readable = _Readable()
