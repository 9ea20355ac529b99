"""Launching Triton kernels: compiled once, held, and started on the device of their tensors."""

import torch
import triton
from torch import Tensor

# kernels by everything Triton specialises on, so that a hit is the very binary Triton would pick:
# its own look-up takes 10 to 17 us a launch, a held kernel 3
_held: dict[tuple, object] = {}


def launch(kernel: triton.JITFunction, programs: int, *arguments, num_warps: int = 4) -> None:
    """Run `programs` programs of a kernel.

    Args:
        kernel: A `@triton.jit` function.
        programs: Number of programs, along the first axis of the grid; nothing runs for 0.
        arguments: All the kernel's, compile-time ones included, in its order. The first tensor names the device.
        num_warps: Of 32 threads, per program.
    """
    if programs == 0:
        return
    grid = (programs, 1, 1)
    device = next(a.device for a in arguments if isinstance(a, Tensor))
    if device.type == "cpu":
        kernel[grid](*arguments, num_warps=num_warps)
        return
    key = (kernel, device.index, num_warps, *map(_specialisation, arguments, kernel.params))
    with torch.cuda.device(device):
        held = _held.get(key)
        if held is not None:
            held[grid](*arguments)
        else:
            _held[key] = kernel[grid](*arguments, num_warps=num_warps)


def _specialisation(argument, parameter):
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    # at run time a float is just passed; an int of 1, divisible by 16 or beyond 32 bits makes a kernel of its own
    return float if isinstance(argument, float) and not parameter.is_constexpr else argument
