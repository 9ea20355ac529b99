"""The launcher and the warm-up over a driver of pretence, in a process of their own: here, kernels are interpreted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fastdgl_kernels import bias_act, warm_up

TESTS = Path(__file__).parent


def test_kernels_are_held_and_warmed_up():
    pytest.importorskip("triton")
    cases = [TESTS / "cases_launch.py", TESTS / "cases_warm_up.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *cases]
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    run = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled where there is a GPU")
def test_interpreted_kernels_are_not_warmed_up(triton):
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1 is set"), warm_up():
        bias_act(torch.zeros(2, 4), act="relu", impl="triton")
