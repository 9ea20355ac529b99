"""Stand-ins of other codebases run on our operators, each in a process that nothing else has imported anything into."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fastdgl_kernels
import pytest
import torch
from fastdgl_kernels.compat import basicsr, nvlabs, rosinality

HOSTS = Path(__file__).parent / "hosts"
ROOT = HOSTS.parent.parent


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


TRAIN = {
    "nvidia": "from training.networks_stylegan2 import Generator",
    "rosinality": "from model import Generator",
    "basicsr_tree": """
from basicsr.archs.stylegan2_arch import ModulatedConv2d
from basicsr.ops.fused_act import FusedLeakyReLU
class Generator(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.activate = ModulatedConv2d(3, 5, 3, 4, sample_mode="upsample"), FusedLeakyReLU(5)
    def forward(self, x, w):
        return self.activate(self.conv(x, w))
""",
}


@pytest.mark.parametrize("host", TRAIN)
def test_the_three_lines_of_the_readme_make_a_codebase_run(host, tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"beside a clone of this repository:\n\n```\n(.*?)```", readme, re.DOTALL)
    copy, insert, doctor = (line.partition("#")[0] for line in block.splitlines())
    shutil.copytree(HOSTS / host, tmp_path / host)
    (tmp_path / "fastdgl").symlink_to(ROOT)
    train = tmp_path / host / "train.py"
    step = "Generator()(torch.randn(2, 3, 4, 4), torch.randn(2, 4)).sum().backward()"
    train.write_text(f"import torch\n{TRAIN[host]}\n{step}\n")
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "FASTDGL_IMPL")}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TRITON_INTERPRET": "0"}
    # what the package answers for is the same for all
    lines = [copy, insert, "python train.py", *([doctor] if host == "nvidia" else [])]
    run = subprocess.run(
        ["bash", "-ec", "\n".join(lines)], cwd=tmp_path / host, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert host != "nvidia" or run.stdout.endswith("all is well\n")
