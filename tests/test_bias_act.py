import math

import pytest
import torch
import torch.nn.functional as F
from devices import DEVICE, every_format, on_device
from fastdgl_kernels import FusedLeakyReLU, activation_funcs, bias_act, fused_leaky_relu
from numerics import (
    assert_as_accurate,
    assert_close,
    assert_errs_as_little,
    assert_golden,
    assert_golden_as_accurately,
    derivatives,
    golden_cases,
    golden_id,
    normal,
)
from torch.autograd import gradcheck, gradgradcheck

ACTS = ["linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish"]

# by the formula, one step after another
TEXTBOOK = {
    "linear": lambda x, alpha: x,
    "relu": lambda x, alpha: torch.where(x > 0, x, 0 * x),
    "lrelu": lambda x, alpha: torch.where(x > 0, x, alpha * x),
    "tanh": lambda x, alpha: torch.tanh(x),
    "sigmoid": lambda x, alpha: torch.sigmoid(x),
    "elu": lambda x, alpha: F.elu(x),
    "selu": lambda x, alpha: F.selu(x),
    "softplus": lambda x, alpha: F.softplus(x),
    "swish": lambda x, alpha: x * torch.sigmoid(x),
}


def textbook(x, b, act, alpha, gain, clamp):
    y = TEXTBOOK[act](x + b.reshape(-1, *[1] * (x.ndim - 2)), alpha) * gain
    return y if clamp is None else y.clamp(-clamp, clamp)


@pytest.mark.parametrize("case", golden_cases("bias_act"), ids=golden_id)
def test_agrees_with_the_recorded_numbers(case):
    number, arguments = case
    assert_golden("bias_act", number, ["x", "b"], lambda t: bias_act(t["x"], t.get("b"), **arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("clamp", [None, 0.7], ids=["free", "clamped"])
@pytest.mark.parametrize("act", ACTS)
def test_is_as_accurate_as_the_formula_step_by_step(act, clamp, dtype):
    x, b = normal(2, 3, 5, 7, dtype=dtype), normal(3, seed=1, dtype=dtype)
    # inputs next to the corners would fall on either side of them at low precision
    total = (x + b.reshape(-1, 1, 1)).double()
    edges = [0.0] if clamp is None else [0.0, clamp / 1.3, -clamp / 1.3, -clamp / 1.3 / 0.3]
    x = torch.where(sum((total - edge).abs() < 0.03 for edge in edges).bool(), 2.5 - b.reshape(-1, 1, 1), x)
    assert_as_accurate(
        lambda x, b: bias_act(x, b, act=act, alpha=0.3, gain=1.3, clamp=clamp),
        lambda x, b: textbook(x, b, act, 0.3, 1.3, clamp),
        [x, b],
    )


@pytest.mark.parametrize("clamp", [None, 0.8], ids=["free", "clamped"])
@pytest.mark.parametrize("act", ACTS)
def test_derivatives_are_those_of_the_function(act, clamp):
    x, b = normal(2, 3, 5).requires_grad_(), normal(3, seed=1).requires_grad_()

    def f(x, b):
        return bias_act(x, b, act=act, gain=1.1, clamp=clamp)

    assert gradcheck(f, [x, b])
    assert gradgradcheck(f, [x, b])


@pytest.mark.parametrize("gain", [-1.5, 0.0, 2.0])
@pytest.mark.parametrize("act", ACTS)
def test_gain_of_any_sign_scales_the_output(act, gain):
    x, b = normal(2, 3, 5), normal(3, seed=1)
    assert_close(bias_act(x, b, act=act, gain=gain), gain * bias_act(x, b, act=act, gain=1))


@pytest.mark.parametrize("shape, dim", [((5,), 0), ((3, 5), 1), ((2, 3, 5), 2), ((2, 3, 5), -1), ((2, 3, 1, 7), 0)])
def test_bias_runs_along_any_dimension(shape, dim):
    x, b = normal(*shape), normal(shape[dim], seed=1)
    expected = (x.movedim(dim, -1) + b).movedim(-1, dim)
    assert_close(bias_act(x, b, dim=dim), expected)


def test_without_bias_nothing_is_added():
    x = normal(2, 3)
    assert_close(bias_act(x, act="tanh"), torch.tanh(x))


@pytest.mark.parametrize("act", ACTS)
def test_defaults_are_those_of_the_table(act):
    x = normal(4, 3)
    spec = activation_funcs[act]
    expected = bias_act(x, act=act, alpha=spec.def_alpha, gain=spec.def_gain)
    assert torch.equal(bias_act(x, act=act), expected)
    assert spec.def_gain == (math.sqrt(2) if act in ("relu", "lrelu", "swish") else 1)
    assert spec.def_alpha == (0.2 if act == "lrelu" else 0)
    assert spec.cuda_idx == ACTS.index(act) + 1
    assert spec.has_2nd_grad == (act not in ("linear", "relu", "lrelu"))
    assert spec.ref == {"linear": "", "swish": "x"}.get(act, "y")
    assert_close(spec.func(x, alpha=0.2), TEXTBOOK[act](x, 0.2))


@pytest.mark.parametrize("act", ACTS)
def test_clamped_elements_have_no_gradient(act):
    x = torch.tensor([[-9.0, 0.1, 9.0]], dtype=torch.float64, requires_grad=True)
    y = bias_act(x, act=act, gain=30, clamp=5)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert (dx[y.abs() == 5] == 0).all()
    assert (y.abs() == 5).any()


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_memory_format_is_kept(act, bias):
    x = normal(2, 3, 5, 7)
    b = normal(3, seed=1) if bias else None
    y = bias_act(x.contiguous(memory_format=torch.channels_last), b, act=act, clamp=1)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert bias_act(x, b, act=act, clamp=1).is_contiguous()


def test_caller_keeps_his_tensors():
    x, b = normal(2, 3), normal(3, seed=1)
    before = x.clone(), b.clone()
    bias_act(x, b, act="relu", clamp=0.5)
    assert torch.equal(x, before[0]) and torch.equal(b, before[1])


def test_empty_batch_gives_an_empty_result():
    assert bias_act(normal(0, 3, 4, 4), normal(3), act="lrelu").shape == (0, 3, 4, 4)


@pytest.mark.parametrize(
    "change, error, words",
    [
        (dict(b=torch.zeros(4)), ValueError, r"b must have one entry .* expected shape \(3,\), got \(4,\)"),
        (dict(b=torch.zeros(3, 1)), ValueError, r"got \(3, 1\)"),
        (dict(b=torch.zeros(3).half()), TypeError, "b must have the dtype of x: expected torch.float32"),
        (dict(b=torch.zeros(3, device="meta")), ValueError, "b must be on the device of x"),
        (dict(act="mish"), ValueError, "act='mish': expected one of 'linear', 'relu'"),
        (dict(dim=2), ValueError, r"dim=2 is not a dimension of x, which has shape \(2, 3\)"),
        (dict(clamp=-1), ValueError, "clamp must be None or at least 0, got -1"),
        (dict(x=torch.zeros(2, 3, dtype=torch.int64)), TypeError, "x must be of a floating point dtype"),
        (dict(x=torch.tensor(1.0)), ValueError, "x must have at least one dimension"),
    ],
)
def test_says_what_is_wrong(change, error, words):
    with pytest.raises(error, match=words):
        bias_act(**{"x": torch.zeros(2, 3), **change})


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5, 7)], ids=["vectors", "images"])
def test_fused_leaky_relu_honours_slope_and_scale(shape):
    x, b = normal(*shape), normal(3, seed=1)
    total = x + b.reshape(-1, *[1] * (x.ndim - 2))
    assert_close(fused_leaky_relu(x, b, 0.5, 3.0), 3.0 * F.leaky_relu(total, 0.5))
    assert_close(fused_leaky_relu(x), math.sqrt(2) * F.leaky_relu(x, 0.2))


def test_fused_leaky_relu_layer_keeps_the_names_of_its_state():
    layer = FusedLeakyReLU(3)
    assert {name: p.tolist() for name, p in layer.named_parameters()} == {"bias": [0, 0, 0]}
    assert not FusedLeakyReLU(3, bias=False).state_dict()
    x = normal(2, 3, 4, dtype=torch.float16)
    assert torch.equal(layer(x), fused_leaky_relu(x, layer.bias.half()))
    assert torch.equal(FusedLeakyReLU(3, False, 0.1, 2.0)(x), fused_leaky_relu(x, None, 0.1, 2.0))


# The kernels, on a GPU where there is one, else in Triton's interpreter.

every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda dtype: str(dtype)[6:]
)


def away_from_corners(x, b, f):
    """What lies next to a corner of the function falls on either side of it at low precision."""
    total = x.double() + b.double().reshape(-1, 1, 1)
    near = total.abs() < 0.03
    if f["clamp"] is not None:
        free = textbook(x.double(), b.double(), **f | {"clamp": None}).abs()
        near |= (free - f["clamp"]).abs() < 0.03
    return torch.where(near, 2.5 - b.reshape(-1, 1, 1), x)


@pytest.mark.parametrize(
    "channels_last, dtype",
    [(False, torch.float32), (True, torch.float32), (True, torch.float16), (False, torch.bfloat16)],
    ids=["NCHW-float32", "NHWC-float32", "NHWC-float16", "NCHW-bfloat16"],
)
@pytest.mark.parametrize("clamp", [None, 1.1], ids=["free", "clamped"])
@pytest.mark.parametrize("act", ACTS)
def test_kernels_are_as_accurate_as_the_formula(triton, act, clamp, channels_last, dtype):
    f = dict(act=act, alpha=0.3, gain=2.0 if act in ("sigmoid", "tanh") else 1.3, clamp=clamp)
    b = on_device(19, seed=1, dtype=dtype)
    x = away_from_corners(on_device(3, 19, 5, 3, dtype=dtype), b, f)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    assert_as_accurate(
        lambda x, b: bias_act(x, b, **f, impl="triton"),
        lambda x, b: textbook(x, b, **f),
        [x, b],
        # the interpreter cuts off what does not fit into bfloat16, where a GPU rounds
        factor=4 if dtype == torch.bfloat16 and DEVICE == "cpu" else 2,
    )


@pytest.mark.parametrize("case", golden_cases("bias_act"), ids=golden_id)
def test_kernels_agree_with_the_recorded_numbers(triton, case):
    number, arguments = case
    fast, slow = (
        lambda t, impl=impl: bias_act(t["x"], t.get("b"), **arguments, impl=impl) for impl in ("triton", "reference")
    )
    assert_golden_as_accurately("bias_act", number, ["x", "b"], fast, slow)


@pytest.mark.parametrize(
    "shape, dim",
    [((7,), 0), ((300,), 0), ((5, 1), 1), ((1, 70), 1), ((70, 3), 0), ((3, 2, 131), 1), ((2, 3, 5), -1),
     ((2, 3, 2, 1, 7), 3), ((1, 1, 1, 1), 1), ((2, 67, 1, 1), 1), ((1, 2, 19, 23), 1), ((2, 16, 4, 4), 1)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("act", ["lrelu", "swish"])
def test_kernels_take_any_shape_and_dimension(triton, act, shape, dim):
    x, b, dy = on_device(*shape), on_device(shape[dim], seed=1), on_device(*shape, seed=2)
    got, expected, truth = (
        derivatives(lambda x, b, impl=impl: bias_act(x, b, dim, act, clamp=1.1, impl=impl), [x.to(dtype), b.to(dtype)], dy.to(dtype))
        for impl, dtype in (("triton", torch.float32), ("reference", torch.float32), ("reference", torch.float64))
    )
    # a derivative that is zero may be left out
    assert_errs_as_little({name: got[name] for name in expected}, expected, truth, terms=dy.numel())
    assert_as_accurate(
        lambda x: bias_act(x, None, dim, act, impl="triton"), lambda x: bias_act(x, None, dim, act, impl="ref"), [x]
    )


def layouts(x):
    N, C, H, W = x.shape
    yield "NCHW", x
    yield "NHWC", x.contiguous(memory_format=torch.channels_last)
    yield "CHWN", x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    yield "HWNC", x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    yield "every second column", torch.stack([x, x], -1).flatten(-2)[..., ::2]
    yield "expanded", x[:1, :, :1].expand(N, C, H, W)


@pytest.mark.parametrize("act", ["linear", "lrelu", "swish"])
def test_kernels_take_any_strides_of_input_and_gradient(triton, act):
    x, b, dy = on_device(3, 4, 5, 3), on_device(4, seed=1), on_device(3, 4, 5, 3, seed=2)
    for (name, x), (_, dy) in zip(layouts(x), reversed([*layouts(dy)])):
        got, expected, truth = (
            derivatives_of(lambda x, b, impl=impl: bias_act(x, b, act=act, gain=1.2, clamp=1.5, impl=impl), x.to(dtype), b.to(dtype), dy.to(dtype))
            for impl, dtype in (("triton", torch.float32), ("reference", torch.float32), ("reference", torch.float64))
        )
        assert_errs_as_little(got, expected, truth, terms=dy.numel())


def derivatives_of(f, x, b, dy):
    """Value, gradients and second gradients, of tensors whose strides are kept."""
    x, b, dy = (t.detach().requires_grad_() for t in (x, b, dy))
    y = f(x, b)
    dx, db = torch.autograd.grad(y, [x, b], dy, create_graph=True)
    return y, dx, db, *torch.autograd.grad((dx * dx.detach().cos()).sum() + db.square().sum(), [dy])


@every_format
@every_dtype
def test_kernels_keep_the_memory_format(triton, dtype, channels_last):
    x = on_device(2, 3, 5, 7, dtype=dtype, channels_last=channels_last).requires_grad_()
    y = bias_act(x, on_device(3, dtype=dtype), act="lrelu", impl="triton")
    # as y.sum() leaves it: expanded, without strides
    (dx,) = torch.autograd.grad(y.sum(), x)
    for t in (y, dx):
        assert t.dtype == dtype and t.stride() == x.stride()


@pytest.mark.parametrize("act", ACTS)
def test_kernels_have_no_gradient_where_clamped(triton, act):
    # 0.3 has no exact form in 16 bits; what is clamped is known by the rounded bound
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = torch.tensor([[-9.0, 0.1, 9.0]], dtype=dtype, device=DEVICE, requires_grad=True)
        y = bias_act(x, act=act, gain=30, clamp=0.3, impl="triton")
        (dx,) = torch.autograd.grad(y.sum(), x)
        at_bound = y.detach().abs() == torch.tensor(0.3, dtype=torch.float32).to(dtype).item()
        assert at_bound.any() or dtype == torch.bfloat16 and DEVICE == "cpu"
        assert (dx[at_bound] == 0).all()


@pytest.mark.parametrize("alpha", [0.0, -0.5, 1.0])
@pytest.mark.parametrize("gain", [-1.5, 0.0, 2.0])
def test_kernels_take_any_slope_and_gain(triton, alpha, gain):
    x, b = on_device(2, 3, 5), on_device(3, seed=1)
    x[0, :, 0] = -b

    def run(x, b, impl):
        return bias_act(x, b, act="lrelu", alpha=alpha, gain=gain, impl=impl)

    assert_as_accurate(lambda x, b: run(x, b, "triton"), lambda x, b: run(x, b, "reference"), [x, b])


@pytest.mark.parametrize("act", ["tanh", "sigmoid", "elu", "selu", "softplus", "swish"])
def test_kernels_differentiate_a_third_and_a_fourth_time(triton, act):
    def derivative(dtype, impl, order):
        x, b = (t.to(dtype).requires_grad_() for t in (on_device(2, 3, 5), on_device(3, seed=1)))
        y = bias_act(x, b, act=act, gain=1.2, clamp=2.0, impl=impl)
        for i in range(order):
            dx, db = torch.autograd.grad(y.square().sum(), [x, b], create_graph=True)
            y = dx + 0.1 * db.reshape(-1, 1)
        return y.detach().double()

    for order in (3, 4):
        truth = derivative(torch.float64, "reference", order)
        allowed = 2 * (derivative(torch.float32, "reference", order) - truth).abs().max() + torch.finfo(torch.float32).eps * truth.abs().max()
        assert (derivative(torch.float32, "triton", order) - truth).abs().max() <= allowed


def test_kernels_give_the_same_bits_again(triton):
    x, b, dy = on_device(2, 19, 7, 8), on_device(19, seed=1), on_device(2, 19, 7, 8, seed=2)
    for channels_last in (False, True):
        x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        f = lambda x, b: bias_act(x, b, act="lrelu", clamp=1.5, impl="triton")  # noqa: E731
        for first, again in zip(derivatives_of(f, x, b, dy), derivatives_of(f, x, b, dy)):
            assert torch.equal(first, again)


@pytest.mark.parametrize("act", ACTS)
def test_kernels_pass_what_is_not_finite(triton, act):
    x = torch.tensor([[math.nan, math.inf, -math.inf, 1e4, -1e4, 0.0, -0.0]], device=DEVICE)
    for clamp in (None, 2.0):
        got, expected = (bias_act(x, act=act, clamp=clamp, impl=impl) for impl in ("triton", "reference"))
        torch.testing.assert_close(got, expected, equal_nan=True)


def test_kernels_take_an_empty_batch(triton):
    x, b = on_device(0, 3, 4, 4).requires_grad_(), on_device(3).requires_grad_()
    y = bias_act(x, b, act="lrelu", impl="triton")
    y.sum().backward()
    assert y.shape == x.grad.shape == (0, 3, 4, 4) and b.grad.tolist() == [0, 0, 0]


def test_nothing_to_do_is_nothing_done(triton):
    x = on_device(2, 3)
    assert bias_act(x, impl="triton") is x
