"""The launcher and the warm-up over a driver of pretence, in a process of their own: here, kernels are interpreted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def test_kernels_are_held_and_warmed_up():
    pytest.importorskip("triton")
    cases = [TESTS / "cases_launch.py", TESTS / "cases_warm_up.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *cases]
    run = subprocess.run(command, cwd=TESTS.parent, env=os.environ | {"TRITON_INTERPRET": "0"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
