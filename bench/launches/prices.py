"""Predict how long the counted kernels take on a named GPU, by its roofline: nothing is measured."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from ..static.roofline import DEVICES
from .counting import Launch

# a kernel takes no less, from the start of one to the start of the next
LEAST = 2.5e-6


@dataclass(frozen=True)
class GPU:
    """Rates of a GPU.

    Args:
        bandwidth: Bytes a second.
        matrix_rate: FLOPs a second in 16 bits, with sums in fp32; a product of TF32 takes twice as long.
        fp32_rate: FLOPs a second in fp32, by data sheets.
    """

    name: str
    bandwidth: float
    matrix_rate: float
    fp32_rate: float


FP32 = {"T4": 8.1e12, "A100": 19.5e12, "RTX 3090": 35.6e12, "RTX 4090": 82.6e12, "H100": 66.9e12, "B200": 75e12, "RTX 5090": 104.8e12}
GPUS = {d.name: GPU(d.name, d.bandwidth, d.matrix_rate, FP32[d.name]) for d in DEVICES.values()}
# an H100 with faster memory
GPUS["H200"] = replace(GPUS["H100"], name="H200", bandwidth=4.3e12)


def seconds(launches: Iterable[Launch], gpu: GPU, tf32: bool = False) -> float:
    """Return the sum over the kernels of the longest of memory, arithmetic and start.

    Args:
        tf32: fp32 convolutions and matrix products may round their inputs to 10 bits.
    """
    return sum(max(launch.bytes / gpu.bandwidth, launch.flops / _rate(launch, gpu, tf32), LEAST) for launch in launches)


def _rate(launch: Launch, gpu: GPU, tf32: bool) -> float:
    if launch.dtype in (torch.float16, torch.bfloat16):
        return gpu.matrix_rate
    return gpu.matrix_rate / 2 if tf32 else gpu.fp32_rate
