"""Modules that other codebases import and current environments no longer have, lent to those who cannot do without."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from types import ModuleType

from torch.torch_version import TorchVersion


@contextmanager
def lent(borrower: str, loader: SourceFileLoader) -> Iterator[list[str]]:
    """Lends what the module `borrower` imports and cannot find, as long as the `with` lasts: to its own import.

    Others, who ask whether they have such a module, are to be told the truth.

    Yields:
        The names of the modules lent.
    """
    loans = LOANS.get(borrower.rpartition(".")[2], {})
    imports = loader.get_code(borrower).co_names if loans else ()
    made = {name: make() for name, make in loans.items() if name in imports and not _exists(name)}
    before = {name: sys.modules[name] for name in made if name in sys.modules}
    sys.modules.update(made)
    try:
        yield list(made)
    finally:
        for name in made:
            sys.modules.pop(name, None)
        # None, where an import was blocked
        sys.modules.update(before)


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        # the package around it is missing: not for us to make up
        return True


def _pkg_resources() -> ModuleType:
    """Setuptools dropped it; versions of torch are what is compared with it."""
    module = ModuleType("pkg_resources")
    module.parse_version = TorchVersion
    return module


def _functional_tensor() -> ModuleType:
    """Torchvision 0.17 dropped the name, and kept its functions elsewhere."""
    return importlib.import_module("torchvision.transforms._functional_tensor")


# by the last part of the borrower's name
LOANS: dict[str, dict[str, Callable[[], ModuleType]]] = {
    "conv2d_gradfix": {"pkg_resources": _pkg_resources},
    "grid_sample_gradfix": {"pkg_resources": _pkg_resources},
    "degradations": {"torchvision.transforms.functional_tensor": _functional_tensor},
}
