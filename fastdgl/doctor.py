"""What of this machine a run would use, and what would stop it: `fastdgl doctor`. The kernels have a doctor of their own, `python -m fastdgl_kernels`."""

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import psutil
import torch
import torch.distributed as dist
from fastdgl_kernels import doctor as doctor_of_kernels, kernels_in_force
from fastdgl_kernels.certify.command import summary

from . import __version__
from .download import cache_folder
from .engines.optimizers import apex_found
from .paths import UserPath

GIB = 2**30  # bytes
# less would be full before the first checkpoint, or the first batch
LEAST_MEMORY, LEAST_DISK, LEAST_SHARED = 2 * GIB, 2 * GIB, GIB // 4
LEAST_OPEN_FILES = 1024
SHARED_MEMORY = Path("/dev/shm")
# package -> what it is for, and the extra that brings it
OPTIONAL = {"deepspeed": ("train", "engine.kind: deepspeed"), "tensorboard": ("train", "TensorBoard events"), "h5py": ("hdf5", "HDF5 files"),
            "onnxruntime": ("export", "fastdgl export"), "huggingface_hub": ("hub", "the Hugging Face Hub")}


@dataclass(frozen=True)
class Finding:
    """A line of the diagnosis.

    problem: What would go wrong, and what to do; None where nothing would.
    """

    name: str
    value: str
    problem: str | None = None


def version(package: str) -> str | None:
    """That is installed, if it is."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def programs() -> Iterator[Finding]:
    """Python, PyTorch, Triton, and what is optional."""
    yield Finding("fastdgl", f"{__version__} in {Path(__file__).parent}")
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}")
    for package, (extra, use) in OPTIONAL.items():
        found = version(package)
        yield Finding(package, found or f'not installed; for {use}: pip install -c constraints.txt -e ".[{extra}]"')
    found, fused_adam = apex_found()
    yield Finding("apex", found + ("" if fused_adam else "; for optimizer.implementation: apex, install NVIDIA's from github.com/NVIDIA/apex"))


def devices() -> Iterator[Finding]:
    """GPUs, and what the operators run as on them."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for i in range(count):
        found = torch.cuda.get_device_properties(i)
        yield Finding(f"GPU {i}", f"{found.name}, {found.total_memory / GIB:.0f} GiB, compute capability {found.major}.{found.minor}")
    if not count:
        yield Finding("GPU", "none", why_no_gpu())
    problem = "without Triton no kernel runs: pip install triton" if count and version("triton") is None else None
    yield Finding("triton", version("triton") or "not installed", problem)
    kernels = kernels_in_force(torch.device("cuda" if count else "cpu"))
    yield Finding("operators", "kernels, where there is one for their input" if kernels else "PyTorch's own")
    if count:
        yield Finding("certification", summary(torch.device("cuda")))


# where drivers say that there is a GPU, whatever PyTorch is built for
NVIDIA, AMD = (Path("/dev/nvidia0"), Path("/proc/driver/nvidia/version")), (Path("/dev/kfd"),)


def why_no_gpu() -> str | None:
    """Return what keeps PyTorch from this machine's GPU; None where nothing does."""
    if torch.version.cuda or torch.version.hip:
        return f"torch is built for {'CUDA' if torch.version.cuda else 'ROCm'}, and no GPU answers it: look at nvidia-smi and CUDA_VISIBLE_DEVICES"
    for maker, build, places in (("NVIDIA", "CUDA", NVIDIA), ("AMD", "ROCm", AMD)):
        found = next((place for place in places if place.exists()), None) or (shutil.which("nvidia-smi") if maker == "NVIDIA" else None)
        if found:
            return (f"torch {torch.__version__} computes on the CPU alone, and this machine has a GPU of {maker} ({found}): install the build of torch for "
                    f"{build} that pytorch.org names for your driver, in an environment without this one")
    return None


def ranks() -> Iterator[Finding]:
    """What ranks talk by, and what starts them."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    yield Finding(backend, *outcome(lambda: add_up(backend), "no run can start: reinstall torch, and where it is NCCL, set NCCL_DEBUG=INFO to see why"))
    # beside this Python, where an environment that is not activated has them
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    for launcher in ("torchrun", "deepspeed"):
        yield Finding(f"launcher {launcher}", shutil.which(launcher, path=path) or "not found; a run of one rank needs none")


def add_up(backend: str) -> str:
    """A sum over the one rank of a process group of its own.

    Raises:
        RuntimeError, ValueError: There is no such backend, or it does not add.
    """
    device = torch.device("cuda" if backend == "nccl" else "cpu")
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        x = torch.ones(2, device=device)
        dist.all_reduce(x)
        if x.tolist() != [1, 1]:
            raise RuntimeError(f"one rank added 1 up to {x.tolist()}")
    finally:
        dist.destroy_process_group()
    return "adds up over a rank"


def room(outdir: Path) -> Iterator[Finding]:
    """Memory, disk, and what else there is a limit to."""
    memory = psutil.virtual_memory()
    yield Finding("memory", f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free, {os.cpu_count()} processors",
                  short(memory.available, LEAST_MEMORY, "memory", "end other programs, or lower images.workers and train.batch"))
    yield Finding("outdir", *outcome(lambda: write_into(outdir), "choose another outdir, or make it writable"))
    free = shutil.disk_usage(existing(outdir)).free
    yield Finding("disk", f"{free / GIB:.1f} GiB free for {outdir}", short(free, LEAST_DISK, f"room in {outdir}", "remove old runs, or choose another outdir"))
    if SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(SHARED_MEMORY).free
        yield Finding(str(SHARED_MEMORY), f"{free / GIB:.1f} GiB free",
                      short(free, LEAST_SHARED, "shared memory", "start the container with --shm-size 8g, or set images.workers=0"))
    limit = open_files()
    if limit is not None:
        problem = None if limit >= LEAST_OPEN_FILES else f"only {limit} files may be open at once, expected {LEAST_OPEN_FILES}: run `ulimit -n {LEAST_OPEN_FILES}` first"
        yield Finding("open files", str(limit), problem)
    for name, folder in (("cache", cache_folder()), ("Triton's cache", Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache"))):
        yield Finding(name, *outcome(lambda: write_into(folder), f"{folder} is needed: make it writable, or choose another by "
                                     f"{'XDG_CACHE_HOME' if name == 'cache' else 'TRITON_CACHE_DIR'}"))


def short(free: float, least: float, what: str, remedy: str) -> str | None:
    """The problem of having less than `least` bytes."""
    return None if free >= least else f"{free / GIB:.2f} GiB is little {what}, expected {least / GIB:g}: {remedy}"


def open_files() -> int | None:
    """How many files a process may have open; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that there is."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def write_into(folder: Path) -> str:
    """A file in the folder, or in the one that it will be made in, and away again.

    Raises:
        OSError: It cannot be written, or is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder")
    with tempfile.TemporaryFile(dir=existing(folder)):
        return f"{folder}, can be written"


def outcome(attempt: Callable[[], str], remedy: str) -> tuple[str, str | None]:
    """What an attempt says, and the problem of one that fails."""
    try:
        return attempt(), None
    except (OSError, RuntimeError, ValueError) as error:
        return "failed", f"{' '.join(str(error).split())[:200]}; {remedy}"


def findings(outdir: Path) -> Iterator[Finding]:
    """All of them, in the order they are shown."""
    yield from programs()
    yield from devices()
    yield from ranks()
    yield from room(outdir)


@click.command("doctor")
@click.option("--outdir", type=UserPath(), default=Path("runs"), show_default=True, help="Where runs would be kept.")
@click.option("--kernels", is_flag=True, help="Also check every kernel against PyTorch, which takes a minute or more where there is no GPU.")
def doctor_command(outdir: Path, kernels: bool) -> None:
    """Check GPU, memory, disk and shared memory, and list anything that would stop a run.

    The exit status is 1 where something would.
    """
    found = list(findings(outdir))
    width = max(len(finding.name) for finding in found)
    for finding in found:
        click.echo(f"{'!' if finding.problem else ' '} {finding.name:{width}}  {finding.value}")
    problems = [finding for finding in found if finding.problem]
    click.echo("".join(f"\n{finding.name}: {finding.problem}" for finding in problems) or "\nnothing would stop a run")
    wrong = doctor_of_kernels.main() if kernels else 0
    if problems or wrong:
        raise SystemExit(1)
