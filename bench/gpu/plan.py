"""What is done on the GPU, part by part in order of value, and how each item of a part is done."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from fastdgl_kernels import bias_act, modulated_conv2d_bias_act, setup_filter, upfirdn2d

from ..shapes import BIGGAN_BATCH, BIGGAN_WIDTHS, NETWORKS
from . import cases, ceilings, machine, nvidia, timing, tuning
from .case import Case
from .checks import check
from .networks import BIGGAN_STEPS, STEPS, biggan_times, stylegan2_times

Items = dict[str, Callable[[], dict]]


@dataclass(frozen=True)
class Part:
    """Items of one kind.

    Args:
        about: What it shows.
        share: Of the whole time; what the parts before have left over comes on top.
        limit_s: Seconds that one of them may take.
        workers: How many run side by side; 1 for what is timed.
    """

    about: str
    share: int
    limit_s: float
    workers: int = 1


PARTS = {
    # the compilers of their kernels run side by side, and what they compile is there when it is timed
    "checks": Part("is every kernel right?", 40, 150, workers=6),
    "ceilings": Part("what can the GPU do?", 5, 60),
    "kernels": Part("how fast is every kernel?", 25, 60),
    "networks": Part("how fast is training?", 16, 90),
    "compiled": Part("is it faster than torch.compile of the reference?", 4, 60),
    "start-up": Part("what does the CPU take?", 4, 90),
    "tuning": Part("would another tile be faster, or the other convolution?", 6, 60),
}


def schedule(parts: Iterable[str], start: float, end: float) -> Iterator[tuple[str, float]]:
    """The parts in order of value, and when the last item of each may start."""
    chosen = [part for part in PARTS if part in parts]
    shares = [PARTS[part].share for part in chosen]
    for i, part in enumerate(chosen):
        yield part, start + (end - start) * sum(shares[: i + 1]) / sum(shares)


def opened(part: str, seed: int, checkout: Path | None) -> tuple[Mapping[str, Callable[[], dict]], Callable[[], bool]]:
    """The items of a part, in a process of their own, and whether its GPU is still sound."""
    device = machine.prepared()
    if checkout is not None:
        nvidia.use(checkout)
    # of what is checked, PyTorch is not to choose another algorithm the second time
    torch.backends.cudnn.benchmark = part != "checks"
    return items(part, device, seed, checkout is not None), machine.sound


def names(part: str, with_nvidia: bool) -> list[str]:
    """The names of a part's items. Needs no GPU."""
    return list(items(part, torch.device("cpu"), 0, with_nvidia))


def items(part: str, device: torch.device, seed: int, with_nvidia: bool) -> Items:
    """What a part does, by name."""
    return {
        "checks": _checks,
        "ceilings": _ceilings,
        "kernels": _kernels,
        "networks": _networks,
        "tuning": _tuning,
        "compiled": _compiled,
        "start-up": _start_up,
    }[part](device, seed, with_nvidia)


def _checks(device: torch.device, seed: int, with_nvidia: bool) -> Items:
    # nvcc takes a minute or two, beside the checks
    build = {"NVIDIA's operators build": _built} if with_nvidia else {}
    return build | {case.key: partial(check, case, device, seed + i) for i, case in enumerate(cases.checked())}


def _built() -> dict:
    nvidia.operators()
    return {"wrong": [], "errors": {}}


def _ceilings(device: torch.device, seed: int, with_nvidia: bool) -> Items:
    products = {name: partial(ceilings.matmul, device, name) for name in ("float16", "bfloat16", "tf32")}
    return {"copy": partial(ceilings.copy, device)} | products


def _kernels(device: torch.device, seed: int, with_nvidia: bool) -> Items:
    return {case.key: partial(_timed, case, device, seed + i, with_nvidia) for i, case in enumerate(cases.timed())}


def _timed(case: Case, device: torch.device, seed: int, with_nvidia: bool) -> dict:
    left_out = ("compiled",) if with_nvidia else ("compiled", "nvidia")
    rivals = {name: f for name, f in case.rivals.items() if name not in left_out}
    return timing.timed(case, rivals, device, seed, machine.cache_bytes(device), timing.cuda_stopwatch)


def _networks(device: torch.device, seed: int, with_nvidia: bool) -> Items:
    stylegan2 = {
        f"{step} {resolution} N={N}": partial(stylegan2_times, step, resolution, N, device, with_nvidia)
        for resolution, N in NETWORKS.items()
        for step in STEPS
    }
    biggan = {
        f"{step} ch={ch} 128 N={BIGGAN_BATCH}": partial(biggan_times, step, ch, BIGGAN_BATCH, device)
        for ch in BIGGAN_WIDTHS
        for step in BIGGAN_STEPS
    }
    return stylegan2 | biggan


def _tuning(device: torch.device, seed: int, with_nvidia: bool) -> Items:
    return {
        case.key: lambda case=case: tuning.tuned(
            case, device, seed, machine.cache_bytes(device), timing.cuda_stopwatch
        )
        for case in (*cases.chosen(), *cases.timed())
        if case.candidates is not None and "float16 NHWC" in case.layer
    }


def _compiled(device: torch.device, seed: int, with_nvidia: bool) -> Items:
    """Of each operator and order, the first: the largest layer."""
    first: dict[tuple[str, str], Case] = {}
    for case in cases.timed():
        if "compiled" in case.rivals:
            first.setdefault((case.operator, case.order), case)
    return {case.key: partial(_timed_against_compiled, case, device, seed) for case in first.values()}


def _timed_against_compiled(case: Case, device: torch.device, seed: int) -> dict:
    # which gives up on a function after some kinds of inputs
    torch._dynamo.reset()
    rivals = {"compiled": case.rivals["compiled"]}
    return timing.timed(case, rivals, device, seed, machine.cache_bytes(device), timing.cuda_stopwatch)


def _start_up(device: torch.device, seed: int, with_nvidia: bool) -> Items:
    return {"CPU per call": partial(cpu_per_call, device, "triton"), "first steps": first_steps}


def cpu_per_call(device: torch.device, impl: str, calls: int = 500) -> dict:
    """Microseconds of the CPU per call of an operator that is too small to keep the GPU busy."""
    x = torch.randn(1, 64, 8, 8, device=device, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    b, f = x.new_zeros(64), setup_filter([1, 3, 3, 1], device=device)
    weight, styles = torch.randn(64, 64, 3, 3, device=device), torch.randn(1, 64, device=device)
    runs = {
        "bias_act": lambda: bias_act(x, b, act="lrelu", impl=impl),
        "upfirdn2d": lambda: upfirdn2d(x, f, padding=[2, 1, 2, 1], impl=impl),
        "modulated layer": lambda: modulated_conv2d_bias_act(x, weight, styles, None, b, padding=1, impl=impl),
    }
    result = {}
    with torch.no_grad():
        for name, run in runs.items():
            for _ in range(calls // 10):
                run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                run()
            # without waiting for the GPU
            result[name] = {"us": (time.perf_counter() - start) / calls * 1e6}
    return result


def first_steps() -> dict:
    """Seconds that the first steps of a process take longer than the second: with nothing compiled, and with all of it."""
    with tempfile.TemporaryDirectory() as compiled, tempfile.TemporaryDirectory() as ahead:
        return {
            "cold": _started(compiled),
            "warm": _started(compiled),
            "cold, compiled ahead": _started(ahead, "--ahead"),
        }


def _started(cache: str, *arguments: str) -> dict:
    environment = os.environ | {"TRITON_CACHE_DIR": cache, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "bench.gpu.startup", *arguments]
    run = subprocess.run(command, cwd=machine.ROOT, env=environment, capture_output=True, text=True)
    if run.returncode:
        return {"error": run.stderr.strip()[-400:]}
    seconds = json.loads(run.stdout.splitlines()[-1])
    return {"s": seconds["first_s"] - seconds["second_s"]}
