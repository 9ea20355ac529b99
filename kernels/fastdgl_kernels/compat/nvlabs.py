"""Our operators as NVIDIA's `torch_utils.ops` has them: the modules that callers import, and what the plugins export.

    from fastdgl_kernels.compat.nvlabs import bias_act, upfirdn2d       # for: from torch_utils.ops import ...
    bias_act.bias_act(x, b, act="lrelu")
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import activation, convolution, filtered_activation, modulation, resampling


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    """`torch.nn.functional.conv2d`, which can be differentiated any number of times by itself."""
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


def conv_transpose2d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1) -> Tensor:
    """`torch.nn.functional.conv_transpose2d`, likewise."""
    return F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)


@contextmanager
def no_weight_gradients(disable: bool = True) -> Iterator[None]:
    """Changes nothing: PyTorch's convolution computes no gradient that is not asked for."""
    yield


def grid_sample(input, grid) -> Tensor:
    """`torch.nn.functional.grid_sample`: bilinear, zeros outside, the corners of pixels at -1 and 1.

    Args:
        input: `[N, C, H, W]`.
        grid: `[N, H', W', 2]`.
    """
    return F.grid_sample(input, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def grid_sample_backward(ctx, grad_output, input, grid) -> tuple[Tensor, Tensor]:
    """`forward` of the autograd function that hosts put in place of the gradient of `grid_sample`.

    Theirs calls PyTorch's operator by a way that PyTorch no longer has. Their `backward` stays, and needs `grid` only.

    Args:
        grad_output: `[N, C, H', W']`.
        input, grid: As in `grid_sample`.
    """
    ctx.save_for_backward(grid)
    # bilinear, zeros outside, align_corners=False, and both gradients
    return torch.ops.aten.grid_sampler_2d_backward(grad_output, input, grid, 0, 0, False, [True, True])


def multiply_add(a, b, c) -> Tensor:
    """a * b + c, broadcast against one another."""
    return torch.addcmul(c, a, b)


def modulated_conv2d_stylegan3(
    x: Tensor,
    w: Tensor,
    s: Tensor,
    demodulate=True,
    padding=0,
    input_gain=None,
) -> Tensor:
    """`modulated_conv2d` as StyleGAN3 has it.

    With `demodulate`, weights are normalized per output channel, and styles over the whole batch, before they meet.

    Args:
        x: `[N, I, H, W]`.
        w: `[O, I, h, w]`.
        s: `[N, I]`, styles.
        demodulate: Divide by the norm of the scaled weights.
        padding: A number, or `[y, x]`.
        input_gain: Scale of the input channels, which demodulation does not divide out: a scalar, `[I]` or `[N, I]`.

    Source: Karras et al., "Alias-Free Generative Adversarial Networks", NeurIPS 2021, appendix C.
    """
    if demodulate:
        w = w * w.square().mean([1, 2, 3], keepdim=True).rsqrt()
        s = s * s.square().mean().rsqrt()
    if input_gain is not None:
        gain = input_gain.expand(x.shape[:2])
        if demodulate:
            x = x * gain.to(x.dtype)[:, :, None, None]
        else:
            s = s * gain
    if isinstance(padding, Sequence):
        padding = padding[::-1]
    return modulation.modulated_conv2d(x, w, s, padding=padding, demodulate=demodulate)


# what `from torch_utils.ops import ...` brings there
bias_act = SimpleNamespace(bias_act=activation.bias_act, activation_funcs=activation.activation_funcs)
upfirdn2d = SimpleNamespace(**{name: getattr(resampling, name) for name in resampling.__all__})
filtered_lrelu = SimpleNamespace(filtered_lrelu=filtered_activation.filtered_lrelu)
conv2d_resample = SimpleNamespace(conv2d_resample=convolution.conv2d_resample)
conv2d_gradfix = SimpleNamespace(
    enabled=False,
    weight_gradients_disabled=False,
    conv2d=conv2d,
    conv_transpose2d=conv_transpose2d,
    no_weight_gradients=no_weight_gradients,
)
grid_sample_gradfix = SimpleNamespace(enabled=False, grid_sample=grid_sample)
fma = SimpleNamespace(fma=multiply_add)


class BiasActPlugin:
    """The exports of `bias_act_plugin`: the forward and two derivatives, which the caller's autograd puts together."""

    @staticmethod
    def bias_act(x, b, xref, yref, dy, grad, dim, act, alpha, gain, clamp) -> Tensor:
        """The function for `grad` 0; for 1 its derivative times `x`; for 2 its second derivative times `x` and `dy`.

        An empty tensor stands for none, a negative `clamp` for no bound, `act` is a number.
        """
        act = next(name for name, a in activation.activation_funcs.items() if a.cuda_idx == act)
        b = b if b.numel() else None
        clamp = None if clamp < 0 else clamp
        if grad == 0:
            return activation.bias_act(x, b, dim, act, alpha, gain, clamp)
        if act == "linear":
            # the compiled plugin keeps nothing to know a clamped element by, and lets its gradient through
            return x * gain
        if xref.numel() == 0:
            # the output has the sign of the input, and shows where it was clamped
            (dx,) = _derivatives(yref, None, dim, act, alpha, gain, None, [x])
            return dx if clamp is None else dx * (yref.abs() < clamp)
        return _derivatives(xref, b, dim, act, alpha, gain, clamp, [x] if grad == 1 else [dy, x])[-1]


def _derivatives(x, b, dim, act, alpha, gain, clamp, incoming: list[Tensor]) -> list[Tensor]:
    """One derivative by x after the other, each times what comes in for it."""
    results = []
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = activation.bias_act(x, b, dim, act, alpha, gain, clamp)
        for i, dy in enumerate(incoming):
            (y,) = torch.autograd.grad(y, x, dy, create_graph=i + 1 < len(incoming))
            results.append(y)
    return results


class Upfirdn2dPlugin:
    """The export of `upfirdn2d_plugin`."""

    @staticmethod
    def upfirdn2d(x, f, upx, upy, downx, downy, padx0, padx1, pady0, pady1, flip, gain) -> Tensor:
        """`upfirdn2d` with a filter `[h, w]`."""
        return resampling.upfirdn2d(x, f, [upx, upy], [downx, downy], [padx0, padx1, pady0, pady1], flip, gain)


class FilteredLreluPlugin:
    """The exports of `filtered_lrelu_plugin`."""

    @staticmethod
    def filtered_lrelu(x, *_):
        """Asks the caller to take its steps one by one."""
        return x.new_empty(0), x.new_empty(0), -1

    @staticmethod
    def filtered_lrelu_act_(x, si, sx, sy, gain, slope, clamp, writeSigns) -> Tensor:
        """clamp(lrelu(gain * x)) in place, or its derivative where signs come in.

        Args:
            x: `[N, C, H, W]`.
            si: Signs, `[N, C, H', W']`, 1 where the input was negative, 2 where it was clamped; empty for none.
            sx, sy: Where in `si` the corner of `x` lies.
            writeSigns: Whether to return the signs.
        """
        x.mul_(gain)
        if si.numel():
            H, W = x.shape[2:]
            signs = F.pad(si, [-sx, sx + W - si.shape[3], -sy, sy + H - si.shape[2]])
            x.copy_(torch.where(signs == 1, slope * x, x).masked_fill_(signs >= 2, 0))
            return si.new_empty(0)
        signs = (x < 0).to(torch.uint8)
        x.copy_(F.leaky_relu(x, slope))
        signs.masked_fill_(x.abs() > clamp, 2)
        x.clamp_(-clamp, clamp)
        return signs if writeSigns else signs.new_empty(0)


# by the last part of the name of the module that calls them
PLUGINS = {
    "bias_act": BiasActPlugin,
    "upfirdn2d": Upfirdn2dPlugin,
    "filtered_lrelu": FilteredLreluPlugin,
}


def plugin(name: str, sources: Sequence[str]) -> type | None:
    """What takes the place of an extension about to be compiled, or None where it is another one."""
    return PLUGINS.get(name.removesuffix("_plugin")) if name.endswith("_plugin") else None


# by the last part of a module's name and the function's
FUNCTIONS = {
    ("bias_act", "bias_act"): [bias_act.bias_act],
    # the three shorter forms of the host call this one
    ("upfirdn2d", "upfirdn2d"): [upfirdn2d.upfirdn2d],
    ("filtered_lrelu", "filtered_lrelu"): [filtered_lrelu.filtered_lrelu],
    ("conv2d_resample", "conv2d_resample"): [conv2d_resample.conv2d_resample],
    ("fma", "fma"): [fma.fma],
}

# these do not run on a current PyTorch, or warn at each call
MENDED = {
    ("conv2d_gradfix", "conv2d"): [conv2d],
    ("conv2d_gradfix", "conv_transpose2d"): [conv_transpose2d],
    ("grid_sample_gradfix", "grid_sample"): [grid_sample],
}

# what a function of theirs names that `grid_sample_backward` can stand in for
GRID_SAMPLE_BACKWARD = "aten::grid_sampler_2d_backward"

MODULATED_CONV2D = [modulation.modulated_conv2d, modulated_conv2d_stylegan3]
