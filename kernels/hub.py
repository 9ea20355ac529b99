"""Write the package as Hugging Face's `kernels` loads it: one folder for each backend of build.toml.

    python kernels/hub.py OUT       # writes OUT/build/torch-cuda and OUT/build/torch-cpu

    import kernels, pathlib
    ops = kernels.get_local_kernel(pathlib.Path("OUT"))

Nothing is compiled, so kernel-builder is not needed. It makes the same from build.toml.
"""

import argparse
import base64
import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib

HERE = Path(__file__).parent


def write(out: Path) -> list[Path]:
    """Write `out`/build/torch-<backend> for each backend, in place of what is there, and return these folders."""
    general = _general()
    package = HERE / "torch-ext" / general["name"].replace("-", "_")
    return [_write_variant(package, out / "build" / f"torch-{backend}", backend, general) for backend in general["backends"]]


def _write_variant(package: Path, folder: Path, backend: str, general: dict) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # whole or not at all: under a temporary name first
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        copy = Path(temporary) / folder.name
        shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        metadata = _metadata(copy, backend, general)
        (copy / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(copy, folder)
    return folder


def _metadata(folder: Path, backend: str, general: dict) -> dict:
    """Return what `kernels` wants to know of a variant: https://huggingface.co/docs/kernels/kernel-requirements."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    digests = {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).digest() for file in files}
    whole = hashlib.sha256(b"".join(name.encode() + digest for name, digest in digests.items())).hexdigest()
    return {
        # name of the module and of the namespace of its operators: unlike that of any other version
        "id": f"_{general['name'].replace('-', '_')}_{backend}_{whole[:8]}",
        "name": general["name"],
        "version": general["version"],
        "license": general["license"],
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": {name: base64.b64encode(digest).decode() for name, digest in digests.items()}},
    }


def _general() -> dict:
    text = (HERE / "build.toml").read_text()
    if sys.version_info < (3, 11):
        raise SystemExit("hub.py reads build.toml by tomllib: run it with Python 3.11 or newer")
    return tomllib.loads(text)["general"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python kernels/hub.py", description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the kernel's repository")
    out = parser.parse_args().out
    try:
        for folder in write(out):
            print(folder)
    except OSError as error:
        print(f"{out}: cannot be written: {error.strerror or error}; give a folder that can be")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
