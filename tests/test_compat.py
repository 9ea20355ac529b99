"""Stand-ins of other codebases run on our operators, each in a process that nothing else has imported anything into."""

import subprocess
import sys
from pathlib import Path

import fastdgl_kernels
import pytest
import torch
from fastdgl_kernels.compat import basicsr, nvlabs, rosinality

HOSTS = Path(__file__).parent / "hosts"


@pytest.mark.parametrize("when", ["before", "after"])
def test_patch(when):
    file = HOSTS / f"patched_{when}_import.py"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_names_of_others_can_be_imported_without_patching():
    x, b, f = torch.randn(2, 3, 8, 8), torch.randn(3), nvlabs.upfirdn2d.setup_filter([1, 3, 3, 1])
    y = fastdgl_kernels.bias_act(x, b, act="lrelu")
    assert torch.equal(nvlabs.bias_act.bias_act(x, b, act="lrelu", impl="cuda"), y)
    assert nvlabs.bias_act.activation_funcs["lrelu"].def_gain == 2**0.5
    assert torch.equal(rosinality.FusedLeakyReLU(3)(x), basicsr.fused_leaky_relu(x, torch.zeros(3)))
    twice = fastdgl_kernels.upsample2d(x, f)
    assert torch.equal(nvlabs.upfirdn2d.upsample2d(x, f), twice)
    assert torch.equal(rosinality.upfirdn2d(x, f * 4, up=2, pad=(2, 1)), twice)
    with nvlabs.conv2d_gradfix.no_weight_gradients():
        y = nvlabs.conv2d_gradfix.conv2d(x, torch.ones(1, 3, 1, 1))
    assert torch.equal(y, x.sum(1, keepdim=True))
