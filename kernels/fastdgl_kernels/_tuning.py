"""Sizes of tiles, by architecture and operator: chosen ahead of time, never while training.

Nothing here has been measured on a GPU: the entries come of reading what the compiler makes of them
(bench/static). An entry that is not there falls back to "default".
"""

from functools import cache

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
    "sm_80": {},
    "sm_90": {},
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


@cache
def architecture(device: torch.device) -> str:
    """What the table calls a device: "sm_90" for an H100, "cpu" where kernels are interpreted."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
