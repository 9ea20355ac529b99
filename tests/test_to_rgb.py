"""The kernels of ToRGB, on a GPU where there is one, else in Triton's interpreter."""

import pytest
import torch
from devices import DEVICE, every_format, on_device
from fastdgl_kernels import modulated_conv2d, modulated_conv2d_bias_act
from fastdgl_kernels.modulation import to_rgb_kernel
from numerics import assert_as_accurate, assert_close, assert_errs_as_little, normal

# one channel and one pixel, odd, groups of 8, more channels than a tile has, more pixels than a program sums over
SHAPES = [(1, 1, 1, 1, 1), (2, 3, 5, 6, 7), (2, 4, 72, 3, 5), (1, 2, 16, 9, 8), (1, 3, 3, 67, 65)]


def made(N, O, I, H, W, dtype=torch.float32, channels_last=False):
    """x, weight, styles and bias."""
    x = on_device(N, I, H, W, dtype=dtype, channels_last=channels_last)
    return [x, *(on_device(*shape, seed=seed) for seed, shape in enumerate([(O, I, 1, 1), (N, I), (O,)], 1))]


def to_rgb(x, weight, styles, bias, impl="triton", act="linear", **arguments):
    return modulated_conv2d_bias_act(
        x, weight, styles, bias=bias, demodulate=False, act=act, impl=impl, **arguments
    )


def results(tensors, impl, twice, **arguments):
    """Value and gradients, with `twice` the second ones too."""
    inputs = [t.detach().requires_grad_() for t in tensors]
    y = to_rgb(*inputs, impl=impl, **arguments)
    # transposed, as autograd may hand it over; and exact in every dtype
    dy = on_device(*y.shape[:2], y.shape[3], y.shape[2], seed=9, dtype=torch.bfloat16).to(y.dtype).mT.requires_grad_()
    first = torch.autograd.grad(y, inputs, dy, create_graph=twice)
    if not twice:
        return y.detach(), *first
    second = torch.autograd.grad(sum(g.double().square().sum() for g in first), [*inputs[:3], dy])
    return y.detach(), *first, *second


@every_format
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_the_reference(triton, shape, twice, channels_last):
    tensors = made(*shape, channels_last=channels_last)
    got, expected, truth = (
        results([t.to(dtype) for t in tensors], impl, twice, act="lrelu", gain=0.5, clamp=3.0)
        for impl, dtype in (("triton", torch.float32), ("reference", torch.float32), ("reference", torch.float64))
    )
    assert [g.dtype for g in got] == [e.dtype for e in expected]
    assert_errs_as_little(got, expected, truth, terms=tensors[0].numel() if twice else 0)


@every_format
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
def test_is_as_accurate_as_the_reference_in_16_bits(triton, dtype, channels_last):
    x, *masters = made(2, 3, 37, 6, 7, dtype, channels_last)
    assert_as_accurate(
        lambda x: to_rgb(x, *(t.to(torch.promote_types(t.dtype, x.dtype)) for t in masters), gain=1.3),
        lambda x: to_rgb(x, *(t.to(x.dtype) for t in masters), "reference", gain=1.3),
        [x],
        # the interpreter cuts off what does not fit into bfloat16, where a GPU rounds
        factor=4 if dtype == torch.bfloat16 and DEVICE == "cpu" else 2,
    )


@every_format
def test_sums_gradients_in_fp32_and_in_one_order(triton, channels_last):
    tensors = made(2, 3, 5, 40, 30, torch.float16, channels_last)
    got, again = (results(tensors, "triton", False) for _ in range(2))
    expected = results([t.double() for t in tensors], "reference", False)
    for number, (g, a, e) in enumerate(zip(got, again, expected)):
        assert torch.equal(g, a)
        assert g.dtype == (torch.float16 if number < 2 else torch.float32)
        if number >= 2:
            assert_close(g.double(), e, f"result {number}", tolerance=16 * torch.finfo(torch.float32).eps)


@every_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=lambda dtype: str(dtype)[6:])
def test_images_are_channels_first_and_gradients_lie_like_features(triton, dtype, channels_last):
    x, *rest = made(2, 3, 5, 6, 7, dtype, channels_last)
    y = to_rgb(x.requires_grad_(), *rest)
    assert y.is_contiguous()
    assert torch.autograd.grad(y.sum(), x)[0].stride() == x.stride()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=lambda dtype: str(dtype)[6:])
def test_a_clamped_element_has_no_gradient(triton, dtype):
    x, weight, styles, bias = made(2, 3, 5, 6, 7, dtype)
    # 0.3 has no exact form: what is clamped is known by the rounded bound
    bias = torch.full_like(bias, 100).requires_grad_()
    y = to_rgb(x, weight, styles, bias, clamp=0.3)
    assert not torch.autograd.grad(y.sum(), bias)[0].any()


def test_nan_is_not_clamped_away(triton):
    x, *rest = made(2, 3, 5, 6, 7)
    x[0, 2, 3, 3] = torch.nan
    y = to_rgb(x, *rest, clamp=1.0)
    assert y[0, :, 3, 3].isnan().all() and y[1].isfinite().all()


def test_an_empty_batch_gives_an_empty_image(triton):
    x, weight, styles, bias = (t.requires_grad_() for t in made(0, 3, 5, 6, 7))
    y = to_rgb(x, weight, styles, bias)
    assert y.shape == (0, 3, 6, 7)
    assert not torch.autograd.grad(y.sum(), weight)[0].any()


def test_takes_what_is_to_rgb_and_nothing_else(triton, monkeypatch):
    launched = []
    forward = to_rgb_kernel.forward
    monkeypatch.setattr(to_rgb_kernel, "forward", lambda *arguments: launched.append(1) or forward(*arguments))
    x, weight, styles, _ = made(1, 3, 5, 6, 7)
    modulated_conv2d(x, weight, styles, demodulate=False, impl="triton")
    assert launched == [1]
    for change in (
        dict(demodulate=True), dict(noise=normal(6, 7).to(x)), dict(padding=1), dict(up=2), dict(impl="cudnn"),
        dict(weight=normal(5, 5, 1, 1).to(x)), dict(weight=normal(3, 5, 3, 3).to(x)),
    ):  # fmt: skip
        arguments = dict(x=x, weight=weight, styles=styles, demodulate=False, impl="triton")
        modulated_conv2d(**arguments | change)
    assert launched == [1]
