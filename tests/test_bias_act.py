import math

import pytest
import torch
import torch.nn.functional as F
from fastdgl_kernels import FusedLeakyReLU, activation_funcs, bias_act, fused_leaky_relu
from numerics import assert_as_accurate, assert_close, assert_golden, golden_cases, golden_id, normal
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
