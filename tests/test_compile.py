"""torch.compile takes each operator whole, and the numbers stay the same: value and first gradients, to the bit."""

import fastdgl_kernels as ops
import pytest
import torch
from devices import DEVICE, on_device
from torch import nn

pytestmark = pytest.mark.usefixtures("triton")

F = ops.setup_filter([1, 3, 3, 1], device=DEVICE)

OPERATORS = {
    "bias_act": lambda x, b, w, s, impl: ops.bias_act(x, b, act="swish", clamp=1.0, impl=impl),
    "upfirdn2d": lambda x, b, w, s, impl: ops.upfirdn2d(x, F, up=[2, 1], down=2, padding=[2, 1], impl=impl),
    "downsample2d": lambda x, b, w, s, impl: ops.downsample2d(x, F, impl=impl),
    "filtered_lrelu": lambda x, b, w, s, impl: ops.filtered_lrelu(x, F, F, b, up=2, down=2, padding=3, impl=impl),
    "modulated_conv2d": lambda x, b, w, s, impl: ops.modulated_conv2d(
        x, w, s, up=2, padding=1, resample_filter=F, impl=impl),
    "layer": lambda x, b, w, s, impl: ops.modulated_conv2d_bias_act(
        x, w, s, noise=s.sum() * torch.ones_like(x[:, :1]), bias=b, padding=1, clamp=256, impl=impl),
    "scale_shift_act": lambda x, b, w, s, impl: ops.scale_shift_act(x, s, b, up=2, impl=impl),
    "ToRGB": lambda x, b, w, s, impl: ops.modulated_conv2d_bias_act(
        x, w[:3, :, :1, :1], s, bias=b[:3], demodulate=False, act="linear", clamp=1.0, impl=impl),
    "layer that upsamples": lambda x, b, w, s, impl: ops.modulated_conv2d_bias_act(
        x, w, s, bias=b, up=2, padding=1, resample_filter=F, impl=impl),
}  # fmt: skip


def inputs(dtype=torch.float32, N=2):
    x = on_device(N, 8, 4, 4, seed=1, dtype=dtype, channels_last=dtype != torch.float32)
    b = on_device(8, seed=2, dtype=dtype)
    w, s = on_device(8, 8, 3, 3, seed=3), on_device(N, 8, seed=4)
    return [t.requires_grad_() for t in (x, b, w, s)]


def compiled(f, **options):
    torch._dynamo.reset()
    return torch.compile(f, backend="aot_eager", fullgraph=True, **options)


def value_and_gradients(f, tensors):
    y = f(*tensors)
    return y, *torch.autograd.grad(y.float().square().sum(), tensors, allow_unused=True)


def assert_same(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)
    assert got[0].stride() == expected[0].stride()


# interpreted, the filters of filtered_lrelu take their time
@pytest.mark.parametrize("name, impl", [
    (name, impl) for name in OPERATORS for impl in ("reference", "triton")
    if (name, impl) != ("filtered_lrelu", "triton")
])  # fmt: skip
def test_a_compiled_operator_gives_the_same_numbers(name, impl):
    def f(*tensors):
        return OPERATORS[name](*tensors, impl) * 2

    tensors = inputs()
    assert_same(value_and_gradients(compiled(f), tensors), value_and_gradients(f, tensors))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bits_keep_their_memory_format(dtype):
    def f(x, b, w, s):
        x = ops.modulated_conv2d_bias_act(x, w, s, bias=b, up=2, padding=1, resample_filter=F, clamp=256, impl="triton")
        return ops.bias_act(ops.downsample2d(x, F, impl="triton"), b, act="lrelu", impl="triton")

    tensors = inputs(dtype)
    got, expected = value_and_gradients(compiled(f), tensors), value_and_gradients(f, tensors)
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() <= 4 * torch.finfo(dtype).eps * b.abs().max()


@pytest.mark.parametrize("I, O, arguments", [(64, 64, {}), (64, 32, dict(up=2)), (64, 128, dict(down=2))], ids=str)
def test_a_convolution_of_our_own(I, O, arguments):
    x = on_device(1, I, 16, 32, seed=1, dtype=torch.float16, channels_last=True).requires_grad_()
    w, s, b = on_device(O, I, 3, 3, seed=2) / 24, on_device(1, I, seed=3), on_device(O, seed=4)
    tensors = [x, *(t.requires_grad_() for t in (w, s, b))]

    def f(x, w, s, b):
        y = ops.modulated_conv2d_bias_act(x, w, s, bias=b, padding=1, resample_filter=F, impl="triton", **arguments)
        return y + ops.conv2d_resample(x, w.half(), F, padding=1, impl="triton", **arguments)

    got, expected = value_and_gradients(compiled(f), tensors), value_and_gradients(f, tensors)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype and (a - b).abs().max() <= 4 * torch.finfo(torch.float16).eps * b.abs().max()


def test_conv2d_resample_by_its_own_derivatives():
    def f(x, b, w, s):
        return ops.conv2d_resample(x, w, F, down=2, padding=1, impl="cudnn")

    tensors = inputs()
    assert_same(value_and_gradients(compiled(f), tensors), value_and_gradients(f, tensors))


def test_scale_shift_act():
    def f(x, b, w, s):
        return ops.scale_shift_act(x, s, b, up=2)

    tensors = inputs()
    assert_same(value_and_gradients(compiled(f), tensors), value_and_gradients(f, tensors))


def test_other_sizes_may_follow():
    def f(x, b, w, s):
        y = ops.modulated_conv2d(x, w, s, padding=1, impl="triton")
        y = ops.conv2d_resample(y, w, padding=1, impl="fastest")
        return ops.bias_act(ops.upfirdn2d(y, F, padding=[2, 1], impl="reference"), b, act="lrelu", impl="triton")

    g = compiled(f, dynamic=True)
    for N in (2, 3):
        tensors = inputs(N=N)
        assert_same(value_and_gradients(g, tensors), value_and_gradients(f, tensors))


def test_without_gradients():
    def f(x, b, w, s):
        return ops.bias_act(x, b, act="lrelu", impl="triton")

    tensors = inputs()
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert torch.equal(compiled(f)(*tensors), f(*tensors))


def test_a_module():
    layer = nn.Sequential(nn.Linear(4, 6), ops.FusedLeakyReLU(6)).to(DEVICE)
    x = on_device(3, 4)
    with ops.implementation("triton"):
        assert torch.equal(compiled(layer)(x), layer(x))


def test_bad_input_is_refused_in_the_same_words():
    with pytest.raises(Exception, match="act='none': expected one of"):
        compiled(lambda x: ops.bias_act(x, act="none"))(inputs()[0])


def test_second_derivatives_are_refused_by_pytorch():
    x, b, *_ = inputs()
    y = compiled(lambda x, b: ops.bias_act(x, b, act="swish", impl="triton"))(x, b)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        torch.autograd.grad(dx.sum(), x)
