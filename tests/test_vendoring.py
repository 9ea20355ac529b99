"""kernels/fastdgl_kernels stands alone: whoever copies the folder has all of it."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fastdgl_kernels
import pytest

PACKAGE = Path(fastdgl_kernels.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

USE_OF_THE_COPY = """
import sys
import torch, numpy
before = set(sys.modules)
import host.third_party.gan_ops as ops
new = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
assert new == {"host"}, f"importing the copy brought {new}"
f = ops.setup_filter([1, 3, 3, 1])
x = torch.randn(2, 3, 8, 8, requires_grad=True)
y = ops.modulated_conv2d(x, torch.randn(4, 3, 3, 3), torch.randn(2, 3), up=2, padding=1, resample_filter=f)
y = ops.downsample2d(ops.bias_act(y, torch.zeros(4), act="lrelu"), f)
y.sum().backward()
assert y.shape == (2, 4, 8, 8) and x.grad.isfinite().all()
assert "fastdgl_kernels" not in sys.modules
"""


SIDE_BY_SIDE = """
import fastdgl_kernels, torch
import host.third_party.gan_ops as copy
x = torch.randn(2, 3, 8, 8)
for ops, namespace in ((fastdgl_kernels, "fastdgl_kernels"), (copy, "host__third_party__gan_ops")):
    traced = getattr(torch.ops, namespace).bias_act
    assert torch.equal(traced(x, act="relu"), ops.bias_act(x, act="relu"))
"""


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_nothing_but_torch_numpy_and_itself(file):
    allowed = set(sys.stdlib_module_names) | {"torch", "numpy", "triton"}
    depth = len(file.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            assert {name.name.partition(".")[0] for name in node.names} <= allowed
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module.partition(".")[0] in allowed
        if isinstance(node, ast.ImportFrom):
            assert node.level <= depth, "reaches out of the package"


def run_beside_a_copy(folder, code, **environment):
    shutil.copytree(PACKAGE, folder / "host/third_party/gan_ops", ignore=shutil.ignore_patterns("__pycache__"))
    others = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=others | environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_a_copy_under_another_name_works(tmp_path):
    run_beside_a_copy(tmp_path, USE_OF_THE_COPY)


def test_a_copy_and_the_original_are_traced_side_by_side(tmp_path):
    run_beside_a_copy(tmp_path, SIDE_BY_SIDE, PYTHONPATH=str(PACKAGE.parent))


def test_all_public_names_are_there():
    for name in fastdgl_kernels.__all__:
        assert callable(getattr(fastdgl_kernels, name)) or isinstance(getattr(fastdgl_kernels, name), dict)


def test_the_folder_kernels_is_not_a_package():
    # the name belongs to Hugging Face's `kernels`; a folder without __init__.py stays out of its way
    assert not (PACKAGE.parent / "__init__.py").exists()
