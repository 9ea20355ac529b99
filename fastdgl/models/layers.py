"""Equalized-rate linear and convolution layers, and minibatch standard deviation: what G and D are built of.

Parameter and buffer names are those of NVIDIA's PyTorch networks, so that their state dicts load strictly.
"""

import math

import torch
from torch import Tensor, nn
from torch.autograd import Function

from fastdgl_kernels import activation_funcs, bias_act, conv2d_resample, setup_filter
from fastdgl_kernels._operators import is_transformed

# the low-pass filter around every change of resolution (Karras et al. 2020, appendix B)
RESAMPLE_TAPS = (1, 3, 3, 1)


def normalize_2nd_moment(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Scale each row of `[N, C]` to a mean square of one."""
    return x * (x.square().mean(dim=1, keepdim=True) + eps).rsqrt()


class FullyConnectedLayer(nn.Module):
    """Linear layer whose weights are stored at unit variance and scaled when used (equalized learning rate).

    Args:
        lr_multiplier: Learns this much slower than the other layers; 0.01 in the mapping network.

    Source: Karras et al. 2018, "Progressive Growing of GANs", section 4.1.
    """

    def __init__(self, in_features: int, out_features: int, activation: str = "linear",
                 lr_multiplier: float = 1.0, bias_init: float = 0.0):
        super().__init__()
        self.activation = activation
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full([out_features], float(bias_init)))
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:                               # [N, in] -> [N, out]
        weight = self.weight.to(x.dtype) * self.weight_gain
        bias = self.bias.to(x.dtype)
        # a product with 1 changes nothing, and on a GPU each launch counts
        if self.bias_gain != 1:
            bias = bias * self.bias_gain
        if self.activation == "linear":
            return torch.addmm(bias, x, weight.t())
        return bias_act(x @ weight.t(), bias, act=self.activation)


class Conv2dLayer(nn.Module):
    """Equalized-rate convolution, optionally halving the resolution, then bias and activation."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, bias: bool = True,
                 activation: str = "linear", down: int = 1, conv_clamp: float | None = None):
        super().__init__()
        self.activation = activation
        self.down = down
        self.conv_clamp = conv_clamp
        self.padding = kernel_size // 2
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.activation_gain = activation_funcs[activation].def_gain
        self.register_buffer("resample_filter", setup_filter(RESAMPLE_TAPS))
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:            # [N, I, H, W] -> [N, O, H/down, W/down]
        weight = scaled(self.weight, self.weight_gain, x.dtype)
        x = conv2d_resample(x, weight, f=self.resample_filter, down=self.down, padding=self.padding)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return bias_act(x, bias, act=self.activation, gain=self.activation_gain * gain, clamp=clamp)


def scaled(weight: Tensor, gain: float, dtype: torch.dtype) -> Tensor:
    """Return `gain * weight` in `dtype`; in 16 bits, channels last, as convolutions read it in every direction."""
    wide = weight.dtype == dtype or dtype.itemsize > 2
    # PyTorch's own graph serves torch.func, forward mode and torch.jit.trace, none of which can follow the Function
    if wide or is_transformed() or torch.jit.is_tracing():
        return (weight * gain).to(dtype)
    return Scaled.apply(weight, gain, dtype)


class Scaled(Function):
    """`gain * weight` in 16 bits, channels last, in one launch, where a product, a cast and a copy are three."""

    @staticmethod
    def forward(weight: Tensor, gain: float, dtype: torch.dtype) -> Tensor:
        # rounded once, from the product in the dtype of the weight
        return torch.mul(weight, gain, out=torch.empty_like(weight, dtype=dtype, memory_format=torch.channels_last))

    @staticmethod
    def setup_context(ctx, inputs, output):
        weight, ctx.gain, _ = inputs
        ctx.dtype = weight.dtype

    @staticmethod
    def backward(ctx, dy: Tensor):
        return dy.to(ctx.dtype) * ctx.gain, None, None


class MinibatchStdLayer(nn.Module):
    """Append the standard deviation over groups of the batch as extra channels, so that D sees lack of variety.

    Sample i belongs to group i mod (N / group_size). A batch smaller than `group_size` forms one group.

    Source: Karras et al. 2018, "Progressive Growing of GANs", section 3.
    """

    def __init__(self, group_size: int, num_channels: int = 1):
        super().__init__()
        if group_size < 1:
            raise ValueError(f"group_size={group_size}: expected at least 1")
        self.group_size = group_size
        self.num_channels = num_channels

    def forward(self, x: Tensor) -> Tensor:                               # [N, C, H, W] -> [N, C + F, H, W]
        N, C, H, W = x.shape
        G, F = min(self.group_size, N), self.num_channels
        if N % G:
            raise ValueError(f"minibatch standard deviation needs a batch that is a multiple of {G}, got {N}")
        y = x.reshape(G, -1, F, C // F, H, W)                             # [G, N/G, F, C/F, H, W]
        y = (y.var(dim=0, unbiased=False) + 1e-8).sqrt()                  # [N/G, F, C/F, H, W]
        y = y.mean(dim=[2, 3, 4])                                         # [N/G, F]
        y = y.reshape(-1, F, 1, 1).repeat(G, 1, H, W)                     # [N, F, H, W]
        return torch.cat([x, y], dim=1)
