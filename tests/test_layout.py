"""How the modules of fastdgl lie: what may import what, and what importing brings along."""

import ast
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "fastdgl"
FILES = sorted(ROOT.rglob("*.py"))

# a module may import those above it, never those beside or below
ORDER = [
    "atomic_files onnx_opsets paths precision sentences",
    "config interop download",
    "config_reference losses ema images journal grids latents",
    "models packing",
    "guidance engines",
    "checkpoints steps samples fidelity interruption",
    "requested_labels",
    "drawing",
    "assembly conversion evaluation exporting warmup training_metrics doctor",
    "reporting kernel_choice teachers",
    "train cli",
    "__main__",
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names.split()}


def imported(file):
    """Full names of all that a file imports, wherever in it, relative imports resolved."""
    package = ("fastdgl", *file.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            start = package[:len(package) - node.level + 1] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            # `from . import config`: the names may be modules
            yield from (f"{module}.{alias.name}" for alias in node.names)


def ours(file):
    """The parts of fastdgl that a file imports, its own package left out."""
    names = {name.split(".")[1] for name in imported(file) if name.startswith("fastdgl.")}
    return names & {path.stem for path in ROOT.iterdir()} - {file.relative_to(ROOT).parts[0].removesuffix(".py")}


def by_path(file):
    return str(file.relative_to(ROOT))


def modules():
    return [file for file in FILES if file.relative_to(ROOT).parts[0] not in ("__init__.py", "assets")]


@pytest.mark.parametrize("file", modules(), ids=by_path)
def test_imports_point_one_way(file):
    me = file.relative_to(ROOT).parts[0].removesuffix(".py")
    assert me in LEVEL, f"{me} has no place in the order of imports yet"
    for other in ours(file):
        assert LEVEL[other] < LEVEL[me], f"{by_path(file)} imports fastdgl.{other}, which is not above it"


def test_the_package_itself_imports_on_demand_alone():
    statements = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8")).body
    assert not [node for node in statements if isinstance(node, (ast.Import, ast.ImportFrom))]


@pytest.mark.parametrize(("source", "level", "names"), [
    ("from . import config as configs, models", 0, {"fastdgl.config", "fastdgl.models"}),
    ("from .engines import Engine", 0, {"fastdgl.engines.Engine"}),
    ("from .. import config", 1, {"fastdgl.config"}),
    ("from ..images.zip import open_zip", 1, {"fastdgl.images.zip.open_zip"}),
    ("def f():\n    from .zero import ZeroEngine", 1, {"fastdgl.engines.zero.ZeroEngine"}),
    ("import fastdgl.train", 0, {"fastdgl.train"}),
    ("from fastdgl import train", 0, {"fastdgl.train"}),
])
def test_every_kind_of_import_is_seen(tmp_path, monkeypatch, source, level, names):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file = tmp_path / ("engines/module.py" if level else "module.py")
    file.parent.mkdir(exist_ok=True)
    file.write_text(source)
    assert set(imported(file)) == names


def test_one_file_imports_deepspeed():
    importers = {by_path(file) for file in FILES if any(name.split(".")[0] == "deepspeed" for name in imported(file))}
    assert importers == {"engines/zero.py"}


def test_nothing_imports_train():
    """`fastdgl train` imports it when it is run; imported by what it imports, it would be there twice when it runs as `__main__`."""
    assert not [by_path(file) for file in FILES if "train" in ours(file)]


def test_no_module_of_ours_hides_another():
    """`deepspeed fastdgl/train.py` makes fastdgl/ sys.path[0]: names in it are top-level names there."""
    names = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()} - {"__init__", "__pycache__"}
    theirs = set(sys.stdlib_module_names) | set(importlib.metadata.packages_distributions())
    # asked for by these names whether installed or not: by torch, deepspeed, pytest and NVIDIA's pickles
    theirs |= {"accelerator", "op_builder", "apex", "mlflow", "redis", "tree", "flint", "tabulate", "cuda", "kernels", "datasets", "evaluate",
               "distributed", "transformers", "wandb", "tensorboard", "dnnlib", "torch_utils", "training", "legacy"}
    assert not names & theirs


def newly_imported(statement):
    """The top-level modules that a fresh process has after `statement` and had not before, the standard library's left out."""
    script = ("import sys; before = set(sys.modules)\n" + statement +
              "\nprint(*{name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT.parent), str(ROOT.parent / "kernels")])}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_importing_fastdgl_brings_nothing():
    assert newly_imported("import fastdgl") == {"fastdgl"}


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"], ["trian"]])
def test_help_brings_no_torch(arguments):
    """It is shown at once, which torch would keep it from for seconds."""
    brought = newly_imported(f"from click.testing import CliRunner; from fastdgl.cli import main; CliRunner().invoke(main, {arguments})")
    assert brought <= {"click", "fastdgl", "colorama"}


def test_importing_the_modules_brings_no_deepspeed():
    """It takes seconds to import, and plain training and the command line do without it."""
    names = sorted({file.relative_to(ROOT).parts[0].removesuffix(".py") for file in modules()} - {"train", "__main__"})
    assert "assembly" in names
    assert "deepspeed" not in newly_imported("\n".join(f"import fastdgl.{name}" for name in names))


def test_configs_need_no_torch():
    assert "torch" not in newly_imported("import fastdgl.config")
