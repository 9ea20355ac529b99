import pytest
import torch
from devices import every_format, on_device
from fastdgl_kernels import bias_act, filtered_lrelu, implementation, setup_filter, upfirdn2d
from numerics import (
    assert_as_accurate,
    assert_golden,
    assert_golden_as_accurately,
    assert_same_derivatives,
    golden_cases,
    golden_id,
    normal,
)

every_golden_case = pytest.mark.parametrize("case", golden_cases("filtered_lrelu"), ids=golden_id)


def recorded(arguments, impl=None):
    return lambda t: filtered_lrelu(t["x"], t.get("fu"), t.get("fd"), t.get("b"), **arguments, impl=impl)


def step_by_step(x, b, fu, fd, up, down, padding, clamp):
    x = upfirdn2d(x + b[:, None, None], fu, up=up, padding=padding, gain=up**2, impl="reference")
    return upfirdn2d(bias_act(x, act="lrelu", clamp=clamp, impl="reference"), fd, down=down, impl="reference")


# up and down factors and their taps, as StyleGAN3 has them
SHAPES = {
    "2-2": (2, 12, 2, 12, [9, 10, 9, 10]),
    "4-2": (4, 24, 2, 12, [20, 21, 20, 21]),
    "1-1": (1, 1, 1, 1, 0),
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def filters(up_taps, down_taps):
    return [setup_filter(normal(taps, seed=taps).abs()) for taps in (up_taps, down_taps)]


@every_golden_case
def test_agrees_with_the_recorded_numbers(case):
    number, arguments = case
    assert_golden("filtered_lrelu", number, ["x", "b"], recorded(arguments))


# the interpreter takes a minute for the steps at four times the resolution; at a smaller size they are below
@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if case[1]["up"] > 2 else (), id=golden_id(case))
                                  for case in golden_cases("filtered_lrelu")])
def test_kernels_agree_with_the_recorded_numbers(case, triton):
    number, arguments = case
    assert_golden_as_accurately(
        "filtered_lrelu", number, ["x", "b"], recorded(arguments, "triton"), recorded(arguments, "reference")
    )


@every_shape
@pytest.mark.parametrize("clamp", [None, 0.8])
def test_is_its_steps_with_every_derivative(shape, clamp):
    up, up_taps, down, down_taps, padding = shape
    fu, fd = filters(up_taps, down_taps)
    inputs = [normal(2, 3, 6, 5), normal(3, seed=1)]
    assert_same_derivatives(
        lambda x, b: filtered_lrelu(x, fu, fd, b, up, down, padding, clamp=clamp),
        lambda x, b: step_by_step(x, b, fu, fd, up, down, padding, clamp),
        inputs,
    )


@every_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_kernels_are_as_accurate_as_the_reference(dtype, channels_last, triton):
    fu, fd = (f.to(on_device(1).device) for f in filters(12, 12))
    x = on_device(1, 8, 4, 4, dtype=dtype, channels_last=channels_last)

    def f(x, b, impl):
        return filtered_lrelu(x, fu, fd, b, 2, 2, [9, 10, 9, 10], clamp=1.0, impl=impl)

    inputs = [x, on_device(8, seed=1, dtype=dtype)]
    assert_as_accurate(lambda *t: f(*t, "triton"), lambda *t: f(*t, "reference"), inputs, factor=3.0)


def test_keeps_nothing_larger_than_its_input():
    fu, fd = filters(12, 12)
    kept = []
    x, b = normal(1, 4, 16, 16).requires_grad_(), normal(4, seed=1).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        y = filtered_lrelu(x, fu, fd, b, 4, 2, [20, 21, 20, 21])
    assert sorted(kept) == [b.numel(), x.numel()]
    y.sum().backward()
    assert x.grad.isfinite().all() and b.grad.isfinite().all()


def test_a_bias_made_from_the_image_is_differentiated_once_by_each_path():
    def f(x):
        return filtered_lrelu(x, b=x.mean([0, 2, 3]))

    def g(x):
        return bias_act(x + x.mean([0, 2, 3])[:, None, None], act="lrelu", impl="reference")

    assert_same_derivatives(f, g, [normal(2, 3, 4, 4)])


def test_backward_keeps_to_the_implementation_of_the_forward():
    x = normal(1, 2, 4, 4).requires_grad_()
    with implementation("reference"):
        y = filtered_lrelu(x)
    with implementation("triton"):
        y.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(fu=torch.ones(2, 2, 2)), "fu must be"),
        (dict(fu=torch.ones(2, 2, device="meta")), "fu must be on the device of x"),
        (dict(fd=torch.ones(2, requires_grad=True)), "fd must not require a gradient"),
        (dict(b=torch.ones(3, dtype=torch.float16)), "b must have the dtype of x"),
        (dict(b=torch.ones(3, dtype=torch.float64, device="meta")), "b must be on the device of x"),
        (dict(fd=[1.0]), "fd must be"),
        (dict(b=torch.ones(4, dtype=torch.float64)), "3 of dimension 1"),
        (dict(clamp=-1), "clamp"),
        (dict(up=0), "up"),
        (dict(padding=[1, 2, 3]), "padding"),
        (dict(padding=-3), "would be empty"),
        (dict(fd=torch.ones(9)), "would be empty"),
    ],
)
def test_refuses_bad_arguments(arguments, words):
    with pytest.raises((TypeError, ValueError), match=words):
        filtered_lrelu(normal(2, 3, 6, 5), **arguments)
