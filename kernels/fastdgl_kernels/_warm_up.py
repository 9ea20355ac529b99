"""Compiling the kernels of a model before they are needed, in parallel."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from . import _fallback


@contextmanager
def warm_up(workers: int | None = None) -> Iterator[None]:
    """Compile the kernels that the operators called inside the `with` would launch. Nothing is computed.

    A kernel that does not compile, or does not fit its GPU, is reported in a warning, and PyTorch computes in its place.

        with warm_up():
            images = G(torch.empty([32, 512], device="cuda"))
            torch.autograd.grad(D(images).sum(), list(G.parameters()))

    Inside, tensors have a shape, a dtype and a device, but no numbers and no memory (PyTorch's FakeTensorMode);
    networks and tensors from outside may be used, and stay as they are. Filters have to come from outside: their taps
    decide which kernel takes them. Take gradients by `torch.autograd.grad`: `backward()` would leave gradients without
    numbers in the parameters.

    The kernels are found in Triton's cache on disk (TRITON_CACHE_DIR) by any process that needs them, and those in it
    are not compiled again: warm up in one process of a machine, the others then only load. Where no kernel runs, as
    where the reference is in force, there is nothing to do.

    Args:
        workers: How many to compile at once; None for a few more than there are processors.

    Raises:
        RuntimeError: Kernels are interpreted (TRITON_INTERPRET=1), not compiled.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from ._launch import launches_to

    calls = []
    # gradients on this thread, where what is set here holds
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        launches_to(lambda *call: calls.append(call)),
        torch.autograd.set_multithreading_enabled(False),
    ):
        yield
    _compile(calls, workers)


def _compile(calls: list[tuple], workers: int | None) -> None:
    if not calls:
        return
    import triton
    from triton.runtime._async_compile import AsyncCompileMode

    from ._launch import options

    if not isinstance(calls[0][0], triton.JITFunction):
        raise RuntimeError("TRITON_INTERPRET=1 is set: kernels are interpreted, not compiled; unset it to warm up")
    compiled = {}
    with ThreadPoolExecutor(workers) as pool:
        try:
            with AsyncCompileMode(pool):
                for kernel, arguments, num_warps, num_stages in calls:
                    stand_ins = [_Pointer.to(a) if isinstance(a, Tensor) else a for a in arguments]
                    # by Triton's own look-up, so that what is compiled is what a launch will look for
                    found = kernel.warmup(*stand_ins, grid=(1,), **options(num_warps, num_stages))
                    where = kernel.fn.__module__, arguments[0].device
                    compiled.setdefault(id(found), (found, getattr(found, "future", None), *where))
        except Exception as error:
            # the first error of a compilation comes out here; each is reported below
            if not any(future and future.done() and future.exception() is error for _, future, *_ in compiled.values()):
                raise
        rejections = list(pool.map(_load, compiled.values()))
    for (*_, module, device), error in zip(compiled.values(), rejections):
        if error is not None:
            _fallback.report(module, device, error)


def _load(entry: tuple) -> Exception | None:
    """Load a kernel onto its device, and return what speaks against it; up to Triton 3.6, this compiles a launcher too."""
    kernel, future, *_ = entry
    try:
        if future is not None:
            future.result()
        kernel = kernel.result() if hasattr(kernel, "result") else kernel
        kernel.run  # noqa: B018
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return error
    return None


@dataclass(frozen=True)
class _Pointer:
    """A tensor as Triton sees it."""

    dtype: torch.dtype
    offset: int

    def data_ptr(self) -> int:
        return self.offset

    @staticmethod
    def to(x: Tensor) -> "_Pointer":
        # allocations begin at multiples of far more than 16 bytes
        return _Pointer(x.dtype, x.storage_offset() * x.element_size() % 16)
