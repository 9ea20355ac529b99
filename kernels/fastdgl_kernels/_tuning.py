"""Sizes of tiles, by architecture and operator: chosen ahead of time, never while training.

Nothing here has been measured on a GPU: the entries come of reading what the compiler makes of them
(bench/static). An entry that is not there falls back to "default".
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache, wraps

import torch

TABLE = {
    "default": {
        # elements of a tile, warps that work on it
        "bias_act": (2048, 4),
        "bias_act_grad": (2048, 4),
        # programs a gradient is spread over so that its bias gradient is summed in a fixed order
        "bias_act_grad_programs": 2048,
        # columns of a thread, rows of a step, steps, 16-bit elements side by side, warps; up to 4 and up to 12 taps
        "upfirdn2d_up1_down1_4": (1, 4, 8, 1024, 4),
        "upfirdn2d_up2_down1_4": (2, 4, 8, 1024, 4),
        "upfirdn2d_up1_down2_4": (1, 2, 8, 1024, 4),
        "upfirdn2d_up1_down1_12": (1, 4, 8, 1024, 4),
        "upfirdn2d_up2_down1_12": (2, 4, 8, 1024, 4),
        "upfirdn2d_up1_down2_12": (1, 2, 8, 1024, 4),
        # elements of a tile and warps of the kernel that takes everything
        "upfirdn2d": (512, 4),
    },
    # interpreted, in tests: small, so that small tensors cross the edges of tiles
    "cpu": {
        "bias_act": (512, 4),
        "bias_act_grad": (512, 4),
        "bias_act_grad_programs": 2,
        "upfirdn2d_up1_down1_4": (1, 2, 2, 256, 4),
        "upfirdn2d_up2_down1_4": (2, 2, 2, 256, 4),
        "upfirdn2d_up1_down2_4": (1, 1, 2, 128, 4),
        "upfirdn2d_up1_down1_12": (1, 2, 2, 256, 4),
        "upfirdn2d_up2_down1_12": (2, 2, 4, 256, 4),
        "upfirdn2d_up1_down2_12": (1, 2, 2, 256, 4),
        "upfirdn2d": (512, 4),
    },
}


def tuned(name: str, arch: str):
    """The entry called `name` for an architecture."""
    return TABLE.get(arch, {}).get(name, TABLE["default"][name])


def cdiv(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return (a + b - 1) // b


def next_power_of_2(n: int) -> int:
    """Return the smallest power of two that is at least n; 0 for 0."""
    if type(n) is int:
        return 1 << (n - 1).bit_length() if n > 0 else 0
    # a size that whoever traces takes for unknown
    import triton

    return triton.next_power_of_2(n)


def kept(function: Callable) -> Callable:
    """Remember what a function of sizes returned last for each; sizes that whoever traces takes for unknown are not kept."""
    lookup = lru_cache(maxsize=1024)(function)

    @wraps(function)
    def run(*arguments, **keywords):
        try:
            return lookup(*arguments, **keywords)
        except TypeError:
            return function(*arguments, **keywords)

    return run


@cache
def architecture(device: torch.device) -> str:
    """Return the name of a device in tables: "sm_90" for an H100, "gfx942" for an MI300, "cpu" where kernels are
    interpreted."""
    if device.type != "cuda":
        return device.type
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.partition(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@dataclass(frozen=True)
class Limits:
    """The limits of a GPU that tiles are chosen by.

    Args:
        capability: Compute capability, 90 for 9.0; 0 for a GPU that is not NVIDIA's.
        shared: Bytes of shared memory that one program may have.
        multiprocessors: Of the device.
    """

    capability: int
    shared: int
    multiprocessors: int

    @property
    def has_tma(self) -> bool:
        """Whether boxes are fetched by the tensor memory accelerator; before, each thread copies for itself (cp.async)."""
        return self.capability >= 90

    @property
    def reads_shared(self) -> bool:
        """Whether matrix instructions read their operands from shared memory (wgmma, tcgen05), not from registers."""
        return 90 <= self.capability < 120

    @property
    def shared_per_multiprocessor(self) -> int:
        """Bytes that the programs of a multiprocessor share; 1 KB of them is the driver's, for each program."""
        return self.shared + 1024


# stand in for devices that are not here: a T4, A100, RTX 3090, RTX 4090, H100, B200, RTX 5090, by NVIDIA's data sheets
LIMITS = {
    75: Limits(75, 64 * 1024, 40),
    80: Limits(80, 163 * 1024, 108),
    86: Limits(86, 99 * 1024, 82),
    89: Limits(89, 99 * 1024, 128),
    90: Limits(90, 227 * 1024, 132),
    100: Limits(100, 227 * 1024, 148),
    120: Limits(120, 99 * 1024, 170),
}

# any GPU gives a program as much
LEAST_SHARED = 48 * 1024


@cache
def limits(device: torch.device) -> Limits:
    """Read the limits of a device from its driver; where kernels are interpreted, return those of an H100."""
    if device.type != "cuda":
        return LIMITS[90]
    found = torch.cuda.get_device_properties(device)
    capability = 0 if torch.version.hip is not None else 10 * found.major + found.minor
    shared = getattr(found, "shared_memory_per_block_optin", 0) or getattr(found, "shared_memory_per_block", 0)
    return Limits(capability, shared or LEAST_SHARED, found.multi_processor_count)
