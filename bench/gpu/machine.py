"""The GPU that runs, and how PyTorch is set for it."""

import datetime
import os
import platform
import subprocess
import warnings
from pathlib import Path

import torch
import triton
from fastdgl_kernels import _fallback

ROOT = Path(__file__).parents[2]


def why_not() -> str | None:
    """The reason nothing can be measured here, or None."""
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} sees no CUDA GPU here"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1 is set, which runs kernels without the GPU; unset it"
    return None


def prepared() -> torch.device:
    """Return the GPU, set for "auto" to take the kernels without a verdict: whether they are right is to be found out.

    In fp32 nothing is rounded to 10 bits, so that it can be compared with float64.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    # poisoning outputs asks for deterministic algorithms, and what has none says so each time
    warnings.filterwarnings("ignore", message=".*deterministic")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    # what PyTorch computes in a kernel's place shows nothing about the kernel
    _fallback.raise_failures()
    os.environ.setdefault("FASTDGL_IMPL", "fastest")
    return device


def sound() -> bool:
    """Whether the GPU still does what it is told; after an access to foreign memory, it does not."""
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def cache_bytes(device: torch.device) -> int:
    """Of the cache that all of the GPU shares; that of an H100 where PyTorch does not say."""
    return getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 50 * 2**20)


def facts() -> dict:
    """What a table of results has to say of where it was made. Starts no work on the GPU."""
    gpu = _said("nvidia-smi", "--query-gpu=name,driver_version,power.limit,clocks.max.sm", "--format=csv,noheader")
    return {
        "gpu": gpu or "unknown: nvidia-smi says nothing",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": triton.__version__,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _said("git", "describe", "--always", "--dirty", "--abbrev=40") or "unknown: no git here",
    }


def _said(*command: str) -> str:
    """The first line that a program prints; nothing if it is not there or fails."""
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip().partition("\n")[0] if run.returncode == 0 else ""
