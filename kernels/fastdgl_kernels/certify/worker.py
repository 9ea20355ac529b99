"""A process of its own that checks and times calls: `python -m fastdgl_kernels.certify.worker`.

It reads a line of JSON with settings, then one for each job, and answers each with lines of JSON on standard output.
What operators and compilers print goes to standard error. `pool` is the other end.
"""

import contextlib
import importlib
import json
import os
import sys
import threading
import time

import torch

from .. import _dispatch, _fallback
from . import checks, timing
from .calls import Call, Operand
from .verdict import RIGHT, SKIPPED, WRONG

# answers: the process is ready; a job's kernels are compiled; a job is done, and what came of it
READY, COMPILED, DONE = "ready", "compiled", "done"
# of a job that is done, besides what a verdict says of it
FAILED = "failed"


def main() -> int:
    """Serve one parent until it closes the pipe. Return 1 if the GPU cannot be used any more, else 0."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    def answer(kind: str, **values) -> None:
        answers.write(json.dumps({"kind": kind, **values}) + "\n")
        answers.flush()

    settings = json.loads(sys.stdin.readline())
    for name in settings["path"]:
        if name not in sys.path:
            sys.path.append(name)
    # what PyTorch computes in a kernel's place shows nothing about the kernel
    _fallback.raise_failures()
    operators = importlib.import_module(settings["operators"])
    device = torch.device(settings["device"])
    # an occupied or broken GPU is found out here, before a kernel of ours is blamed for it; so is what takes long once
    if found := checks.faults(_square, Call("", {"x": Operand((2, 3, 4, 4), "float32")}), "PyTorch", device):
        raise RuntimeError(f"PyTorch itself computes x * x wrongly on {device}: {found[0]}")
    answer(READY)
    for line in sys.stdin:
        job = json.loads(line)
        call = Call.from_json(job["call"])
        operator = getattr(operators, call.operator)
        try:
            if job["kind"] == "time":
                outcome = _timed(operator, call, job, device)
            else:
                outcome = _checked(operator, call, job["implementation"], device, lambda: answer(COMPILED))
        except Exception as error:
            outcome = {"outcome": SKIPPED if _out_of_memory(error) else FAILED, "words": told(error)}
        lost = not _answers(device)
        answer(DONE, lost=lost, **outcome)
        if lost:
            return 1
    return 0


def _square(x: torch.Tensor, impl: str) -> torch.Tensor:
    return x * x


def _checked(operator, call: Call, implementation: str, device: torch.device, compiled) -> dict:
    if device.type == "cuda":
        _compile(operator, call, implementation, device)
    compiled()
    found = checks.faults(operator, call, implementation, device)
    return {"outcome": WRONG if found else RIGHT, "words": "; ".join(found)[:500]}


def _compile(operator, call: Call, implementation: str, device: torch.device) -> None:
    """Compile the call's kernels, so that the time limit of the check is that of running them."""
    from .._warm_up import warm_up

    # filters lie outside, for their taps decide which kernel takes them
    arguments, tensors = call.arguments(device), call.tensors(device)
    with warm_up():
        fake = {name: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device) for name, t in tensors.items()}
        filled = _Call(call, arguments)
        checks.derivatives(operator, filled, implementation, fake, _Nothing())


class _Call:
    """A call whose filters are there already."""

    def __init__(self, call: Call, arguments: dict):
        self.operands, self._arguments = call.operands, arguments

    def arguments(self, device: torch.device) -> dict:
        return self._arguments


class _Nothing:
    """Directions without numbers."""

    def like(self, t: torch.Tensor, seed: int) -> torch.Tensor:
        return torch.empty_like(t, memory_format=torch.contiguous_format)


def _timed(operator, call: Call, job: dict, device: torch.device) -> dict:
    tensors, arguments = call.tensors(device), call.arguments(device)
    layer, default = _dispatch.layer_of(operator, **tensors, **arguments)
    if layer in job["known"]:
        return {"outcome": SKIPPED, "words": "is timed already"}
    names = job["implementations"]
    runs = {name: timing.training_pass(operator, call, name, tensors, arguments) for name in names}
    stopwatch = timing.cuda_stopwatch if device.type == "cuda" else timing.host_stopwatch
    samples = timing.rounds(runs, stopwatch)
    return {"outcome": RIGHT, "layer": layer, "default": default if default in names else names[0], "samples": samples}


def told(error: BaseException) -> str:
    """Return an error in one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:400]}"


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError))


def _answers(device: torch.device) -> bool:
    """Return whether the GPU still does what it is told; after an access to foreign memory it does not."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def _end_with(parent: int) -> None:
    """End this process with its parent, whatever a kernel is at."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
