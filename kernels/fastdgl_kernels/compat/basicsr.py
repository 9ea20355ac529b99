"""Our operators as BasicSR's `ops/` have them, which GFPGAN uses too.

They are rosinality's, but for the bias, which has no default, and factors of upfirdn2d, which are single integers.
"""

from torch import Tensor

from .rosinality import fused_leaky_relu_with_bias as fused_leaky_relu
from .rosinality import modulated, upfirdn2d

__all__ = ["fused_leaky_relu", "upfirdn2d"]


def modulated_conv2d_forward(self, x, style) -> Tensor:
    """`ModulatedConv2d.forward`."""
    if self.eps != 1e-8:
        raise ValueError(f"eps={self.eps}: this ModulatedConv2d runs patched only with the default, 1e-8")
    up, down = {"upsample": (2, 1), "downsample": (1, 2), None: (1, 1)}[self.sample_mode]
    return modulated(self, x, style, up, down, self.smooth if self.sample_mode else None)


# arguments of the constructor of the ModulatedConv2d that is known
MODULATED_CONV2D = {
    (
        "in_channels", "out_channels", "kernel_size", "num_style_feat", "demodulate", "sample_mode", "resample_kernel",
        "eps",
    ): modulated_conv2d_forward,
}  # fmt: skip
