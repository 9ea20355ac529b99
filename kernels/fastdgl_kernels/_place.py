"""Name and folder of this package, and the commands that reach it: it may be installed, vendored, or loaded from a path."""

import os
import sys
from pathlib import Path

PACKAGE = __package__
ROOT = Path(__file__).parent

# loaded from a path under a name of the loader's, as Hugging Face's `kernels` does: no `python -m` finds it
BY_PATH = ROOT.name != PACKAGE.rpartition(".")[2]

# certifies by hand
COMMAND = f"python {ROOT} certify" if BY_PATH else f"python -m {PACKAGE} certify"

# loads the package argv[2] from the folder argv[1], and runs its module argv[3]
_RUN = """
import importlib.util, runpy, sys
folder, package, module = sys.argv[1:4]
spec = importlib.util.spec_from_file_location(package, folder + "/__init__.py")
sys.modules[package] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[package])
sys.argv[1:] = sys.argv[4:]
runpy.run_module(f"{package}.{module}", run_name="__main__", alter_sys=True)
"""


def command(module: str) -> list[str]:
    """Return the command that runs a module of this package in another process; see `environment`."""
    if BY_PATH:
        return [sys.executable, "-c", _RUN, str(ROOT), PACKAGE, module]
    return [sys.executable, "-m", f"{PACKAGE}.{module}"]


def environment() -> dict[str, str]:
    """Return an environment in which a process finds this package, and nothing in the current folder."""
    roots = [] if BY_PATH else [str(ROOT.parents[PACKAGE.count(".")])]
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    # in front: another copy of the same name is not what is to be certified
    return os.environ | {"PYTHONPATH": os.pathsep.join([*roots, *paths]), "PYTHONSAFEPATH": "1"}
