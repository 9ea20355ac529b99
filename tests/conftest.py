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


@pytest.fixture
def triton(monkeypatch):
    """For tests that run kernels."""
    pytest.importorskip("triton")
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        interpreter.hasten()
