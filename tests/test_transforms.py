"""Operators under autocast and inference mode, and copies of their layers: the numbers are those without."""

import copy
import pickle

import pytest
import torch
from fastdgl_kernels import FusedLeakyReLU, downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d
from numerics import normal
from test_second_order import OPERATORS, F

IMAGES = {
    "upfirdn2d": (lambda x, f: upfirdn2d(x, f, up=[2, 1], down=[1, 2], padding=2), F),
    "filter2d": (filter2d, F),
    "upsample2d": (upsample2d, F),
    "downsample2d": (downsample2d, F),
}
ALL = OPERATORS | IMAGES


def run(operator, other, dtype):
    """The output, and the first gradients of its squares and their gradients, in a list."""
    x = normal(2, 2, 4, 5, dtype=dtype).requires_grad_()
    y = operator(x, other.float() if other is F else other.to(dtype))
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (ddx,) = torch.autograd.grad(dx.square().sum(), x)
    return [y.detach(), dx.detach(), ddx]


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("operator, other", ALL.values(), ids=ALL)
def test_autocast_changes_no_operator(operator, other, narrow):
    for dtype in (torch.float32, torch.float64):
        expected = run(operator, other, dtype)
        with torch.autocast("cpu", dtype=narrow):
            got = run(operator, other, dtype)
        assert [t.dtype for t in got] == [t.dtype for t in expected]
        assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("operator, other", ALL.values(), ids=ALL)
def test_inference_mode_changes_no_operator(operator, other):
    x = normal(2, 2, 4, 5)
    expected = operator(x, other)
    with torch.inference_mode():
        assert torch.equal(operator(x.clone(), other.clone()), expected)
        made = x.clone()
    # and a tensor made there is an input outside
    assert torch.equal(operator(made, other), expected)


def test_copies_of_a_layer_compute_as_it_does():
    layer = FusedLeakyReLU(2, negative_slope=0.3, scale=0.5)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.5, -1.0]))
    x = normal(2, 2, 3, 3, dtype=torch.float32)
    for twin in (copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    taps = setup_filter([1, 3, 3, 1])
    assert torch.equal(upsample2d(x, copy.deepcopy(taps)), upsample2d(x, taps))
