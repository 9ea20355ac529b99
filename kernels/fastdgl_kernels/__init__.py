"""The operators of style-based GANs. They need PyTorch and nothing else of this repository."""

from ._dispatch import explain, implementation, kernels_in_force
from ._warm_up import warm_up
from .activation import FusedLeakyReLU, activation_funcs, bias_act, fused_leaky_relu
from .compat import patch, unpatch
from .convolution import conv2d_resample
from .filtered_activation import filtered_lrelu
from .modulation import modulated_conv2d, modulated_conv2d_bias_act
from .normalization import scale_shift_act
from .resampling import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

# the one place for the version: kernels/pyproject.toml reads it from here
__version__ = "0.1.0"

__all__ = [
    "FusedLeakyReLU",
    "activation_funcs",
    "bias_act",
    "conv2d_resample",
    "downsample2d",
    "explain",
    "filter2d",
    "filtered_lrelu",
    "fused_leaky_relu",
    "implementation",
    "kernels_in_force",
    "modulated_conv2d",
    "modulated_conv2d_bias_act",
    "patch",
    "scale_shift_act",
    "setup_filter",
    "unpatch",
    "upfirdn2d",
    "upsample2d",
    "warm_up",
]
