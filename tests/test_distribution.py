"""The kernels as a distribution of their own, inside the trainer's, and as Hugging Face's `kernels` loads them."""

import email
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import fastdgl_kernels
import pytest
from packaging.requirements import Requirement

PACKAGE = Path(fastdgl_kernels.__file__).parent
KERNELS = PACKAGE.parent
ROOT = KERNELS.parent

BUILD = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"

USE = """
import runpy, sys, torch
# of everything else that a machine may have, nothing is needed on a CPU
sys.modules |= dict.fromkeys(["triton", "numpy"])
import fastdgl_kernels as ops
assert ops.__file__.startswith(sys.argv[1]), ops.__file__
x = torch.randn(2, 3, 4, 4, requires_grad=True)
ops.upsample2d(ops.bias_act(x, torch.zeros(3), act="lrelu"), ops.setup_filter([1, 3, 3, 1])).sum().backward()
assert x.grad.isfinite().all()
sys.argv[1:] = ["certify", "--help"]
runpy.run_module("fastdgl_kernels", run_name="__main__")
"""


def copied(folder: Path, destination: Path) -> Path:
    """Copy sources without what builds and interpreters leave in them."""
    ignore = shutil.ignore_patterns("__pycache__", "build", "dist", "*.egg-info")
    return Path(shutil.copytree(folder, destination, ignore=ignore, symlinks=True))


def files_of(package: Path) -> set[str]:
    """Return every file of a package, below the folder that holds it."""
    files = (file for file in package.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return {file.relative_to(package.parent).as_posix() for file in files}


def build(source: Path, out: Path) -> zipfile.ZipFile:
    """Build a wheel as pip does without build isolation, which asks no network for anything."""
    done = subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wheel, = out.glob("*.whl")
    return zipfile.ZipFile(wheel)


def run(*command: str, folder: Path, **environment: str) -> str:
    others = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "FASTDGL_IMPL", "TRITON_INTERPRET")}
    environment = others | {"XDG_CACHE_HOME": str(folder / "cache")} | environment
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    return f"{done.returncode}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The kernels' folder, with a verdict that is shipped."""
    pytest.importorskip("setuptools", minversion="77", reason="wheels are built by setuptools 77 or newer")
    source = copied(KERNELS, tmp_path_factory.mktemp("source") / "kernels")
    (source / "fastdgl_kernels/certify/verdicts" / f"{'0' * 64}.json").write_text("{}")
    return source


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return build(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def trainer(source, tmp_path_factory):
    """The wheel of the trainer, with the kernels' folder beside it."""
    root = tmp_path_factory.mktemp("trainer")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    copied(ROOT / "fastdgl", root / "fastdgl")
    copied(source, root / "kernels")
    return build(root, tmp_path_factory.mktemp("wheel_of_trainer"))


def metadata(wheel: zipfile.ZipFile):
    name, = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(source, wheel):
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == files_of(source / "fastdgl_kernels")
    assert {"fastdgl_kernels/py.typed", "fastdgl_kernels/certify/verdicts/README.md", "fastdgl_kernels/certify/worker.py"} < held
    assert any("verdicts/0000" in name for name in held)


def test_the_wheel_says_what_it_is(wheel):
    about = metadata(wheel)
    assert about["Name"] == "fastdgl-kernels" and about["Version"] == fastdgl_kernels.__version__
    assert about["License-Expression"] == "Apache-2.0" and about.get_payload().startswith("# fastdgl_kernels")
    # torch alone, on any platform
    assert [Requirement(text).name for text in about.get_all("Requires-Dist")] == ["torch"]
    licence, = (name for name in wheel.namelist() if name.endswith("LICENSE") and ".dist-info/" in name)
    assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes() == (PACKAGE / "LICENSE").read_bytes()


def test_the_version_is_written_in_one_place():
    text = (KERNELS / "pyproject.toml").read_text()
    assert fastdgl_kernels.__version__ not in text and 'attr = "fastdgl_kernels.__version__"' in text


def test_what_is_installed_runs_with_torch_alone(wheel, tmp_path):
    # the wheel of pure Python is installed where it is unpacked
    wheel.extractall(tmp_path / "site")
    said = run("-c", USE, str(tmp_path / "site"), folder=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert said.startswith("0\nusage: python -m fastdgl_kernels certify"), said


def test_the_trainer_installs_both_packages(source, trainer):
    held = set(trainer.namelist())
    assert files_of(source / "fastdgl_kernels") <= held
    assert files_of(ROOT / "fastdgl") <= held
    assert {name.partition("/")[0] for name in held if ".dist-info/" not in name} == {"fastdgl", "fastdgl_kernels"}


def hub():
    spec = importlib.util.spec_from_file_location("hub", KERNELS / "hub.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A kernel's repository as Hugging Face's loader finds it on disk."""
    pytest.importorskip("tomllib", reason="build.toml is read by Python 3.11 or newer")
    out = tmp_path_factory.mktemp("repository")
    module = hub()
    assert module.write(out) == module.write(out) == [out / "build/torch-cuda", out / "build/torch-cpu"]
    assert sorted(p.name for p in (out / "build").iterdir()) == ["torch-cpu", "torch-cuda"]
    return out


def test_each_variant_is_the_package_and_its_description(repository):
    ids = set()
    for backend in ("cuda", "cpu"):
        folder = repository / "build" / f"torch-{backend}"
        about = json.loads((folder / "metadata.json").read_text())
        held = {name.partition("/")[2] for name in files_of(folder)} - {"metadata.json"}
        assert held == set(about["digest"]["files"]) == {name.partition("/")[2] for name in files_of(PACKAGE)}
        assert about["backend"] == {"type": backend} and about["name"] == "fastdgl-kernels" and about["id"].isidentifier()
        ids.add(about["id"])
    assert len(ids) == 2


LOADED = """
import sys, pathlib, torch
import kernels
ops = kernels.get_local_kernel(pathlib.Path(sys.argv[1]), backend="cpu")
name = ops.__name__
assert name.startswith("_fastdgl_kernels_cpu_") and "fastdgl_kernels" not in sys.modules
x = torch.randn(2, 3, 4, 4)
y = ops.bias_act(x, torch.ones(3), act="relu")
assert torch.equal(y, getattr(torch.ops, name).bias_act(x, torch.ones(3), act="relu"))
"""


def test_hugging_faces_loader_loads_it(repository, tmp_path):
    try:
        importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("Hugging Face's `kernels` is not installed")
    assert run("-c", LOADED, str(repository), folder=tmp_path).startswith("0\n")


# as that loader imports: from a path, under the name that the description gives
BY_PATH = """
import importlib.util, json, pathlib, runpy, sys
folder = pathlib.Path(sys.argv[1])
name = json.loads((folder / "metadata.json").read_text())["id"]
spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
ops = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ops)
from importlib import import_module
certify, calls, cases = (import_module(f"{name}.certify{part}") for part in ("", ".calls", ".cases"))
cases.general = lambda interpreted: []
shapes = {"x": (1, 2, 3, 3), "scale": (2,), "shift": (2,)}
call = certify.Call("scale_shift_act", {name: calls.Operand(shape, "float32") for name, shape in shapes.items()})
verdict = certify.certify("cpu", [call], budget=600.0)
assert verdict.right() == {("scale_shift_act", "float32", "NCHW", "triton")}, verdict.to_json()
print(import_module(f"{name}._place").COMMAND)
# and as `python FOLDER`
sys.argv = [sys.argv[1], "certify", "--show", "--device", "cpu"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_package_that_no_import_finds_certifies_by_its_folder(repository, tmp_path):
    pytest.importorskip("triton")
    folder = repository / "build/torch-cpu"
    said = run("-c", BY_PATH, str(folder), folder=tmp_path, TRITON_INTERPRET="1")
    assert said.startswith(f"0\npython {folder} certify\n") and "scale_shift_act            triton  right: float32 NCHW" in said, said
