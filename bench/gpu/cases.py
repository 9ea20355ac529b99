"""Every kernel and fused operator on the layers of bench/shapes.py: `checked` for being right, `timed` for being fast.

Kernels are reached by their launches, never by their programs. A new kernel needs a function here that yields its
cases, and a line in both lists.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial, wraps
from math import sqrt
from unittest.mock import patch

import torch
import torch.nn.functional as F
from fastdgl_kernels import conv2d_resample, filtered_lrelu, modulated_conv2d_bias_act, scale_shift_act, setup_filter
from fastdgl_kernels._tuning import TABLE, architecture
from fastdgl_kernels.activation import kernel as activation
from fastdgl_kernels.activation.op import completed
from fastdgl_kernels.activation.reference import activation_funcs
from fastdgl_kernels.activation.reference import bias_act as bias_act_reference
from fastdgl_kernels.activation.spec import Spec
from fastdgl_kernels.convolution import backends
from fastdgl_kernels.convolution import kernel as product
from fastdgl_kernels.convolution.algebra import FEW_CHANNELS
from fastdgl_kernels.convolution.spec import Geometry
from fastdgl_kernels.convolution.op import whole_padding
from fastdgl_kernels.convolution.spec import Spec as ConvolutionSpec
from fastdgl_kernels.modulation import epilogue
from fastdgl_kernels.modulation import to_rgb_kernel as rgb
from fastdgl_kernels.modulation.reference import modulated_conv2d_bias_act as modulated_reference
from fastdgl_kernels.normalization import kernel as normalization
from fastdgl_kernels.normalization.reference import scale_shift_act as scale_shift_act_reference
from fastdgl_kernels.resampling import kernel as resampling
from fastdgl_kernels.resampling.geometry import Resample
from fastdgl_kernels.resampling.reference import upfirdn2d as upfirdn2d_reference
from numerics import derivatives
from torch import Tensor

from ..shapes import (
    ALPHA,
    CLAMP,
    GAIN,
    NETWORKS,
    Filter,
    batch_norms,
    channels,
    conv_flops,
    filters,
    layers,
    long_filters,
)
from .case import Case, Choice, Random, Tensors, compiled
from .nvidia import operators as nvidia

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32

# what else a tile could be: for `_tuning.TABLE`, and for the matrix products
TABLE_CANDIDATES = {
    "bias_act": [(elements, warps) for elements in (1024, 2048, 4096, 8192) for warps in (4, 8)],
    "bias_act_grad": [(elements, warps) for elements in (1024, 2048, 4096) for warps in (4, 8)],
    "upfirdn2d_up1_down1_4": [(1, 4, steps, n, warps) for steps in (4, 8, 16) for n, warps in ((1024, 4), (2048, 8))],
    "upfirdn2d_up2_down1_4": [(2, 4, steps, n, warps) for steps in (4, 8, 16) for n, warps in ((1024, 4), (2048, 8))],
    "upfirdn2d_up1_down2_4": [(1, 2, steps, n, warps) for steps in (4, 8, 16) for n, warps in ((1024, 4), (2048, 8))],
    "upfirdn2d": [(elements, 4) for elements in (256, 512, 1024)],
}
TILES = (
    product.Tile(16, 16, 128, 64, 8, 3),
    product.Tile(16, 16, 128, 64, 8, 4),
    product.Tile(8, 16, 256, 64, 8, 3),
    product.Tile(8, 16, 128, 64, 8, 3),
    product.Tile(8, 16, 128, 64, 8, 4),
    product.Tile(8, 16, 128, 64, 4, 3),
    product.Tile(16, 16, 64, 64, 4, 3),
    product.Tile(8, 16, 64, 64, 4, 4),
)
PARTS = (1, 2, 4, 8, 16, 32)

# the convolution that keeps the size
SAME = Geometry((3, 3), padding=(1, 1))


def checked() -> Iterator[Case]:
    """To be compared with float64: every kernel in every dtype and memory format it takes, few samples, real layers and odd ones."""
    # first what the networks run: should time run out, it is this that counts
    for N, R, C in layers():
        yield from bias_act(2, R, C, FP16)
        yield from tail(2, R, C, FP16)
        for filter in filters(R):
            yield from upfirdn2d(2, R, C, filter, FP16)
        # a batch divisible by 16 makes a kernel of its own
        yield from convolution(min(N, 16), R, C, FP16)
        yield from resampling_convolution(2, R, C, FP16)
        yield from to_rgb(2, R, C, FP16)
    for impl in ("cudnn", "triton"):
        for kind in KINDS:
            yield from modulated_layer(2, 64, 128, kind, impl, FP16)
            yield second_order_of_layer(2, 16, 64, kind, impl, FP16)
        for kind in CONVOLUTIONS:
            yield from convolution_layer(2, 32, 64, kind, impl, FP16)
    for _, R, C, up in batch_norms():
        yield from batch_norm(2, R, C, up, BF16)
    for R, C in ((16, 512), (32, 256)):
        for filter in filters(R):
            yield from upfirdn2d(2, R, C, filter, FP32, channels_last=False)
    for filter in filters(256):
        yield from upfirdn2d(2, 256, 3, filter, FP32, channels_last=False)
    yield from convolution(2, 64, 512, BF16)
    yield from convolution(1, 64, 512, FP16)
    yield from convolution_with_own_weights(2, 32, 128, FP16)
    odd, low, high = (3, 17, 24), (2, 32, 512), (2, 256, 128)
    for dtype in (BF16, FP32, FP16):
        for layer in (odd, low, high):
            for channels_last in (True, False):
                yield from bias_act(*layer, dtype, channels_last)
                yield from tail(*layer, dtype, channels_last)
        for impl in ("cudnn", "triton"):
            for kind in KINDS:
                yield from modulated_layer(2, 16, 64, kind, impl, dtype)
                yield second_order_of_layer(2, 16, 64, kind, impl, dtype)
            for kind in CONVOLUTIONS:
                yield from convolution_layer(2, 32, 64, kind, impl, dtype)
        for channels_last in (True, False):
            yield from to_rgb(*odd, dtype, channels_last)
            for up in (1, 2):
                yield from batch_norm(*odd, up, dtype, channels_last)
            yield from filtered_layer(2, 36, 64, dtype, channels_last)
        for layer in (odd, (2, 33, 64)):
            for filter in (*filters(layer[1]), *long_filters(layer[1])):
                for channels_last in (True, False):
                    yield from upfirdn2d(*layer, filter, dtype, channels_last)
    yield from bias_act(2, 32, 64, FP16, True, "swish")
    for act in activation_funcs:
        for channels_last in (True, False):
            yield from bias_act(2, 32, 64, FP32, channels_last, act)


def timed() -> Iterator[Case]:
    """To be timed: the layers of both networks, the dearest ones also in the other dtypes and memory formats."""
    # the networks' highest resolutions first: should time run out, it is these that weigh
    for N, R, C in sorted(layers(), key=lambda layer: -layer[0] * layer[1] ** 2 * layer[2]):
        yield from bias_act(N, R, C, FP16)
        for filter in filters(R):
            yield from upfirdn2d(N, R, C, filter, FP16)
        yield from tail(N, R, C, FP16)
        yield from convolution(N, R, C, FP16)
        yield from resampling_convolution(N, R, C, FP16)
        yield from to_rgb(N, R, C, FP16)
        for impl in ("cudnn", "triton"):
            yield from modulated_layer(N, R, C, "same", impl, FP16)
            yield from modulated_layer(N, R, C, "up", impl, FP16)
    for N, R, C, up in sorted(batch_norms(), key=lambda norm: -norm[1] ** 2 * norm[2] * norm[3] ** 2):
        yield from batch_norm(N, R, C, up, BF16)
    for largest, N in NETWORKS.items():
        for impl in ("cudnn", "triton"):
            yield from modulated_layer(N, largest, channels(largest), "rgb", impl, FP16)
        for filter in filters(largest)[2:]:
            yield from upfirdn2d(N, largest, 3, filter, FP32, channels_last=False)
    high = (NETWORKS[256], 256, channels(256))
    for dtype, channels_last in ((BF16, True), (FP32, True), (FP16, False), (FP32, False)):
        yield from bias_act(*high, dtype, channels_last)
        yield from upfirdn2d(*high, filters(256)[0], dtype, channels_last)
    yield from convolution(*high, BF16)
    for filter in long_filters(256):
        yield from upfirdn2d(32, 256, 64, filter, FP16)
    for act in ("swish", "softplus"):
        yield from bias_act(32, 128, 256, FP16, True, act)
    for channels_last in (True, False):
        yield from filtered_layer(8, 148, 256, FP16, channels_last)
    for N, R, C in layers(half=False):
        yield from bias_act(N, R, C, FP32, channels_last=False)
        yield from tail(N, R, C, FP32, channels_last=False)
        yield from to_rgb(N, R, C, FP32, channels_last=False)
        if R > 4:
            for filter in filters(R):
                yield from upfirdn2d(N, R, C, filter, FP32, channels_last=False)


def chosen() -> Iterator[Case]:
    """Whole layers of both networks as they run by themselves: PyTorch's convolution and ours are their candidates."""
    for N, R, C in layers():
        for kind in KINDS:
            yield _of_backends(partial(modulated_layer, N, R, C, kind, dtype=FP16))
        for kind in ("same", "down"):
            yield _of_backends(partial(convolution_layer, N, R, C, kind, dtype=FP16))


def named(N: int, R: int, C: int, dtype: torch.dtype, channels_last: bool = True) -> str:
    """A layer in words."""
    return f"{C}@{R} N={N} {str(dtype)[6:]} {'NHWC' if channels_last else 'NCHW'}"


def bias_act(N: int, R: int, C: int, dtype: torch.dtype, channels_last: bool = True, act: str = "lrelu") -> Iterator[Case]:
    """Forward, gradient with the sum that makes the bias gradient, and second order where there is one."""
    alpha, gain = activation_funcs[act].def_alpha, activation_funcs[act].def_gain
    spec = Spec(act, alpha, gain, CLAMP, 1)
    layer = f"{act} {named(N, R, C, dtype, channels_last)}"
    reads_x = spec.reads == "x"

    def tensors(random: Random) -> Tensors:
        image = partial(random.normal, N, C, R, R, dtype=dtype, channels_last=channels_last)
        x, b = image(), random.normal(C, dtype=dtype)
        # on the kink, rounding decides on the slope
        x.masked_fill_(x == -b[:, None, None], 1)
        # where a smooth activation is flat, the derivative by y is not to be had from that by x
        if reads_x or not spec.bends:
            _set_outliers(x)
        y = definition(x.double(), b.double())["y"].to(dtype)
        return {"x": x, "b": b, "y": y, "dy": image(), "ddx": image()}

    def definition(x: Tensor, b: Tensor) -> Tensors:
        return {"y": bias_act_reference(x, b, 1, act, alpha, gain, CLAMP)}

    def forward(x: Tensor, b: Tensor) -> Tensors:
        return {"y": activation.forward(x, b, spec)}

    def gradient(dy: Tensor, y: Tensor) -> Tensors:
        return dict(zip(("dx", "db"), activation.gradient(dy, y, None, spec, total=True)))

    def gradient_off_x(dy: Tensor, x: Tensor, b: Tensor) -> Tensors:
        return dict(zip(("dx", "db"), activation.gradient(dy, x, b, spec, total=True)))

    def gradient_definition(x: Tensor, b: Tensor, dy: Tensor) -> Tensors:
        return _gradients(lambda x, b: definition(x, b)["y"], {"x": x, "b": b}, dy)

    def bend(dy: Tensor, ddx: Tensor, y: Tensor) -> Tensors:
        return {"dr": activation.gradient(dy, y, None, spec, total=False, ddx=ddx)[0]}

    def bend_off_x(dy: Tensor, ddx: Tensor, x: Tensor, b: Tensor) -> Tensors:
        return dict(zip(("dr", "db"), activation.gradient(dy, x, b, spec, total=True, ddx=ddx)))

    def bend_definition(x: Tensor, b: Tensor, dy: Tensor, ddx: Tensor) -> Tensors:
        x = x.detach().requires_grad_()
        (dx,) = torch.autograd.grad(definition(x, b)["y"], x, dy, create_graph=True)
        (dr,) = torch.autograd.grad(dx, x, ddx)
        if reads_x:
            return {"dr": dr, "db": dr.sum([0, 2, 3])}
        # by y instead of x
        (slope,) = torch.autograd.grad(definition(x, b)["y"].sum(), x)
        return {"dr": dr / slope}

    rivals = {"reference": definition, "compiled": compiled(definition)}
    rivals["nvidia"] = lambda x, b: nvidia().bias_act(x, b, act=act, clamp=CLAMP)
    shared = partial(Case, "bias_act", layer=layer, dtype=dtype, tensors=tensors)
    yield shared(
        "forward", run=forward, reference=definition, rivals=rivals, candidates=partial(_of_table, "bias_act", forward)
    )
    run = gradient_off_x if reads_x else gradient
    yield shared(
        "gradient", run=run, reference=gradient_definition, candidates=partial(_of_table, "bias_act_grad", run)
    )
    if spec.bends:
        yield shared("second order", run=bend_off_x if reads_x else bend, reference=bend_definition)


def upfirdn2d(
    N: int, R: int, C: int, filter: Filter, dtype: torch.dtype, channels_last: bool = True
) -> Iterator[Case]:
    """A filter; and the one after an up-convolution with the end of its layer in the same pass, where it has one."""
    before, after = filter.padding
    resample = Resample((filter.up,) * 2, (filter.down,) * 2, (before, after) * 2, False, filter.up**2)
    layer = " ".join([f"{filter.taps} taps", *filter.name.split(), named(N, R, C, dtype, channels_last)])
    arguments = dict(up=filter.up, down=filter.down, padding=[before, after] * 2, gain=filter.up**2)

    def tensors(random: Random) -> Tensors:
        O = filter.output
        taps = [1, 3, 3, 1] if filter.taps == 4 else random.normal(filter.taps).abs().cpu()
        return {
            "x": random.normal(N, C, filter.size, filter.size, dtype=dtype, channels_last=channels_last),
            "f": setup_filter(taps, device=random.device),
            "d": 1 + random.normal(N, C) / 4,
            "noise": random.normal(N, 1, O, O),
            "bias": _some_large(random.normal(C, dtype=dtype)),
        }

    def forward(x: Tensor, f: Tensor) -> Tensors:
        return {"y": resampling.upfirdn2d(x, f, resample)}

    def definition(x: Tensor, f: Tensor) -> Tensors:
        return {"y": upfirdn2d_reference(x, f, resample)}

    def forward_and_tail(x: Tensor, f: Tensor, d: Tensor, noise: Tensor, bias: Tensor) -> Tensors:
        return {"y": resampling.upfirdn2d(x, f, resample, resampling.Tail(d, noise, bias, ALPHA, GAIN, CLAMP))}

    def tail_definition(x: Tensor, f: Tensor, d: Tensor, noise: Tensor, bias: Tensor) -> Tensors:
        return {"y": _ended(upfirdn2d_reference(x, f, resample), d, noise, bias)}

    def theirs(x: Tensor, f: Tensor, d: Tensor, noise: Tensor, bias: Tensor) -> Tensor:
        y = nvidia().upfirdn2d(x, f, **arguments)
        y = nvidia().fma(y, d.to(y.dtype)[:, :, None, None], noise.to(y.dtype))
        return nvidia().bias_act(y, bias, act="lrelu", clamp=CLAMP)

    rivals = {"reference": definition, "compiled": compiled(definition)}
    rivals["nvidia"] = lambda x, f: nvidia().upfirdn2d(x, f, **arguments)
    table = f"upfirdn2d_up{filter.up}_down{filter.down}_4" if channels_last and C % 8 == 0 else "upfirdn2d"
    candidates = partial(_of_table, table, forward) if filter.taps == 4 else None
    shared = partial(Case, "upfirdn2d", layer=layer, dtype=dtype, tensors=tensors)
    yield shared("forward", run=forward, reference=definition, rivals=rivals, candidates=candidates)
    if filter.name == "after up-convolution" and channels_last and C % 8 == 0:
        rivals = {"reference": tail_definition, "compiled": compiled(tail_definition), "nvidia": theirs}
        yield shared("forward with tail", run=forward_and_tail, reference=tail_definition, rivals=rivals)


def tail(N: int, R: int, C: int, dtype: torch.dtype, channels_last: bool = True) -> Iterator[Case]:
    """What surrounds the convolution of a modulated layer: its tail, the scale before it, and the gradients of both."""

    def tensors(random: Random) -> Tensors:
        image = partial(random.normal, N, C, R, R, dtype=dtype, channels_last=channels_last)
        given = {"u": _set_outliers(image()), "d": 1 + random.normal(N, C).clamp(-2, 2) / 4}
        given |= {"noise": random.normal(N, R * R), "bias": random.normal(C)}
        y = _ended(*(t.double() for t in given.values())).to(dtype)
        return given | {"y": y, "dy": image(), "t": image()}

    def forward(u: Tensor, d: Tensor, noise: Tensor, bias: Tensor) -> Tensors:
        return {"y": epilogue.forward(u, d, noise, bias, ALPHA, GAIN, CLAMP)}

    def definition(u: Tensor, d: Tensor, noise: Tensor, bias: Tensor) -> Tensors:
        return {"y": _ended(u, d, noise, bias)}

    def gradient(dy: Tensor, y: Tensor, d: Tensor, noise: Tensor, bias: Tensor) -> Tensors:
        every = dict(of_u=True, of_d=True, of_noise=True, of_bias=True)
        return dict(zip(("du", "dd", "dnoise", "dbias"), epilogue.backward(dy, y, d, noise, bias, ALPHA, GAIN, CLAMP, **every)))

    def gradient_definition(u: Tensor, d: Tensor, noise: Tensor, bias: Tensor, dy: Tensor) -> Tensors:
        return _gradients(_ended, {"u": u, "d": d, "noise": noise, "bias": bias}, dy)

    def scale(u: Tensor, d: Tensor) -> Tensors:
        return {"y": epilogue.scale(u, d)}

    def scale_definition(u: Tensor, d: Tensor) -> Tensors:
        return {"y": u * d.to(u.dtype)[:, :, None, None]}

    def scale_gradient(t: Tensor, dy: Tensor, d: Tensor) -> Tensors:
        return dict(zip(("dx", "ds", "xs"), epilogue.scale_backward(t, dy, d, of_x=True, of_s=True, again=True)))

    def scale_gradient_definition(t: Tensor, dy: Tensor, d: Tensor) -> Tensors:
        d = d[:, :, None, None]
        return {"dx": t * d, "ds": (t * dy).sum([2, 3]), "xs": dy * d}

    def dot(t: Tensor, dy: Tensor) -> Tensors:
        return {"sum": epilogue.dot(t, dy)}

    def dot_definition(t: Tensor, dy: Tensor) -> Tensors:
        return {"sum": (t * dy).sum([2, 3])}

    shared = partial(Case, layer=named(N, R, C, dtype, channels_last), dtype=dtype, tensors=tensors)
    rivals = {"reference": definition, "compiled": compiled(definition)}
    yield shared("tail", "forward", run=forward, reference=definition, rivals=rivals)
    yield shared("tail", "gradient", run=gradient, reference=gradient_definition)
    yield shared("scale", "forward", run=scale, reference=scale_definition, rivals={"reference": scale_definition})
    yield shared("scale", "gradient", run=scale_gradient, reference=scale_gradient_definition)
    yield shared("dot", "forward", run=dot, reference=dot_definition)


def to_rgb(N: int, R: int, C: int, dtype: torch.dtype, channels_last: bool = True) -> Iterator[Case]:
    """The kernels of ToRGB, and their gradients; cuDNN's way is a scale, a 1x1 convolution and a tail."""

    def tensors(random: Random) -> Tensors:
        weight, styles = random.normal(3, C) / sqrt(C), 1 + random.normal(N, C) / 4
        given = {"x": random.normal(N, C, R, R, dtype=dtype, channels_last=channels_last), "bias": random.normal(3)}
        given |= {"weight": weight, "styles": styles, "w": weight * styles[:, None]}
        return given | {"dy": random.normal(N, 3, R, R, dtype=dtype)}

    def forward(x: Tensor, w: Tensor, bias: Tensor) -> Tensors:
        return {"y": rgb.forward(x, w, bias, clamp=1.0)}

    def definition(x: Tensor, w: Tensor, bias: Tensor) -> Tensors:
        u = torch.einsum("noi,nihw->nohw", w.to(x.dtype), x)
        return {"y": bias_act_reference(u, bias.to(x.dtype), 1, "linear", 0.0, 1.0, 1.0)}

    def cudnn(x: Tensor, weight: Tensor, styles: Tensor, bias: Tensor) -> Tensor:
        u = F.conv2d(epilogue.scale(x, styles), weight.to(x.dtype)[:, :, None, None])
        return epilogue.forward(u, None, None, bias, 1.0, 1.0, 1.0)

    def data_gradient(dy: Tensor, w: Tensor) -> Tensors:
        return {"dx": rgb.data_gradient(dy, w, channels_last)}

    def data_gradient_definition(dy: Tensor, w: Tensor) -> Tensors:
        return {"dx": torch.einsum("noi,nohw->nihw", w.to(dy.dtype), dy)}

    def weight_gradient(dy: Tensor, x: Tensor) -> Tensors:
        return {"dw": rgb.weight_gradient(dy, x)}

    def weight_gradient_definition(dy: Tensor, x: Tensor) -> Tensors:
        return {"dw": torch.einsum("nohw,nihw->noi", dy, x)}

    shared = partial(Case, "to_rgb", layer=named(N, R, C, dtype, channels_last), dtype=dtype, tensors=tensors)
    for order, run, definition, others in (
        ("forward", forward, definition, {"compiled": compiled(definition), "cudnn": cudnn}),
        ("data gradient", data_gradient, data_gradient_definition, {}),
        ("weight gradient", weight_gradient, weight_gradient_definition, {}),
    ):
        yield shared(order, run=run, reference=definition, rivals={"reference": definition} | others)


def batch_norm(
    N: int, R: int, C: int, up: int, dtype: torch.dtype, channels_last: bool = True
) -> Iterator[Case]:
    """scale_shift_act with ReLU, of each sample's own scale and shift: forward, gradient, second order."""
    layer = f"up {named(N, R, C, dtype, channels_last)}" if up == 2 else named(N, R, C, dtype, channels_last)

    def tensors(random: Random) -> Tensors:
        image = partial(random.normal, dtype=dtype, channels_last=channels_last)
        x, scale, shift = image(N, C, R, R), 1 + random.normal(N, C).clamp(-2, 2) / 4, random.normal(N, C)
        # on the kink, rounding decides on the slope
        a, b = scale[:, :, None, None], shift[:, :, None, None]
        x.copy_(torch.where((x * a + b).abs() < 0.01, (1 - b) / a, x))
        return {"x": x, "scale": scale, "shift": shift, "dy": image(N, C, R * up, R * up)}

    def forward(x: Tensor, scale: Tensor, shift: Tensor) -> Tensors:
        return {"y": normalization.forward(x, scale, shift, "relu", up)}

    def definition(x: Tensor, scale: Tensor, shift: Tensor) -> Tensors:
        return {"y": scale_shift_act_reference(x, scale, shift, "relu", up)}

    def gradient(dy: Tensor, x: Tensor, scale: Tensor, shift: Tensor) -> Tensors:
        every = dict(of_x=True, of_scale=True, of_shift=True)
        return dict(zip(("dx", "dscale", "dshift"), normalization.backward(dy, x, scale, shift, "relu", up, **every)))

    def gradient_definition(x: Tensor, scale: Tensor, shift: Tensor, dy: Tensor) -> Tensors:
        return _gradients(lambda x, scale, shift: definition(x, scale, shift)["y"], dict(x=x, scale=scale, shift=shift), dy)

    def twice(impl: str) -> Callable[..., Tensors]:
        def run(x: Tensor, scale: Tensor, shift: Tensor, dy: Tensor) -> Tensors:
            return derivatives(lambda x, scale: scale_shift_act(x, scale, shift, up=up, impl=impl), [x, scale], dy)

        return run

    shared = partial(Case, "scale_shift_act", layer=layer, dtype=dtype, tensors=tensors)
    rivals = {"reference": definition, "compiled": compiled(definition)}
    yield shared("forward", run=forward, reference=definition, rivals=rivals)
    yield shared("gradient", run=gradient, reference=gradient_definition)
    yield shared("second order", run=twice("triton"), reference=twice("reference"), fused=True)


def filtered_layer(
    N: int, R: int, C: int, dtype: torch.dtype, channels_last: bool = True, taps: int = 12
) -> Iterator[Case]:
    """filtered_lrelu at twice the rate, between filters of 12 taps, as StyleGAN3 has it; its gradients, once and twice."""
    padding = [taps - 1, taps - 2] * 2

    def tensors(random: Random) -> Tensors:
        image = partial(random.normal, N, C, R, R, dtype=dtype, channels_last=channels_last)
        # where a channel has one sign, and the filter as well, nothing comes near the kink, where rounding decides
        sign = random.normal(C).sign().to(dtype)
        x = image().abs_().mul_(sign[:, None, None])
        f = setup_filter(random.normal(taps).abs().cpu(), device=random.device)
        return {"x": x, "b": sign * random.normal(C, dtype=dtype).abs(), "f": f, "dy": image()}

    def layer(x: Tensor, b: Tensor, f: Tensor, impl: str) -> Tensor:
        return filtered_lrelu(x, f, f, b, up=2, down=2, padding=padding, clamp=CLAMP, impl=impl)

    def forward(impl: str) -> Callable[..., Tensors]:
        def run(x: Tensor, b: Tensor, f: Tensor) -> Tensors:
            return {"y": layer(x, b, f, impl)}

        return run

    def once(impl: str) -> Callable[..., Tensors]:
        def run(x: Tensor, b: Tensor, f: Tensor, dy: Tensor) -> Tensors:
            return _gradients(partial(layer, f=f, impl=impl), {"x": x, "b": b}, dy)

        return run

    def twice(impl: str) -> Callable[..., Tensors]:
        def run(x: Tensor, b: Tensor, f: Tensor, dy: Tensor) -> Tensors:
            return derivatives(lambda x, b: layer(x, b, f, impl), [x, b], dy)

        return run

    name = named(N, R, C, dtype, channels_last)
    shared = partial(Case, "filtered_lrelu", layer=name, dtype=dtype, tensors=tensors, fused=True)
    for order, taken in (("forward", forward), ("forward and gradients", once)):
        yield shared(order, run=taken("triton"), reference=taken("reference"), rivals={"reference": taken("reference")})
    yield shared("second order", run=twice("triton"), reference=twice("reference"))


def convolution(N: int, R: int, C: int, dtype: torch.dtype) -> Iterator[Case]:
    """The matrix product: alone, with the tail of a layer, and both gradients; nothing where there is no kernel."""
    if product.why_not(dtype, (N, C, R, R), C, SAME) is not None:
        return
    backwards = SAME.adjoint((R, R))

    def tensors(random: Random) -> Tensors:
        image = partial(random.normal, N, C, R, R, dtype=dtype, channels_last=True)
        w = random.normal(C, C, 3, 3, dtype=dtype, channels_last=True) / sqrt(9 * C)
        given = {"x": image(), "w": w, "d": 1 + random.normal(N, C) / 4, "noise": random.normal(N, R * R)}
        return given | {"bias": _some_large(random.normal(C)), "dy": image()}

    def definition(x: Tensor, w: Tensor) -> Tensors:
        return {"y": F.conv2d(x, w, padding=1)}

    def forward(x: Tensor, w: Tensor, blocks=None) -> Tensors:
        return {"y": product.convolve(x, w, SAME, blocks=blocks)}

    def tail_definition(x: Tensor, w: Tensor, d: Tensor, noise: Tensor, bias: Tensor) -> Tensors:
        return {"y": _ended(F.conv2d(x, w, padding=1), d, noise, bias)}

    def forward_and_tail(x: Tensor, w: Tensor, d: Tensor, noise: Tensor, bias: Tensor) -> Tensors:
        return {"y": product.convolve(x, w, SAME, resampling.Tail(d, noise, bias, ALPHA, GAIN, CLAMP))}

    def cudnn_and_tail(x: Tensor, w: Tensor, d: Tensor, noise: Tensor, bias: Tensor) -> Tensor:
        return epilogue.forward(F.conv2d(x, w, padding=1), d, noise, bias, ALPHA, GAIN, CLAMP)

    def data_gradient(dy: Tensor, w: Tensor, blocks=None) -> Tensors:
        return {"dx": product.convolve(dy, w, backwards, blocks=blocks)}

    def data_gradient_definition(dy: Tensor, w: Tensor) -> Tensors:
        return {"dx": F.conv_transpose2d(dy, w, padding=1)}

    def weight_gradient(x: Tensor, dy: Tensor, blocks=None) -> Tensors:
        return {"dw": product.weight_gradient(x, dy, SAME, blocks)}

    def weight_gradient_definition(x: Tensor, dy: Tensor) -> Tensors:
        return {"dw": torch.nn.grad.conv2d_weight(x, [C, C, 3, 3], dy, padding=1)}

    shared = partial(
        Case, "convolution", layer=named(N, R, C, dtype), dtype=dtype, tensors=tensors, flops=conv_flops(N, R * R, C, C)
    )
    # of 32 channels, tiles are of pixels two by two: there is one way to cut them
    yield shared(
        "forward", run=forward, reference=definition, rivals={"cudnn": definition},
        candidates=partial(_tiles, "convolution forward", forward, R, C) if C >= 64 else None,
    )  # fmt: skip
    yield shared(
        "forward with tail", run=forward_and_tail, reference=tail_definition,
        rivals={"reference": tail_definition, "compiled": compiled(tail_definition), "cudnn": cudnn_and_tail},
    )  # fmt: skip
    yield shared(
        "data gradient", run=data_gradient, reference=data_gradient_definition,
        rivals={"cudnn": data_gradient_definition},
        candidates=partial(_tiles, "convolution data gradient", data_gradient, R, C) if C >= 64 else None,
    )  # fmt: skip
    yield shared(
        "weight gradient", run=weight_gradient, reference=weight_gradient_definition,
        rivals={"cudnn": weight_gradient_definition},
        candidates=partial(_splits, weight_gradient, N, R, C) if C >= 64 else None,
    )  # fmt: skip


def resampling_convolution(N: int, R: int, C: int, dtype: torch.dtype) -> Iterator[Case]:
    """The products between C channels at R and those at half of it: down, up, and the gradient of the weight.

    Of 3x3 taps, or of 6x6 where the filter is in them; nothing where there is no kernel.
    """
    O, S = min(2 * C, 512), R // 2
    merged = O <= FEW_CHANNELS
    down = Geometry((6, 6), 2, (2, 2)) if merged else Geometry((3, 3), 2)
    large, k = (R if merged else R + 2), down.kernel[0]
    up = down.adjoint((large, large))
    if product.why_not(dtype, (N, C, large, large), O, down) is not None:
        return

    def tensors(random: Random) -> Tensors:
        image = partial(random.normal, dtype=dtype, channels_last=True)
        given = {"x": image(N, C, large, large), "y": image(N, O, S, S)}
        return given | {"w": image(O, C, k, k) / sqrt(k * k * C)}

    def run_down(x: Tensor, w: Tensor) -> Tensors:
        return {"y": product.convolve(x, w, down)}

    def down_definition(x: Tensor, w: Tensor) -> Tensors:
        return {"y": F.conv2d(x, w, None, 2, down.padding)}

    def run_up(y: Tensor, w: Tensor) -> Tensors:
        return {"x": product.convolve(y, w, up)}

    def up_definition(y: Tensor, w: Tensor) -> Tensors:
        return {"x": F.conv_transpose2d(y, w, None, 2, up.padding, up.output_padding)}

    def weight_gradient(x: Tensor, y: Tensor) -> Tensors:
        return {"dw": product.weight_gradient(x, y, down)}

    def weight_gradient_definition(x: Tensor, y: Tensor) -> Tensors:
        return {"dw": torch.nn.grad.conv2d_weight(x, [O, C, k, k], y, 2, down.padding)}

    shared = partial(
        Case, "resampling convolution", layer=f"{k}x{k} {named(N, R, C, dtype)}", dtype=dtype, tensors=tensors,
        flops=conv_flops(N, S * S, C, O, k * k),
    )  # fmt: skip
    for order, run, definition in (
        ("down", run_down, down_definition),
        ("up", run_up, up_definition),
        ("weight gradient", weight_gradient, weight_gradient_definition),
    ):
        yield shared(order, run=run, reference=definition, rivals={"cudnn": definition})


def convolution_with_own_weights(N: int, R: int, C: int, dtype: torch.dtype) -> Iterator[Case]:
    """The matrix product with weights of each sample's own."""

    def tensors(random: Random) -> Tensors:
        w = random.normal(N * C, C, 3, 3, dtype=dtype, channels_last=True) / sqrt(9 * C)
        return {"x": random.normal(N, C, R, R, dtype=dtype, channels_last=True), "w": w}

    def run(x: Tensor, w: Tensor) -> Tensors:
        return {"y": product.convolve(x, w.unflatten(0, (N, C)), SAME)}

    def definition(x: Tensor, w: Tensor) -> Tensors:
        y = F.conv2d(x.reshape(1, N * C, R, R), w, padding=1, groups=N)
        return {"y": y.reshape(N, C, R, R)}

    flops = conv_flops(N, R * R, C, C)
    yield Case("convolution", "forward with own weights", named(N, R, C, dtype), dtype, tensors, run, definition, flops)


# how a layer of the generator is called; and what the table of backends calls it
KINDS = {
    "same": dict(padding=1, act="lrelu", clamp=CLAMP),
    "up": dict(padding=1, act="lrelu", clamp=CLAMP, up=2, flip_weight=False),
    "rgb": dict(demodulate=False, act="linear", clamp=CLAMP),
}
BACKENDS = {"same": "modulated same", "up": "modulated up", "rgb": "to_rgb"}


def modulated_layer(N: int, R: int, C: int, kind: str, impl: str, dtype: torch.dtype) -> Iterator[Case]:
    """A whole layer of the generator with C output channels at R: forward, and with its gradients taken once."""
    layer, definition, theirs, shared = _layer(N, R, C, kind, dtype)

    def forward(f: Callable[..., Tensor]) -> Callable[..., Tensors]:
        def run(x: Tensor, weight: Tensor, styles: Tensor, noise: Tensor, bias: Tensor, taps: Tensor) -> Tensors:
            with torch.no_grad():
                return {"y": f(x=x, weight=weight, styles=styles, noise=noise, bias=bias, taps=taps)}

        return run

    def gradients(f: Callable[..., Tensor]) -> Callable[..., Tensors]:
        def run(
            x: Tensor, weight: Tensor, styles: Tensor, noise: Tensor, bias: Tensor, taps: Tensor, dy: Tensor
        ) -> Tensors:
            inputs = dict(x=x, weight=weight, styles=styles, bias=bias)
            if kind == "rgb":
                return _gradients(partial(f, noise=noise, taps=taps), inputs, dy)
            return _gradients(partial(f, taps=taps), inputs | dict(noise=noise), dy)

        return run

    for order, taken in (("forward", forward), ("forward and gradients", gradients)):
        rivals = {"reference": taken(definition), "compiled": taken(compiled(definition)), "nvidia": taken(theirs)}
        yield shared(order, impl, run=taken(partial(layer, impl=impl)), reference=taken(definition), rivals=rivals)


def second_order_of_layer(N: int, R: int, C: int, kind: str, impl: str, dtype: torch.dtype) -> Case:
    """A layer differentiated twice by its images and its styles, as R1 and path length do."""
    layer, definition, _, shared = _layer(N, R, C, kind, dtype)

    def twice(f: Callable[..., Tensor]) -> Callable[..., Tensors]:
        def run(
            x: Tensor, weight: Tensor, styles: Tensor, noise: Tensor, bias: Tensor, taps: Tensor, dy: Tensor
        ) -> Tensors:
            return derivatives(lambda x, styles: f(x, weight, styles, noise, bias, taps), [x, styles], dy)

        return run

    return shared("second order", impl, run=twice(partial(layer, impl=impl)), reference=twice(definition))


def _layer(N: int, R: int, C: int, kind: str, dtype: torch.dtype):
    """A layer as a function of its tensors, its definition, NVIDIA's, and what makes a case of them."""
    arguments = KINDS[kind]
    up, size = arguments.get("up", 1), 1 if kind == "rgb" else 3
    I, O = min(2 * C, 512) if up == 2 else C, 3 if kind == "rgb" else C
    # the images of 16 bits come channels last, those of fp32 in the order of their dimensions
    channels_last = dtype != FP32

    def tensors(random: Random) -> Tensors:
        image = partial(random.normal, dtype=dtype, channels_last=channels_last)
        styles = 1 + random.normal(N, I) / 4
        return {
            "x": image(N, I, R // up, R // up),
            "weight": random.normal(O, I, size, size),
            "styles": styles / sqrt(I) if kind == "rgb" else styles,
            "noise": random.normal(N, 1, R, R),
            "bias": random.normal(O),
            "taps": setup_filter([1, 3, 3, 1], device=random.device),
            "dy": image(N, O, R, R),
        }

    def layer(x: Tensor, weight: Tensor, styles: Tensor, noise: Tensor, bias: Tensor, taps: Tensor, impl: str) -> Tensor:
        noise = None if kind == "rgb" else noise
        return modulated_conv2d_bias_act(x, weight, styles, noise, bias, resample_filter=taps, impl=impl, **arguments)

    def definition(x: Tensor, weight: Tensor, styles: Tensor, noise: Tensor, bias: Tensor, taps: Tensor) -> Tensor:
        # without what is around it at the public door, which torch.compile would stumble over
        noise = None if kind == "rgb" else noise
        spec = ConvolutionSpec(up, 1, whole_padding((4, 4), up, 1, (size // 2,) * 4), flip_weight=up == 1)
        numbers = completed(arguments["act"], None, None, CLAMP)
        return modulated_reference(x, weight, styles, noise, bias, taps, spec, kind != "rgb", arguments["act"], *numbers)

    def theirs(x: Tensor, weight: Tensor, styles: Tensor, noise: Tensor, bias: Tensor, taps: Tensor) -> Tensor:
        convolved = {name: value for name, value in arguments.items() if name not in ("act", "clamp")}
        noise = None if kind == "rgb" else noise
        y = nvidia().modulated_conv2d(x, weight, styles, noise, resample_filter=taps, fused_modconv=False, **convolved)
        return nvidia().bias_act(y, bias.to(y.dtype), act=arguments["act"], clamp=CLAMP)

    def shared(order: str, impl: str, **functions) -> Case:
        name = f"{kind} {impl} {named(N, R, C, dtype, channels_last)}"
        entry = _entry(BACKENDS[kind], N, R // up, I, O, dtype, channels_last)
        return Case("modulated layer", order, name, dtype, tensors, fused=True, entry=entry, **functions)

    return layer, definition, theirs, shared


# a convolution of the discriminator: of its first in a block, of its second, of its shortcut
CONVOLUTIONS = {"same": dict(padding=1), "down": dict(padding=1, down=2), "shortcut": dict(down=2)}


def convolution_layer(N: int, R: int, C: int, kind: str, impl: str, dtype: torch.dtype) -> Iterator[Case]:
    """A convolution of the discriminator from C channels at R: gradients taken once and twice."""
    arguments, size = CONVOLUTIONS[kind], 1 if kind == "shortcut" else 3
    down = arguments.get("down", 1)
    O, channels_last = min(2 * C, 512) if down == 2 else C, dtype != FP32

    def tensors(random: Random) -> Tensors:
        image = partial(random.normal, dtype=dtype, channels_last=channels_last)
        w = random.normal(O, C, size, size, dtype=dtype) / (size * sqrt(C))
        taps = setup_filter([1, 3, 3, 1], device=random.device)
        return {"x": image(N, C, R, R), "w": w, "taps": taps, "dy": image(N, O, R // down, R // down)}

    def convolved(x: Tensor, w: Tensor, taps: Tensor, impl: str) -> Tensor:
        return conv2d_resample(x, w, taps, impl=impl, **arguments)

    def once(impl: str) -> Callable[..., Tensors]:
        def run(x: Tensor, w: Tensor, taps: Tensor, dy: Tensor) -> Tensors:
            return _gradients(partial(convolved, taps=taps, impl=impl), {"x": x, "w": w}, dy)

        return run

    def twice(impl: str) -> Callable[..., Tensors]:
        def run(x: Tensor, w: Tensor, taps: Tensor, dy: Tensor) -> Tensors:
            return derivatives(lambda x: convolved(x, w, taps, impl), [x], dy)

        return run

    shared = partial(
        Case, "conv2d_resample", layer=f"{kind} {impl} {named(N, R, C, dtype, channels_last)}", dtype=dtype,
        tensors=tensors, fused=True, entry=_entry(kind, N, R, C, O, dtype, channels_last),
    )  # fmt: skip
    yield shared("forward and gradients", run=once(impl), reference=once("reference"))
    yield shared("second order", run=twice(impl), reference=twice("reference"))


def _entry(kind: str, N: int, R: int, I: int, O: int, dtype: torch.dtype, channels_last: bool) -> str:
    """What the table of backends calls a layer whose input is R x R."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return backends.layer(kind, torch.empty(N, I, R, R, dtype=dtype, device="meta", memory_format=memory_format), O)


def _ended(u: Tensor, d: Tensor, noise: Tensor, bias: Tensor) -> Tensor:
    """The tail of a layer as it is defined: clamp(gain * lrelu(u * d + noise + bias)), all in the dtype of u."""
    d, noise, bias = (t.to(u.dtype) for t in (d, noise, bias))
    u = u * d[:, :, None, None] + noise.reshape(len(noise), 1, *u.shape[2:])
    return bias_act_reference(u, bias, 1, "lrelu", ALPHA, GAIN, CLAMP)


def _gradients(f: Callable[..., Tensor], inputs: Tensors, dy: Tensor) -> Tensors:
    """f's gradients, taken once."""
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    gradients = torch.autograd.grad(f(**leaves), list(leaves.values()), dy)
    return {f"d{name}": g for name, g in zip(leaves, gradients)}


def _set_outliers(x: Tensor) -> Tensor:
    """`x`, some of whose numbers now are far beyond the clamp, whatever the slope, and none near it."""
    x[:, :, ::7, ::5] = 2000 * x[:, :, ::7, ::5].sign()
    return x


def _some_large(bias: Tensor) -> Tensor:
    """`bias` with every 16th channel far beyond the clamp."""
    bias[::16] = 2000
    return bias


def _of_backends(layer: Callable[..., Iterator[Case]]) -> Case:
    """The gradients of a layer as it runs by itself, and by each name as its candidates.

    Args:
        layer: Its cases, given `impl`.
    """
    names = ("fastest", "cudnn", "triton")
    own, *named = (next(case for case in layer(impl=impl) if case.order == "forward and gradients") for impl in names)
    return replace(own, candidates=lambda: [(Choice(own.entry, n), case.run) for n, case in zip(names[1:], named)])


def _of_table(name: str, run: Callable[..., Tensors]) -> Iterable[tuple[Choice, Callable[..., Tensors]]]:
    """`run` with each candidate of a table's entry in its place."""
    for value in TABLE_CANDIDATES[name]:
        yield Choice(name, value), _with_entry(name, value, run)


def _with_entry(name: str, value: tuple[int, ...], run: Callable[..., Tensors]) -> Callable[..., Tensors]:
    @wraps(run)
    def replaced(**tensors: Tensor) -> Tensors:
        device = next(iter(tensors.values())).device
        with patch.dict(TABLE.setdefault(architecture(device), {}), {name: value}):
            return run(**tensors)

    return replaced


def _tiles(table: str, run: Callable[..., Tensors], R: int, C: int) -> Iterable[tuple[Choice, Callable[..., Tensors]]]:
    """`run` with each tile that fits the layer."""
    for tile in TILES:
        if C % tile.BO == 0 and R >= max(tile.BH, tile.BW):
            value = (tile.BH, tile.BW, tile.BO, tile.BI, tile.num_warps, tile.num_stages)
            yield Choice(table, value), _with_blocks(run, tile)


def _splits(run: Callable[..., Tensors], N: int, R: int, C: int) -> Iterable[tuple[Choice, Callable[..., Tensors]]]:
    chosen = product.split(N, R, R, C, C)
    for parts in PARTS:
        value = (chosen.BN, chosen.BH, chosen.BW, chosen.BO, chosen.BI, parts, chosen.num_warps, chosen.num_stages)
        yield Choice("convolution weight gradient", value), _with_blocks(run, replace(chosen, parts=parts))


def _with_blocks(run: Callable[..., Tensors], blocks: object) -> Callable[..., Tensors]:
    @wraps(run)
    def chosen(**tensors: Tensor) -> Tensors:
        return run(**tensors, blocks=blocks)

    return chosen
