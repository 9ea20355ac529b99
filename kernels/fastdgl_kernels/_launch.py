"""Launching Triton kernels: compiled once, held, and started on the device of their tensors."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar, copy_context
from functools import lru_cache
from operator import itemgetter
from threading import Lock

import torch
import triton
from torch import Tensor
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from ._fallback import LaunchError

# kernels by everything Triton specialises on, so that a hit is the very binary Triton would pick; the oldest first
_held: dict[tuple, object] = {}

# the most kernels in `_held`: keys hold sizes, so images of ever new sizes would fill it without end. Triton keeps its
# own, and finds a dropped one there without compiling it
MOST_HELD = 4096

# by function, how many parameters of a kernel are known at run time only: as many entries as there are kernels
_run_time: dict[Callable, int] = {}

# threads of backwards add to `_held`, too
_adding = Lock()

# called in place of a launch, as take(kernel, arguments, num_warps, num_stages)
_taker: ContextVar[Callable | None] = ContextVar("fastdgl_kernels taker of launches", default=None)

_no_switch = nullcontext()

# what Triton raises where a kernel does not compile, or does not fit; on a GPU a first start may fail by others, too
_REJECTIONS = (CompilationError, OutOfResources, PTXASError)


def options(num_warps: int, num_stages: int) -> dict:
    """Return the options that every launch, warm-up and compilation of the kernels passes to Triton.

    Triton 3.10 no longer fuses products and sums unless told to.
    """
    return dict(num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=True)


def launch(
    kernel: triton.JITFunction, programs: int | tuple[int, ...], *arguments, num_warps: int = 4, num_stages: int = 3
) -> None:
    """Run `programs` programs of a kernel.

    Args:
        kernel: A `@triton.jit` function.
        programs: Number of programs, along each axis of the grid if there are several; nothing runs for 0.
        arguments: All the kernel's in its order, the compile-time ones last. The first is a tensor, and names the
            device; None is a tensor left out.
        num_warps: Of 32 threads, per program.
        num_stages: Steps of a loop that are under way at once.

    Raises:
        LaunchError: The kernel did not compile, or does not fit the device.
    """
    grid = (*programs, 1, 1)[:3] if isinstance(programs, tuple) else (programs, 1, 1)
    if 0 in grid:
        return
    take = _taker.get()
    if take is not None:
        take(kernel, arguments, num_warps, num_stages)
        return
    device = arguments[0].device
    if device.type == "cpu":
        try:
            _start(kernel, grid, *arguments, **options(num_warps, num_stages))
        except _REJECTIONS as error:
            raise LaunchError(str(error)) from error
        return
    key = (kernel.fn, device.index, num_warps, num_stages, *specialisation(kernel, arguments))
    with _no_switch if device.index == torch.cuda.current_device() else torch.cuda.device(device):
        held = _held.get(key)
        if held is None:
            _hold(key, _first_start(kernel, grid, arguments, options(num_warps, num_stages)))
        elif held.metadata.global_scratch_size:
            copy_context().run(_with_scratch, held[grid], *arguments)
        else:
            held[grid](*arguments)


def are_taken() -> bool:
    """Whether launches are handed over instead of run."""
    return _taker.get() is not None


@contextmanager
def launches_to(take: Callable) -> Iterator[None]:
    """Hand over the launches inside to `take(kernel, arguments, num_warps, num_stages)` instead of running them."""
    token = _taker.set(take)
    try:
        yield
    finally:
        _taker.reset(token)


def specialisation(kernel: triton.JITFunction, arguments: tuple) -> tuple:
    """What of the arguments makes a kernel of its own: no coarser than Triton, which does not go by the value of every
    integer.

    Of a tensor, its dtype and whether it begins at a multiple of 16 bytes; of a float at run time, nothing; of what is
    known at compile time, the value. The types count for themselves, as 1, 1.0 and True are equal.
    """
    n = _run_time.get(kernel.fn)
    if n is None:
        n = _run_time[kernel.fn] = len(kernel.params) - len(kernel.constexprs)
    types = tuple(map(type, arguments))
    tensors, others = _places(n, types)
    return (
        arguments[n:],
        types,
        others(arguments),
        *[(a.dtype, a.data_ptr() & 15 == 0) for a in tensors(arguments)],
    )


@lru_cache(maxsize=1024)
def _places(n: int, types: tuple[type, ...]) -> tuple[Callable, Callable]:
    """Return what picks the tensors out of arguments of these types, and what picks out the other values that count.

    Args:
        n: How many are known at run time only.
    """
    tensors = [i for i, kind in enumerate(types[:n]) if issubclass(kind, Tensor)]
    others = [i for i, kind in enumerate(types[:n]) if i not in tensors and kind not in (float, type(None))]
    return _picker(tensors), _picker(others)


def _picker(places: list[int]) -> Callable[[tuple], tuple]:
    """Return a function of a tuple that gives its items at these places."""
    if len(places) > 1:
        return itemgetter(*places)
    return lambda items: tuple(items[i] for i in places)


def _hold(key: tuple, compiled: object) -> None:
    """Add a kernel to `_held`, and drop the oldest where there are too many."""
    with _adding:
        _held[key] = compiled
        while len(_held) > MOST_HELD:
            del _held[next(iter(_held))]


def _start(kernel: triton.JITFunction, grid: tuple[int, int, int], *arguments, **options):
    """Compile a kernel where that is not done, and start it."""
    return kernel[grid](*arguments, **options)


def _first_start(kernel: triton.JITFunction, grid: tuple[int, int, int], arguments: tuple, options: dict):
    """Start a kernel that may have to be compiled, and return what can be started again."""
    try:
        return copy_context().run(_with_scratch, _start, kernel, grid, *arguments, **options)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        # the GPU's state, not the kernel's fault
        raise
    except Exception as error:
        # anything else the compilers say, from a missing C compiler to an instruction they do not know
        raise LaunchError(str(error)) from error


def _with_scratch(start: Callable, *arguments, **options):
    """Start a kernel that makes descriptors, in a context that may be lost: the caller's own allocator stays in force.

    Set at each launch, as each thread of a backward has a context of its own.
    """
    triton.set_allocator(_scratch)
    return start(*arguments, **options)


def _scratch(size: int, alignment: int, stream: int | None) -> Tensor:
    """Memory for the descriptors that kernels make.

    It may be let go as soon as the kernel is under way: it belongs to the current stream, on which the kernel runs, so
    whoever is given it next comes after the kernel. While a CUDA graph is captured, it comes from the graph's own pool,
    which lives as long as the graph, and the same order of the stream holds in every replay.
    """
    return torch.empty(size, dtype=torch.int8, device="cuda")
