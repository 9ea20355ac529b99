"""Our operators as rosinality's `op/` has them, and the trees that took it over: e4e, pSp, MobileStyleGAN, ...

    from fastdgl_kernels.compat.rosinality import FusedLeakyReLU, fused_leaky_relu, upfirdn2d  # for: from op import ...
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .. import resampling
from ..activation import FusedLeakyReLU, fused_leaky_relu
from ..modulation import modulated_conv2d

__all__ = ["FusedLeakyReLU", "fused_leaky_relu", "upfirdn2d"]


def upfirdn2d(input, kernel, up=1, down=1, pad=(0, 0)) -> Tensor:
    """`fastdgl_kernels.upfirdn2d`, with the padding in another order.

    Args:
        input: `[N, C, H, W]`.
        kernel: `[h, w]`, to be convolved with; the gain is in it.
        up: Factor, or (x, y).
        down: Factor, or (x, y).
        pad: (before, after) for both axes, or (x before, x after, y before, y after).
    """
    return resampling.upfirdn2d(input, kernel, up, down, [*pad, *pad] if len(pad) == 2 else [*pad])


def fused_leaky_relu_with_bias(input, bias, negative_slope=0.2, scale=2**0.5) -> Tensor:
    """`fused_leaky_relu` where the bias has no default, as in e4e, pSp and BasicSR; None is taken all the same."""
    return fused_leaky_relu(input, bias, negative_slope, scale)


def fused_leaky_relu_traced(input, bias, negative_slope=0.2, scale=2**0.5, trace_model=False) -> Tensor:
    """`fused_leaky_relu` as MobileStyleGAN has it: what it does for tracing changes no value."""
    return fused_leaky_relu(input, bias, negative_slope, scale)


class FusedPlugin:
    """The export of the extension `fused`."""

    @staticmethod
    def fused_bias_act(x, bias, ref, act, grad, alpha, scale) -> Tensor:
        """scale * leaky_relu(x + bias), and for `grad` 1 its derivative times `x + bias`, read off the output `ref`.

        An empty `bias` stands for none; `act` is 3, the extension's number of leaky ReLU.
        """
        if act != 3 or grad not in (0, 1):
            raise ValueError(f"act={act}, grad={grad}: expected act=3, leaky ReLU, and grad=0 or 1")
        if bias.numel():
            x = x + bias.reshape([-1 if i == 1 else 1 for i in range(x.ndim)])
        return fused_leaky_relu(x, None, alpha, scale) if grad == 0 else torch.where(ref > 0, x, alpha * x) * scale


class Upfirdn2dPlugin:
    """The export of the extension `upfirdn2d`."""

    @staticmethod
    def upfirdn2d(x, kernel, upx, upy, downx, downy, padx0, padx1, pady0, pady1) -> Tensor:
        """`upfirdn2d` of images `[M, H, W, C]`."""
        M, H, W, C = x.shape
        x = x.permute(0, 3, 1, 2).reshape(1, M * C, H, W)
        y = resampling.upfirdn2d(x, kernel, [upx, upy], [downx, downy], [padx0, padx1, pady0, pady1])
        return y.reshape(M, C, *y.shape[2:]).permute(0, 2, 3, 1).contiguous()


def plugin(name: str, sources: Sequence[str]) -> type | None:
    """What takes the place of an extension about to be compiled, or None where it is another one."""
    known = {"fused": ("fused_bias_act", FusedPlugin), "upfirdn2d": ("upfirdn2d", Upfirdn2dPlugin)}
    source, ours = known.get(name, ("", None))
    files = [str(path).replace("\\", "/").rpartition("/")[2] for path in sources]
    return ours if ours and all(file.startswith(source) for file in files) else None


def modulated(layer: nn.Module, x: Tensor, style: Tensor, up: int, down: int, blur: nn.Module | None) -> Tensor:
    """The output of a `ModulatedConv2d`.

    Args:
        layer: Has `weight` `[1, O, I, h, w]`, `scale`, `modulation`, `demodulate` and `padding`.
        x: `[N, I, H, W]`.
        style: What `modulation` takes.
        up: Factor of the transposed convolution, 1 or 2.
        down: Stride of the convolution, 1 or 2.
        blur: The filter after the one or before the other, with `kernel` and `pad`.
    """
    weight = layer.scale * layer.weight[0]
    padding, f = layer.padding, None
    if blur is not None:
        (before, after), taps, k = blur.pad, blur.kernel.shape[-1], weight.shape[-1]
        # ours counts from the upsampled or filtered image that keeps its place; theirs from what the convolution leaves
        if up > 1:
            before, after = before + k - 1 - (taps + up - 1) // 2, after + k - up - (taps - up) // 2
        else:
            before, after = before - (taps - down + 1) // 2, after - (taps - down) // 2
        padding, f = [before, after] * 2, blur.kernel.to(x.device) / up**2
    return modulated_conv2d(
        x, weight, layer.modulation(style), None, up, down, padding, f, layer.demodulate, flip_weight=up == 1
    )


def modulated_conv2d_forward(self, input, style) -> Tensor:
    """`ModulatedConv2d.forward`."""
    up, down = 1 + bool(self.upsample), 1 + bool(self.downsample)
    return modulated(self, input, style, up, down, self.blur if up * down > 1 else None)


# by the last part of a module's name and the function's
FUNCTIONS: dict[tuple[str, str], list[Callable]] = {
    ("upfirdn2d", "upfirdn2d"): [upfirdn2d],
    ("fused_act", "fused_leaky_relu"): [fused_leaky_relu, fused_leaky_relu_with_bias, fused_leaky_relu_traced],
}

# the class that calls an extension, the names it may call it by, and what takes its place
PLUGINS = {
    "FusedLeakyReLUFunction": ({"fused", "fused_act_ext"}, FusedPlugin),
    "UpFirDn2d": ({"upfirdn2d_op", "upfirdn2d_ext"}, Upfirdn2dPlugin),
}

# arguments of the constructor of the ModulatedConv2d that is known
_CONSTRUCTOR = (
    "in_channel", "out_channel", "kernel_size", "style_dim", "demodulate", "upsample", "downsample", "blur_kernel",
)  # fmt: skip
MODULATED_CONV2D = {_CONSTRUCTOR: modulated_conv2d_forward, (*_CONSTRUCTOR, "fused"): modulated_conv2d_forward}
