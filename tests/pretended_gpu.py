"""A GPU in name only, for processes of their own: kernels are compiled for an H100, and their launches written down."""

import importlib
import pkgutil
from dataclasses import dataclass, field
from types import SimpleNamespace

import fastdgl_kernels
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import _allocation


@dataclass
class Launch:
    """What reached the driver. scratch: Size and stream of the memory that a kernel asked for, or None."""

    kernel: str
    grid: tuple[int, int, int]
    stream: int
    arguments: tuple
    scratch: tuple[int, int] | None = None


@dataclass
class Driver:
    """Takes the place of Triton's driver for NVIDIA's GPUs."""

    launches: list[Launch] = field(default_factory=list)
    compiled: int = 0
    current: int = 0
    stream: int = 7

    def __post_init__(self):
        driver = self
        self.utils = SimpleNamespace(
            load_binary=lambda *arguments: (1, 2, 32, 0, 1024),
            unload_module=lambda module: None,
            get_device_properties=lambda device: {"max_shared_mem": 232448},
        )

        class Launcher:
            def __init__(self, src, metadata):
                self.name, self.size = src.fn.__name__, metadata.global_scratch_size
                driver.compiled += 1

            def __call__(self, x, y, z, stream, function, packed, metadata, enter, leave, *arguments):
                entry = Launch(self.name, (x, y, z), stream, arguments)
                if self.size:
                    memory = _allocation._allocator.get()(x * y * z * self.size, 128, stream)
                    entry.scratch = memory.numel(), stream
                driver.launches.append(entry)

        self.launcher_cls = Launcher

    def get_current_device(self):
        return self.current

    def get_current_stream(self, device):
        return self.stream

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


class OnGPU(Tensor):
    """A tensor on the CPU that says it is on the GPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def device(self):
        return torch.device("cuda", 0)


def on_gpu(x: Tensor) -> Tensor:
    """`x` under pretence."""
    return x.as_subclass(OnGPU)


def every_kernel() -> set[triton.JITFunction]:
    """Of fastdgl_kernels, and what they are made of."""
    modules = pkgutil.walk_packages(fastdgl_kernels.__path__, "fastdgl_kernels.")
    parts = [part for module in modules for part in vars(importlib.import_module(module.name)).values()]
    return {part for part in parts if isinstance(part, triton.JITFunction)}
