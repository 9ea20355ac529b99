"""`python -m fastdgl_kernels`: it tells what runs here, checks it, and fails when something is wrong."""

import os
import shutil
import subprocess
import sys
from inspect import signature
from pathlib import Path

import fastdgl_kernels
import pytest
import torch
from devices import DEVICE
from fastdgl_kernels import bias_act, doctor

PACKAGE = Path(fastdgl_kernels.__file__).parent
SMALL = doctor.Case(bias_act, [(2, 3, 4, 4), (3,)], dict(act="lrelu"))


def wrong_gradient(x, b=None, **keywords):
    """The right value."""
    y = bias_act(x, b, **keywords)
    return y + 0.01 * (x - x.detach()).sum()


def test_a_copy_under_another_name_is_well(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "host/ops", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "FASTDGL_IMPL")}
    # without a GPU, interpreting the kernels takes a while: the tests below do, in this process
    environment |= {"TRITON_INTERPRET": "0"}
    run = subprocess.run(
        [sys.executable, "-m", "host.ops"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"host.ops in {tmp_path / 'host/ops'}" in run.stdout and f"torch {torch.__version__}" in run.stdout
    assert "bias_act runs as 'reference'" in run.stdout and run.stdout.endswith("all is well\n")


def test_every_operator_with_a_choice_is_checked():
    public = {name: getattr(fastdgl_kernels, name) for name in fastdgl_kernels.__all__}
    with_a_choice = {name for name, f in public.items() if callable(f) and "impl" in signature(f).parameters}
    shorter_forms_of_upfirdn2d = {"filter2d", "upsample2d", "downsample2d"}
    assert with_a_choice - shorter_forms_of_upfirdn2d == {case.operator.__name__ for case in doctor.CASES}


@pytest.mark.parametrize("name", ["reference", "triton", "cudnn"])
def test_what_is_right_passes(name, triton, capsys):
    assert doctor.check(SMALL, name, DEVICE)
    assert ("ok" in capsys.readouterr().out) == (name != "cudnn")


@pytest.mark.parametrize("fault", [wrong_gradient, lambda *t, **k: bias_act(*t, **k) * float("nan")])
def test_what_is_wrong_does_not(fault, monkeypatch, capsys):
    def operator(*tensors, impl, **keywords):
        return fault(*tensors, **keywords) if impl == "triton" else bias_act(*tensors, impl=impl, **keywords)

    operator.__name__ = "bias_act"
    case = doctor.Case(operator, SMALL.shapes, SMALL.keywords)
    assert not doctor.check(case, "triton", "cpu") and "WRONG" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "CASES", [SMALL, case])
    monkeypatch.setattr(doctor, "explain", lambda *_, **__: "")
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: False)
    assert doctor.main() == 1
    assert "1 of 6 checks failed" in capsys.readouterr().out


def test_what_cannot_run_here_is_said_and_passes(monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("it runs here")
    monkeypatch.delenv("TRITON_INTERPRET")
    assert doctor.check(SMALL, "triton", "cpu")
    assert "not here" in capsys.readouterr().out

