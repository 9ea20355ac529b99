"""Where there is no GPU, the kernels run in Triton's interpreter; what they leave unwritten is NaN everywhere."""

import functools
import os
import sys

import interpreter
import pytest
import torch

if not torch.cuda.is_available():
    # before the first import of triton, which reads it once
    os.environ.setdefault("TRITON_INTERPRET", "1")

# makes torch.empty return NaN, so that holes in a result are seen
torch.use_deterministic_algorithms(True, warn_only=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep what shares a module's fixture in one of pytest-xdist's processes, as each would make it; such tests go first."""
    from xdist.scheduler import LoadScopeScheduling

    @functools.cache
    def shares(module: str) -> bool:
        return 'scope="module"' in (config.rootpath / module).read_text()

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            # functions of the module, or of one of its classes
            return super()._split_scope(nodeid) if shares(nodeid.split("::")[0]) else nodeid

    return Scheduling(config, log)


@pytest.fixture
def triton(monkeypatch):
    """For tests that run kernels."""
    pytest.importorskip("triton")
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        interpreter.hasten()


@pytest.fixture(autouse=True)
def no_plans():
    """Operators choose again in each test, which may have changed what they go by."""
    plans = sys.modules.get("fastdgl_kernels._plans")
    if plans is not None:
        plans.forget_plans()
