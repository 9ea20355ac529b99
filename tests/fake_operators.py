"""Operators with one fault each, for the processes that certify: the reference is right, what runs as "triton" is not."""

import os
import time

import torch
from torch import Tensor


def _double(x: Tensor) -> Tensor:
    return 2 * x


def right(x: Tensor, impl: str) -> Tensor:
    """No fault."""
    return _double(x)


def wrong(x: Tensor, impl: str) -> Tensor:
    """One number in a hundred is off."""
    if impl == "reference":
        return _double(x)
    return _double(x) + (torch.arange(x.numel()).reshape(x.shape) % 100 == 0)


def leaves_nan(x: Tensor, impl: str) -> Tensor:
    """The last row is not written."""
    return Holed.apply(x) if impl != "reference" else _double(x)


class Holed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.empty_like(x)
        y[:-1] = 2 * x[:-1]
        return y

    @staticmethod
    def backward(ctx, dy):
        return 2 * dy


def writes_inputs(x: Tensor, impl: str) -> Tensor:
    """x is given back changed."""
    y = _double(x)
    if impl != "reference":
        with torch.no_grad():
            x.detach().view(-1)[0] += 1
    return y


def writes_beyond(x: Tensor, impl: str) -> Tensor:
    """Eight bytes behind the output are written."""
    if impl == "reference":
        return _double(x)
    y = torch.empty_like(x)
    y.copy_(x.detach())
    past = torch.empty(0, dtype=y.dtype).set_(y.untyped_storage(), y.storage_offset() + y.numel(), (2,), (1,))
    past.zero_()
    return _double(x)


_calls = []


def differs(x: Tensor, impl: str) -> Tensor:
    """Each call differs by a rounding."""
    if impl == "reference":
        return _double(x)
    _calls.append(None)
    return _double(x) * (1 + len(_calls) * 2**-23)


def wrong_second(x: Tensor, impl: str) -> Tensor:
    """Value and gradients are right; second gradients are not."""
    return x * x if impl == "reference" else Square.apply(x)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return 2 * x.detach() * dy


def sleeps(x: Tensor, impl: str) -> Tensor:
    """It never ends."""
    if impl != "reference":
        time.sleep(3600)
    return _double(x)


def exits(x: Tensor, impl: str) -> Tensor:
    """It ends the process."""
    if impl != "reference":
        os._exit(7)
    return _double(x)


def segfaults(x: Tensor, impl: str) -> Tensor:
    """It reads address 0."""
    if impl != "reference":
        import ctypes

        ctypes.string_at(0)
    return _double(x)


def out_of_resources(x: Tensor, impl: str) -> Tensor:
    """It needs more shared memory than there is."""
    if impl != "reference":
        from triton.runtime.errors import OutOfResources

        raise OutOfResources(300000, 101376, "shared memory")
    return _double(x)


def out_of_memory(x: Tensor, impl: str) -> Tensor:
    """The GPU is full, which is no fault of the kernel."""
    if impl != "reference":
        raise torch.OutOfMemoryError("CUDA out of memory")
    return _double(x)


def prints(x: Tensor, impl: str) -> Tensor:
    """It writes to standard output, where answers are expected."""
    print('{"kind": "done", "outcome": "wrong"}', flush=True)
    os.write(1, b"noise\n")
    return _double(x)
