"""What the second derivatives of the reference operators launch, counted at the sizes of StyleGAN2's config F."""

import pytest
import torch
from fastdgl_kernels import (
    bias_act,
    conv2d_resample,
    filtered_lrelu,
    fused_leaky_relu,
    modulated_conv2d,
    modulated_conv2d_bias_act,
    scale_shift_act,
    setup_filter,
    upfirdn2d,
)
from fastdgl_kernels.modulation.reference import demodulation
from launches import Launches
from numerics import assert_close, normal
from torch import func
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from fastdgl.losses import path_lengths, r1_penalty
from fastdgl.models.stylegan2 import Discriminator, Generator

RESOLUTION = 256

CONVOLUTION, BACKWARD = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default


class Convolutions(TorchDispatchMode):
    """Records the shape of the weight of each convolution, and the groups of those whose weight has its gradient taken."""

    def __init__(self):
        super().__init__()
        self.weights, self.weight_gradients = [], []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function is CONVOLUTION:
            self.weights.append(tuple(arguments[1].shape))
        if function is BACKWARD and arguments[10][1]:
            self.weight_gradients.append(arguments[9])
        return function(*arguments, **(keywords or {}))

    @property
    def image_sized(self):
        """The weights that are larger than any layer's or filter's."""
        return [shape for shape in self.weights if max(shape[2:]) > 6]


def meta(shape, **keywords):
    """Tensors without numbers: the shapes are all that is counted."""
    return torch.empty(shape, device="meta")


def without_numbers(network):
    with torch.device("meta"):
        return network(img_resolution=RESOLUTION).to("meta")


def r1_step():
    D = without_numbers(Discriminator)
    images = torch.empty(4, 3, RESOLUTION, RESOLUTION, device="meta", requires_grad=True)
    torch.autograd.grad(r1_penalty(D(images, None), images).sum(), list(D.parameters()), allow_unused=True)


def path_length_step():
    G = without_numbers(Generator).synthesis
    ws = torch.empty(2, G.num_ws, 512, device="meta", requires_grad=True)
    lengths = path_lengths(G(ws, normal=meta), ws, normal=meta)
    torch.autograd.grad(lengths.sum(), list(G.parameters()), allow_unused=True)


@pytest.mark.parametrize("step", [r1_step, path_length_step])
def test_no_kernel_is_as_large_as_an_image_and_filters_cost_no_weight_gradients(step):
    with Convolutions() as convolutions:
        step()
    assert convolutions.weights and not convolutions.image_sized
    assert convolutions.weight_gradients and not any(groups > 1 for groups in convolutions.weight_gradients)


F, SEPARABLE = setup_filter([1, 3, 3, 1]), setup_filter([1, 2, 4, 1], separable=True)

# as the networks filter: filter, up, down, padding; 3 by 2 and both at once besides
CASES = {
    "filter": (F, 1, 1, 2),
    "filter-1-D": (SEPARABLE, 1, 1, [2, 1, -1, 3]),
    "up": (F, 2, 1, [2, 1, 2, 1]),
    "up-3-by-2": (F, [3, 2], 1, [2, 1, 0, 3]),
    "down": (F, 1, 2, 1),
    "down-1-D": (SEPARABLE, 1, [2, 3], 2),
    "up-and-down": (F, [2, 3], [3, 2], 3),
}
every_case = pytest.mark.parametrize("f, up, down, padding", CASES.values(), ids=CASES)


def graph_of_pytorch(x, f, up, down, padding):
    """upfirdn2d of the reference, differentiated by PyTorch: what forward mode takes."""
    with forward_ad.dual_level():
        return upfirdn2d(x, f, up, down, padding, gain=1.3, impl="reference")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=lambda d: str(d)[6:])
@every_case
def test_derivatives_are_those_of_pytorch_bit_for_bit(f, up, down, padding, dtype, memory_format):
    # a CPU, where the order of summation is that of PyTorch's own derivative
    results = []
    for resample in (graph_of_pytorch, lambda *arguments: upfirdn2d(*arguments, gain=1.3, impl="reference")):
        x = normal(2, 16, 8, 9, dtype=dtype).contiguous(memory_format=memory_format).requires_grad_()
        y = resample(x, f, up, down, padding)
        dy = torch.empty_like(y).copy_(normal(*y.shape, seed=1)).requires_grad_()
        dx, = torch.autograd.grad(y, x, dy, create_graph=True)
        ddy, = torch.autograd.grad(dx, dy, torch.empty_like(x).copy_(normal(*x.shape, seed=2)))
        results.append((y, dx, ddy))
    for expected, got in zip(*results):
        if up != 1 and down != 1:
            assert_close(got, expected, tolerance=16 * torch.finfo(dtype).eps)
        else:
            assert torch.equal(got, expected) and got.stride() == expected.stride()


@every_case
def test_can_be_differentiated_in_every_mode_of_pytorch(f, up, down, padding):
    x = normal(1, 2, 3, 4).requires_grad_()
    resample = lambda x: upfirdn2d(x, f, up, down, padding, impl="reference")  # noqa: E731
    assert gradcheck(resample, [x], check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert gradgradcheck(resample, [x], check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True)


@every_case
def test_function_transforms_agree_with_autograd(f, up, down, padding):
    x, t = normal(3, 1, 2, 4, 5), normal(3, 1, 2, 4, 5, seed=1)
    cubed = lambda x: upfirdn2d(x, f, up, down, padding, impl="reference").pow(3).sum()  # noqa: E731

    def penalty(gradient):
        return lambda x: gradient(x).square().sum()

    def by_autograd(function, x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(function(x), x)[0]

    recorded = lambda x: torch.autograd.grad(cubed(x), x, create_graph=True)[0]  # noqa: E731
    twice = [by_autograd(penalty(recorded), sample) for sample in x]
    assert_close(func.vmap(func.grad(penalty(func.grad(cubed))))(x), torch.stack(twice))
    assert_close(func.jvp(cubed, (x[0],), (t[0],))[1], (by_autograd(cubed, x[0]) * t[0]).sum())
    forward_over_reverse = func.jvp(func.grad(cubed), (x[0],), (t[0],))[1]
    _, expected = torch.autograd.functional.hvp(cubed, x[0], t[0])
    assert_close(forward_over_reverse, expected)


WEIGHT, STYLES, BIAS = normal(4, 2, 3, 3, seed=1), normal(2, 2, seed=2), normal(2, seed=3)
FILTERED = dict(fu=F, fd=SEPARABLE, up=2, down=2, padding=[3, 3, 2, 3])

# of images `[2, 2, 4, 5]` and another tensor
OPERATORS = {
    "bias_act": (lambda x, b: bias_act(x, b, act="swish", clamp=2.0), BIAS),
    "fused_leaky_relu": (fused_leaky_relu, BIAS),
    "scale_shift_act": (lambda x, scale: scale_shift_act(x, scale, scale.flip(0), up=2), BIAS),
    "conv2d_resample": (lambda x, w: conv2d_resample(x, w, F, down=2, padding=1), WEIGHT),
    "modulated_conv2d": (lambda x, s: modulated_conv2d(x, WEIGHT, s, up=2, padding=1, resample_filter=F), STYLES),
    "modulated_conv2d_bias_act": (lambda x, w: modulated_conv2d_bias_act(x, w, STYLES, bias=BIAS.repeat(2), padding=1), WEIGHT),
    "filtered_lrelu": (lambda x, b: filtered_lrelu(x, b=b, clamp=1.0, **FILTERED), BIAS),
    "filtered_lrelu of its own bias": (lambda x, b: filtered_lrelu(x, b=b * x.mean([0, 2, 3]), **FILTERED), BIAS),
    "filtered_lrelu without a bias": (lambda x, b: filtered_lrelu(x * b[:, None, None], **FILTERED), BIAS),
}


@pytest.mark.parametrize("operator, other", OPERATORS.values(), ids=OPERATORS)
def test_function_transforms_of_each_operator_agree_with_autograd(operator, other):
    images = normal(3, 2, 2, 4, 5)
    tangents = torch.ones_like(images[0]), normal(*other.shape, seed=5)

    def loss(x, t):
        return operator(x, t).pow(2).sum()

    def by_autograd(function, create_graph=False):
        def gradients(x, t):
            inputs = [x, t] if create_graph else [x.clone().requires_grad_(), t.clone().requires_grad_()]
            return torch.autograd.grad(function(*inputs), inputs, create_graph=create_graph)

        return gradients

    def penalty(gradients):
        return lambda x, t: sum(g.square().sum() for g in gradients(x, t))

    def assert_agrees(got, expected):
        for g, e in zip(got, expected, strict=True):
            assert_close(g, e)

    gradient, once = func.grad(loss, (0, 1)), by_autograd(loss)
    twice = by_autograd(penalty(by_autograd(loss, create_graph=True)))
    assert_agrees(gradient(images[0], other), once(images[0], other))
    assert_agrees(func.grad(penalty(gradient), (0, 1))(images[0], other), twice(images[0], other))
    by_sample = zip(*(once(x, other) for x in images))
    assert_agrees(func.vmap(gradient, (0, None))(images, other), map(torch.stack, by_sample))
    value, tangent = func.jvp(loss, (images[0], other), tangents)
    assert_close(value, loss(images[0], other))
    assert_close(tangent, sum((g * t).sum() for g, t in zip(once(images[0], other), tangents)))


def test_filtered_lrelu_can_be_differentiated_in_every_mode_of_pytorch():
    x, b = normal(1, 2, 3, 4).requires_grad_(), BIAS.clone().requires_grad_()
    operator = lambda x, b: filtered_lrelu(x, b=b, **FILTERED)  # noqa: E731
    assert gradcheck(operator, [x, b], check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert gradgradcheck(operator, [x, b], check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True)


def test_filters_of_filtered_lrelu_can_be_mapped_over():
    x, filters = normal(2, 2, 4, 5), torch.stack([F, 2 * F])
    mapped = func.vmap(lambda f: filtered_lrelu(x, f, f, BIAS, padding=3))(filters)
    assert_close(mapped, torch.stack([filtered_lrelu(x, f, f, BIAS, padding=3) for f in filters]))


def test_kernels_leave_function_transforms_to_the_reference(triton):
    x = normal(1, 2, 3, 3, dtype=torch.float32)
    loss = lambda x, impl: bias_act(x, act="lrelu", impl=impl).square().sum()  # noqa: E731
    assert torch.equal(func.grad(loss)(x, "fastest"), func.grad(loss)(x, "reference"))
    with pytest.raises(RuntimeError, match="impl='triton' cannot run bias_act .* torch.func or forward mode is in force"):
        func.grad(loss)(x, "triton")


def test_a_tangent_of_the_filter_counts():
    x, f = normal(1, 2, 5, 5), F.double()
    _, tangent = func.jvp(lambda f: upfirdn2d(x, f, up=2), (f,), (torch.ones_like(f),))
    assert_close(tangent, upfirdn2d(x, torch.ones_like(f), up=2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_autocast_does_not_narrow_the_arithmetic(dtype):
    x = normal(1, 2, 5, 5, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = upfirdn2d(x, F, up=2)
    dx, = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    assert torch.equal(y, upfirdn2d(x, F, up=2)) and y.dtype == dx.dtype == torch.float32
    dx.sum().backward()


def test_can_be_traced_and_saved(tmp_path):
    x = normal(1, 2, 5, 5, dtype=torch.float32).requires_grad_()
    layer = lambda x: conv2d_resample(x, torch.ones(2, 2, 3, 3), F, down=2, padding=1)  # noqa: E731
    torch.jit.save(torch.jit.trace(layer, x), str(tmp_path / "layer.pt"))
    assert torch.equal(torch.jit.load(tmp_path / "layer.pt")(x), layer(x))


def test_padding_on_one_side_makes_up_for_cropping_on_the_other():
    # no image is left after cropping alone
    x = normal(1, 1, 1, 4).requires_grad_()
    assert upfirdn2d(x, F, padding=[1, 1, 5, -2]).shape == (1, 1, 1, 3)
    assert gradcheck(lambda x: upfirdn2d(x, F, up=[1, 3], padding=[1, 1, 6, -3]), [x])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda d: str(d)[6:])
def test_demodulation_is_differentiated_as_by_pytorch_in_fewer_launches(dtype):
    def of_pytorch(w, s):
        return (s.square() @ w.square().sum([2, 3]).T + 1e-8).rsqrt()

    w, s = normal(6, 5, 3, 3, dtype=dtype).requires_grad_(), normal(4, 5, seed=1, dtype=dtype).requires_grad_()
    dd = normal(4, 6, seed=2, dtype=dtype).requires_grad_()
    counts, first, second = [], [], []
    for function in (of_pytorch, demodulation):
        d = function(w, s)
        with Launches() as launches:
            first.append(torch.autograd.grad(d, (w, s), dd, retain_graph=True))
        counts.append(sum(launches.counts.values()))
        gradients = torch.autograd.grad(d, (w, s), dd, create_graph=True)
        second.append(torch.autograd.grad([g.square().sum() for g in gradients], (w, s, dd)))
    assert all(map(torch.equal, *first)) and counts[1] <= counts[0] - 4
    for expected, got in zip(*second):
        assert_close(got, expected, tolerance=16 * torch.finfo(dtype).eps)
    assert gradcheck(demodulation, [w.detach().double().requires_grad_(), s.detach().double().requires_grad_()], check_forward_ad=True)
    assert gradgradcheck(demodulation, [w.detach().double().requires_grad_(), s.detach().double().requires_grad_()])
