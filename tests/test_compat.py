"""Stand-ins of other codebases run on our operators, each in a process that nothing else has imported anything into."""

import subprocess
import sys
from pathlib import Path

import pytest

HOSTS = Path(__file__).parent / "hosts"


@pytest.mark.parametrize("when", ["before", "after"])
def test_patch(when):
    file = HOSTS / f"patched_{when}_import.py"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
