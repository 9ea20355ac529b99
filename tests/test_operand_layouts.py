"""Every tensor argument of every operator, and every incoming gradient, in every layout that PyTorch has."""

import pytest
import torch
from devices import DEVICE
from fastdgl_kernels import (
    bias_act,
    conv2d_resample,
    filtered_lrelu,
    modulated_conv2d,
    modulated_conv2d_bias_act,
    scale_shift_act,
    upfirdn2d,
)
from numerics import assert_errs_as_little, normal

N, C, H, W = 2, 8, 3, 4
LAYER = dict(x=(N, C, H, W), weight=(C, C, 3, 3), styles=(N, C), noise=(1, 1, H, W))

# operator, the shapes of its tensors, numbers
OPERATORS = {
    "bias_act": (bias_act, dict(x=(N, C, H, W), b=(C,)), dict(act="lrelu", clamp=0.9)),
    "bias_act swish": (bias_act, dict(x=(N, C, H, W), b=(C,)), dict(act="swish")),
    "bias_act along rows": (bias_act, dict(x=(N, C, H, W), b=(H,)), dict(dim=2, act="tanh")),
    "bias_act linear": (bias_act, dict(x=(N, C), b=(C,)), dict(gain=2.0)),
    "upfirdn2d": (upfirdn2d, dict(x=(N, 1, H, 2), f=(2, 3)), dict(up=2, padding=2)),
    "upfirdn2d 1-D": (upfirdn2d, dict(x=(N, 2, H, W), f=(4,)), dict(padding=2)),
    "filtered_lrelu": (filtered_lrelu, dict(x=(N, 1, 2, 2), fu=(3,), fd=(2, 2), b=(1,)), dict(up=2, down=2, padding=1)),
    "conv2d_resample": (conv2d_resample, dict(x=(N, C, H, W), w=(C, C, 3, 3), f=(4, 4)), dict(down=2, padding=1)),
    "modulated_conv2d": (modulated_conv2d, LAYER, dict(padding=1)),
    "modulated_conv2d_bias_act up": (
        modulated_conv2d_bias_act,
        LAYER | dict(noise=(2 * H, 2 * W), bias=(C,), resample_filter=(4, 4)),
        dict(up=2, padding=1, act="lrelu", clamp=0.9, flip_weight=False),
    ),
    "to_rgb": (
        modulated_conv2d_bias_act,
        dict(x=(N, C, H, W), weight=(3, C, 1, 1), styles=(N, C), bias=(3,)),
        dict(demodulate=False, act="linear", clamp=0.9),
    ),
    "scale_shift_act": (scale_shift_act, dict(x=(N, C, H, W), scale=(N, C), shift=(C,)), dict(up=2)),
}
FILTERS = ("f", "fu", "fd", "resample_filter")
PER_SAMPLE = ("x", "styles", "scale")


def strided(t):
    """Every second element of every row."""
    return torch.stack([t, t + 1e9], -1)[..., 0]


def expanded(t):
    """One element that stands for all of the first dimension."""
    return t[:1].expand(t.shape)


def offset(t):
    """A part of a larger tensor."""
    return torch.cat([t.new_full(t[:1].shape, 1e9), t, t.new_full(t[:1].shape, 1e9)])[1:-1]


def misaligned(t):
    """In memory that begins one element too late for 16 bytes."""
    return torch.cat([t.new_full([1], 1e9), t.flatten()])[1:].view(t.shape)


def transposed(t):
    return t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.ndim > 1 else strided(t)


def channels_last(t):
    return t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else offset(t)


def reversed_in_memory(t):
    return t.permute(*range(t.ndim)[::-1]).contiguous().permute(*range(t.ndim)[::-1])


def negated(t):
    """With the sign kept aside."""
    return torch._neg_view(-t)


def imaginary(t):
    """The imaginary part of a conjugate: strided, and with the sign kept aside."""
    return torch.complex(t, -t).conj().imag


LAYOUTS = [strided, expanded, offset, misaligned, transposed, channels_last, reversed_in_memory, negated, imaginary]


def laid_out(layout, t):
    t, shape = layout(t), t.shape
    assert t.shape == shape
    return t


def derivatives(operator, tensors, numbers, impl, layout):
    """Value, gradients, second gradients; all tensors that go in laid out by `layout`, incoming gradients included."""
    tensors = {name: t.detach().clone() for name, t in tensors.items()}
    leaves = [t.requires_grad_() for name, t in tensors.items() if name not in FILTERS]
    # the layout is part of the graph: gradients come back to the leaves
    y = operator(**{name: laid_out(layout, t) for name, t in tensors.items()}, **numbers, impl=impl)
    dy = normal(*y.shape, seed=7).to(y).requires_grad_()
    first = torch.autograd.grad(y, leaves, laid_out(layout, dy), create_graph=True)
    onward = [laid_out(layout, normal(*g.shape, seed=8 + i).to(g)) for i, g in enumerate(first)]
    leaves = [*leaves, dy]
    second = torch.autograd.grad(first, leaves, onward, allow_unused=True)
    return [y, *first, *(torch.zeros_like(t) if g is None else g for g, t in zip(second, leaves))]


def made(shapes, batch=N):
    shapes = {name: (batch, *shape[1:]) if name in PER_SAMPLE else shape for name, shape in shapes.items()}
    return {name: normal(*s, seed=i, dtype=torch.float32).to(DEVICE) for i, (name, s) in enumerate(shapes.items())}


# the interpreter takes seconds for these: of a kind of layout they get one, unless slow tests run as well
EXPENSIVE = ("filtered", "modulated", "to_rgb", "scale")
FEW = (strided, expanded, negated)


def every_case():
    for name, case in OPERATORS.items():
        for layout in LAYOUTS:
            slow = [pytest.mark.slow] if name.startswith(EXPENSIVE) and layout not in FEW else []
            yield pytest.param(*case, layout, marks=slow, id=f"{name}-{layout.__name__}")


@pytest.mark.parametrize("operator, shapes, numbers, layout", every_case())
def test_kernels_read_every_layout(triton, operator, shapes, numbers, layout):
    tensors = made(shapes)
    got = derivatives(operator, tensors, numbers, "triton", layout)
    reference = derivatives(operator, tensors, numbers, "reference", layout)
    truth = derivatives(operator, {name: t.double() for name, t in tensors.items()}, numbers, "reference", layout)
    # no sum has more terms than x and the weight together
    assert_errs_as_little(got, reference, truth, terms=sum(t.numel() for t in tensors.values()))


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("operator, shapes, numbers", OPERATORS.values(), ids=OPERATORS)
def test_no_samples_give_no_results_and_zero_gradients(triton, operator, shapes, numbers, impl):
    tensors = made(shapes, batch=0)
    results = derivatives(operator, tensors, numbers, impl, offset)
    assert results[0].shape[0] == 0 and not any(t.count_nonzero() for t in results)
