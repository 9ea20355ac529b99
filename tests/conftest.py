"""Where there is no GPU, the kernels run in Triton's interpreter; what they leave unwritten is NaN everywhere."""

import os

import interpreter
import pytest
import torch

if not torch.cuda.is_available():
    # before the first import of triton, which reads it once
    os.environ.setdefault("TRITON_INTERPRET", "1")

# makes torch.empty return NaN, so that holes in a result are seen
torch.use_deterministic_algorithms(True, warn_only=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Keep the tests that share a fixture of their module in one of pytest-xdist's processes, which would make it in each."""
    for item in items:
        definitions = item._fixtureinfo.name2fixturedefs
        # the module's own, and not those of plugins
        if any(last.scope == "module" and last.baseid == item.parent.nodeid.split("::")[0] for *_, last in definitions.values()):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))


@pytest.fixture
def triton(monkeypatch):
    """For tests that run kernels."""
    pytest.importorskip("triton")
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        interpreter.hasten()
