"""The launcher over a driver of pretence, in a process of its own: here, kernels are interpreted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("cases_launch.py")


def test_held_kernels():
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", CASES]
    run = subprocess.run(command, cwd=CASES.parents[1], env=os.environ | {"TRITON_INTERPRET": "0"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
