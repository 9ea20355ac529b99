"""The real kernels, interpreted: they are certified as right, and mutants of them as wrong."""

import importlib.util
from pathlib import Path

import fastdgl_kernels
import pytest
import torch
from certified import CPU
from devices import DEVICE
from fastdgl_kernels import activation, resampling
from fastdgl_kernels.certify.calls import IMPLEMENTATIONS, Call, Operand
from fastdgl_kernels.certify.checks import Directions, Guards, derivatives, faults, settled
from fastdgl_kernels.certify.timing import training_pass

pytestmark = [pytest.mark.usefixtures("triton"), pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU, `certify` does this")]

LOW_PASS = [[a * b / 64 for b in (1.0, 3.0, 3.0, 1.0)] for a in (1.0, 3.0, 3.0, 1.0)]


def operand(*shape, dtype="float32", layout="contiguous"):
    return Operand(shape, dtype, layout)


LAYER = {"x": operand(2, 3, 4, 4), "weight": operand(4, 3, 3, 3), "styles": operand(2, 3)}
CALLS = [
    Call("bias_act", {"x": operand(2, 3, 4, 5, dtype="float16", layout="channels_last"), "b": operand(3, dtype="float16")}, {}, {"act": "lrelu", "clamp": 1.0}),
    Call("bias_act", {"x": operand(2, 3, 4, 5), "b": operand(3)}, {}, {"act": "swish"}, misaligned=True),
    Call("upfirdn2d", {"x": operand(2, 2, 5, 4)}, {"f": LOW_PASS}, {"up": 2, "padding": [2, 1, 2, 1], "gain": 4.0}),
    Call("scale_shift_act", {"x": operand(2, 3, 3, 4), "scale": operand(2, 3), "shift": operand(3)}, {}, {"up": 2}),
    Call("conv2d_resample", {"x": operand(2, 3, 6, 6), "w": operand(4, 3, 3, 3)}, {"f": LOW_PASS}, {"down": 2, "padding": 1}),
    Call("filtered_lrelu", {"x": operand(2, 1, 4, 4), "b": operand(1)}, {"fu": LOW_PASS, "fd": LOW_PASS}, {"up": 2, "down": 2, "padding": 3}),
    Call("modulated_conv2d", LAYER, {}, {"padding": 1}),
    Call("modulated_conv2d_bias_act", LAYER | {"noise": operand(4, 4), "bias": operand(4)}, {}, {"padding": 1, "clamp": 2.0}),
    Call("modulated_conv2d_bias_act", LAYER | {"weight": operand(2, 3, 1, 1), "bias": operand(2)}, {}, {"demodulate": False, "act": "linear"}),
]


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_the_kernels_are_right(call):
    operator = getattr(fastdgl_kernels, call.operator)
    for name in IMPLEMENTATIONS[call.operator]:
        assert faults(operator, call, name, CPU) == []


def mutate(monkeypatch, tmp_path, package, old, new):
    """Replace the kernels of a package by a copy of their source with a fault in it."""
    source = Path(package.kernel.__file__).read_text() if hasattr(package, "kernel") else (Path(package.__file__).parent / "kernel.py").read_text()
    assert source.count(old) == 1, f"{source.count(old)} times {old!r}"
    file = tmp_path / "kernel.py"
    file.write_text(source.replace(old, new))
    # names of operators are of modules: another one for each mutant
    spec = importlib.util.spec_from_file_location(f"{package.__name__}.mutant_{abs(hash((old, new)))}", file)
    mutant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutant)
    monkeypatch.setattr(package, "kernel", mutant, raising=False)


STRIDED = Call("bias_act", {"x": operand(2, 3, 4, 5), "b": operand(3)}, {}, {"act": "relu"}, misaligned=True)
SHIFTED = Call("upfirdn2d", {"x": operand(2, 1, 4, 3)}, {"f": [[1.0, 2.0]]}, {"padding": [1, 0, 0, 1]})
MUTANTS = {
    "the gain is dropped": (activation, "v = _value(u, alpha, ACT) * gain", "v = _value(u, alpha, ACT)", CALLS[0], ["y errs by"]),
    "the slope is dropped": (activation, "g = g * gain * _slope(u, alpha, ACT)", "g = g * gain", CALLS[0], ["gradient of x errs by"]),
    "the padding is flipped": (resampling, "(px, _, py, _) = resample.up", "(_, px, _, py) = resample.up", SHIFTED, ["y errs by"]),
    "the bias is read as if it had no strides": (activation, "y, (b,) = torch.empty_like(x), small(b)", "y = torch.empty_like(x)", STRIDED, ["y errs by nan"]),
    "the last column is left out": (activation, "tl.store(y + i, v.to(y.dtype.element_ty), mask=inside)",
                                    "tl.store(y + i, v.to(y.dtype.element_ty), mask=inside & (col < cols - 1)[None, :])", CALLS[0], ["y errs by nan"]),
    "what lies behind is written": (activation, "tl.store(y + i, v.to(y.dtype.element_ty), mask=inside)",
                                    "tl.store(y + i, v.to(y.dtype.element_ty), mask=row[:, None] * cols + col[None, :] < rows * cols + 1)", CALLS[0],
                                    ["memory next to an allocation is written to"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", MUTANTS)
def test_mutants_are_wrong(fault, monkeypatch, tmp_path):
    package, old, new, call, words = MUTANTS[fault]
    mutate(monkeypatch, tmp_path, package, old, new)
    found = faults(getattr(fastdgl_kernels, call.operator), call, "triton", CPU)
    assert all(any(one.startswith(word) for one in found) for word in words), found


def test_a_call_is_settled_away_from_where_slopes_jump():
    for call in CALLS:
        operator = getattr(fastdgl_kernels, call.operator)
        tensors = settled(operator, call, call.tensors(CPU))
        double, directions = {name: t.double() for name, t in tensors.items()}, Directions(CPU)
        exact = derivatives(operator, call, "reference", double, directions)
        # no rounding of the inputs changes on which side of a jump anything is
        nudged = {name: t * (1 + 1e-4) for name, t in double.items()}
        near = derivatives(operator, call, "reference", nudged, directions)
        assert all((near[name] - exact[name]).abs().max() <= 1e-2 * exact[name].abs().max() + 1e-9 for name in exact), str(call)


def test_all_orders_of_derivative_are_looked_at():
    names = set(derivatives(fastdgl_kernels.bias_act, CALLS[1], "reference", CALLS[1].tensors(CPU), Directions(CPU)))
    of = {f"{kind} of {name}" for kind in ("gradient", "differentiable gradient", "second gradient") for name in ("x", "b")}
    assert names == {"y", "second gradient of dy", *of}


def test_guards_are_around_all_that_kernels_allocate():
    with Guards() as guards:
        x = torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
        made = [torch.empty_like(x), x.new_empty(5), torch.empty([2, 3], dtype=torch.float16), torch.empty_strided((2, 2), (1, 2)), torch.empty(0)]
        assert made[0].stride() == x.stride() and all(t.isnan().all() for t in made) and not torch.zeros(3).any()
        assert all(t.data_ptr() % 16 == 0 for t in made)
    assert guards.intact


def test_a_training_pass_takes_value_and_gradients():
    call = CALLS[1]
    gradients = training_pass(fastdgl_kernels.bias_act, call, "reference", call.tensors(CPU), call.arguments(CPU))()
    assert [g.shape for g in gradients] == [operand.shape for operand in call.operands.values()]
