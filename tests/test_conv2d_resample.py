import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastdgl_kernels import conv2d_resample, setup_filter
from fastdgl_kernels.convolution import algebra, kernel
from fastdgl_kernels.convolution.op import output_size
from numerics import (
    assert_as_accurate,
    assert_golden,
    assert_golden_as_accurately,
    assert_same_derivatives,
    golden_cases,
    golden_id,
    normal,
)
from torch.utils._python_dispatch import TorchDispatchMode


def step_by_step(x, w, f, up, down, padding, groups, flip_weight, flip_filter):
    """Zero insertion, padding, filter, convolution, filter, decimation; in the order of the words."""
    f = torch.ones(1, 1) if f is None else f
    f = f.to(x.dtype) if flip_filter else f.to(x.dtype).flip([0, 1])
    h, w_taps = f.shape
    x0, x1, y0, y1 = padding
    if up > 1:
        N, C, H, W = x.shape
        x = F.pad(x[:, :, :, None, :, None], [0, up - 1, 0, 0, 0, up - 1]).reshape(N, C, H * up, W * up) * up**2
        x0, x1 = x0 + (w_taps + up - 1) // 2, x1 + (w_taps - up) // 2
        y0, y1 = y0 + (h + up - 1) // 2, y1 + (h - up) // 2
    if down > 1:
        x0, x1 = x0 + (w_taps - down + 1) // 2, x1 + (w_taps - down) // 2
        y0, y1 = y0 + (h - down + 1) // 2, y1 + (h - down) // 2
    x = F.pad(x, [x0, x1, y0, y1])
    if up > 1:
        x = F.conv2d(x, f.expand(x.shape[1], 1, *f.shape), groups=x.shape[1])
    x = F.conv2d(x, w if flip_weight else w.flip([2, 3]), groups=groups)
    if down > 1:
        x = F.conv2d(x, f.expand(x.shape[1], 1, *f.shape), groups=x.shape[1])
    return x[:, :, ::down, ::down]


# shape of x, shape of w, taps, arguments
CASES = {
    "3x3": ((2, 4, 5, 7), (6, 4, 3, 3), (4, 4), dict(padding=(1, 1, 1, 1))),
    "3x3-grouped": ((2, 4, 5, 7), (6, 2, 3, 3), None, dict(padding=(1, 1, 1, 1), groups=2)),
    "uneven-padding": ((1, 2, 5, 6), (3, 2, 3, 2), None, dict(padding=(2, 0, -1, 3))),
    "convolving": ((1, 2, 5, 6), (3, 2, 3, 2), None, dict(padding=(1, 1, 1, 1), flip_weight=False)),
    "up": ((2, 2, 4, 5), (3, 2, 3, 3), (4, 4), dict(up=2, padding=(1, 1, 1, 1))),
    "up-convolving": ((2, 2, 4, 5), (3, 2, 3, 3), (4, 4), dict(up=2, padding=(1, 1, 1, 1), flip_weight=False)),
    "up-grouped": ((1, 6, 4, 3), (4, 3, 3, 3), (3, 4), dict(up=2, padding=(1, 1, 1, 1), groups=2)),
    "up-without-filter": ((1, 2, 4, 5), (3, 2, 3, 3), None, dict(up=2, padding=(1, 1, 1, 1))),
    "up-by-3-uneven": ((1, 2, 4, 5), (3, 2, 2, 3), (5, 4), dict(up=3, padding=(0, 2, -3, 1), flip_filter=True)),
    "up-1x1": ((1, 2, 4, 5), (3, 2, 1, 1), (4, 3), dict(up=2, flip_filter=True)),
    "up-kernel-smaller-than-up": ((1, 2, 4, 5), (3, 2, 1, 2), (4, 4), dict(up=3, padding=(1, 0, 1, 1))),
    "down": ((2, 2, 8, 7), (3, 2, 3, 3), (4, 4), dict(down=2, padding=(1, 1, 1, 1))),
    "down-grouped-flipped": ((1, 4, 8, 7), (6, 2, 3, 3), (3, 4), dict(down=2, groups=2, flip_filter=True)),
    "down-by-3-uneven": ((1, 2, 9, 8), (3, 2, 2, 3), (4, 5), dict(down=3, padding=(0, 2, -1, 1))),
    "down-1x1": ((1, 2, 9, 8), (3, 2, 1, 1), (4, 4), dict(down=2, padding=(0, 1, 0, 0))),
    "down-without-filter": ((1, 2, 9, 8), (3, 2, 3, 3), None, dict(down=2, padding=(1, 1, 1, 1))),
    "up-and-down": ((1, 2, 5, 4), (3, 2, 3, 3), (4, 3), dict(up=3, down=2, padding=(1, 1, 2, 1))),
    "up-and-down-1x1": ((1, 2, 5, 4), (3, 2, 1, 1), (4, 3), dict(up=2, down=3)),
}
every_implementation = pytest.mark.parametrize("impl", ["reference", "cudnn"])
every_case = pytest.mark.parametrize("x_shape, w_shape, taps, arguments", CASES.values(), ids=CASES)

DEFAULTS = dict(up=1, down=1, padding=(0, 0, 0, 0), groups=1, flip_weight=True, flip_filter=False)


@every_implementation
@pytest.mark.parametrize("case", golden_cases("conv2d_resample"), ids=golden_id)
def test_agrees_with_the_recorded_numbers(case, impl):
    number, arguments = case
    arguments = dict(arguments)
    f = setup_filter(arguments.pop("resample_filter"))
    arguments["impl"] = impl
    assert_golden("conv2d_resample", number, ["x", "w"], lambda t: conv2d_resample(t["x"], t["w"], f, **arguments))


# the interpreter is slow: up and down once, the others filter nothing or differ in what surrounds the kernels
@pytest.mark.parametrize("case", golden_cases("conv2d_resample")[17:22:4], ids=golden_id)
def test_kernels_agree_with_the_recorded_numbers(triton, monkeypatch, case):
    # the filters as well, which are not interpreted by themselves
    monkeypatch.setattr(algebra, "within", lambda x, asked: "fastest")
    number, arguments = case
    taps = arguments["resample_filter"]
    arguments = {name: value for name, value in arguments.items() if name != "resample_filter"}

    def run(impl):
        return lambda t: conv2d_resample(t["x"], t["w"], setup_filter(taps, t["x"].device), impl=impl, **arguments)

    assert_golden_as_accurately("conv2d_resample", number, ["x", "w"], run("triton"), run("reference"))


@every_case
@every_implementation
def test_agrees_with_the_definition_step_by_step(impl, x_shape, w_shape, taps, arguments):
    f = None if taps is None else normal(*taps, seed=2)
    arguments = DEFAULTS | arguments
    assert_same_derivatives(
        lambda x, w: conv2d_resample(x, w, f, impl=impl, **arguments),
        lambda x, w: step_by_step(x, w, f, **arguments),
        [normal(*x_shape), normal(*w_shape, seed=1)],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", ["3x3", "up", "up-1x1", "down", "down-1x1"])
@every_implementation
def test_is_as_accurate_as_the_definition_step_by_step(impl, name, dtype):
    x_shape, w_shape, taps, arguments = CASES[name]
    f, arguments = normal(*taps, seed=2, dtype=torch.float32), DEFAULTS | arguments
    assert_as_accurate(
        lambda x, w: conv2d_resample(x, w, f, impl=impl, **arguments),
        lambda x, w: step_by_step(x, w, f, **arguments),
        [normal(*x_shape, dtype=dtype), normal(*w_shape, seed=1, dtype=dtype)],
    )


@every_case
def test_size_of_the_output_is_known_beforehand(x_shape, w_shape, taps, arguments):
    f = None if taps is None else normal(*taps, seed=2)
    y = conv2d_resample(normal(*x_shape), normal(*w_shape, seed=1), f, **arguments)
    up, down, padding = ((DEFAULTS | arguments)[name] for name in ("up", "down", "padding"))
    size = output_size(x_shape[:1:-1], w_shape[:1:-1], (taps or (1, 1))[::-1], up, down, padding)
    assert y.shape[:1:-1] == size


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (4, 2)], ids=str)
@pytest.mark.parametrize("k", [1, 3])
def test_sizes_are_exact_multiples(size, k):
    x, w, f = normal(1, 2, *size), normal(3, 2, k, k), setup_filter([1, 3, 3, 1])
    H, W = size
    assert conv2d_resample(x, w, f, padding=k // 2).shape == (1, 3, H, W)
    assert conv2d_resample(x, w, f, up=2, padding=k // 2).shape == (1, 3, 2 * H, 2 * W)
    assert conv2d_resample(x, w, f, down=2, padding=k // 2).shape == (1, 3, H // 2, W // 2)


def test_one_filter_in_two_forms_gives_one_result():
    x, w = normal(1, 2, 9, 9), normal(3, 2, 3, 3)
    for factors in (dict(up=2), dict(down=2)):
        one, two = (
            conv2d_resample(x, w, setup_filter([1, 2, 4, 3], separable=s), padding=1, **factors) for s in (False, True)
        )
        assert torch.allclose(one, two, atol=1e-6)


@every_implementation
def test_no_convolution_is_by_a_kernel_as_large_as_the_image(impl):
    class Kernels(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.convolution.default:
                self.largest = max(self.largest, *args[1].shape[2:])
            return func(*args, **(kwargs or {}))

    x, w = normal(1, 2, 9, 9).requires_grad_(), normal(3, 2, 3, 3, seed=1).requires_grad_()
    with Kernels() as kernels:
        dx = torch.autograd.grad(conv2d_resample(x, w, padding=1, impl=impl).square().sum(), x, create_graph=True)[0]
        dx.square().sum().backward()
    # what the Functions are for; PyTorch's own second derivative is by kernels of the size of the image
    assert kernels.largest == 3


@every_implementation
def test_empty_batch_gives_an_empty_result(impl):
    w, f = normal(3, 2, 3, 3), setup_filter([1, 3, 3, 1])
    for factors in (dict(), dict(up=2), dict(down=2)):
        assert conv2d_resample(normal(0, 2, 4, 4), w, f, padding=1, impl=impl, **factors).shape[:2] == (0, 3)


# 8 x 16 pixels on the smaller side, or 8 x 32 of 32 channels: shape of x, channels of the output, arguments
OF_OUR_OWN = {
    "3x3": ((2, 64, 8, 16), 128, dict(padding=1)),
    "3x3-convolving": ((1, 64, 8, 16), 128, dict(padding=1, flip_weight=False)),
    "3x3-uneven-padding": ((1, 64, 8, 15), 128, dict(padding=[2, 1, 1, 1])),
    "3x3-of-32": ((2, 32, 8, 32), 32, dict(padding=1)),
    "up": ((2, 128, 8, 16), 64, dict(up=2, padding=1)),
    "up-convolving": ((1, 128, 8, 16), 64, dict(up=2, padding=1, flip_weight=False)),
    "up-and-down": ((1, 128, 8, 16), 64, dict(up=2, down=2, padding=1)),
    "up-to-32": ((2, 64, 8, 16), 32, dict(up=2, padding=1)),
    "up-to-32-convolving": ((1, 64, 8, 16), 32, dict(up=2, padding=1, flip_weight=False, flip_filter=True)),
    "up-uneven-padding": ((1, 64, 8, 16), 64, dict(up=2, padding=[1, 2, 1, 0])),
    "down": ((2, 64, 16, 32), 128, dict(down=2, padding=1)),
    "down-even": ((1, 64, 16, 32), 128, dict(down=2, padding=[1, 2, 1, 2])),
    "down-without-filter": ((1, 64, 16, 32), 64, dict(down=2, padding=1, f=None)),
    "down-from-32": ((2, 32, 16, 32), 64, dict(down=2, padding=1)),
    "down-from-32-flipped": ((1, 32, 16, 32), 64, dict(down=2, padding=1, flip_weight=False, flip_filter=True)),
}
every_one_of_our_own = pytest.mark.parametrize("x_shape, O, arguments", OF_OUR_OWN.values(), ids=OF_OUR_OWN)


def of_our_own(x_shape, O):
    """x, w, and a filter that is the same neither along x and y nor backwards."""
    w = normal(O, x_shape[1], 3, 3, seed=1) / (9 * x_shape[1]) ** 0.5
    f = torch.outer(torch.tensor([1.0, 3.0, 2.0, 1.0]), torch.tensor([2.0, 3.0, 3.0, 1.0])) / 63
    return normal(*x_shape).half(), w.half(), f


@every_one_of_our_own
def test_a_convolution_of_our_own_is_as_accurate_as_pytorchs(x_shape, O, arguments, monkeypatch):
    x, w, f = of_our_own(x_shape, O)
    arguments = dict(f=f) | arguments

    def results(impl, dtype):
        inputs = [t.to(dtype).requires_grad_() for t in (x, w)]
        y = conv2d_resample(*inputs, impl=impl, **arguments)
        return [y, *torch.autograd.grad(y, inputs, normal(*y.shape, seed=9).half().to(dtype))]

    truth, allowed = results("reference", torch.float64), results("cudnn", torch.float16)
    ran = []
    for name in ("convolve", "weight_gradient"):
        run = getattr(kernel, name)
        monkeypatch.setattr(kernel, name, lambda *tensors, run=run: ran.append(run.__name__) or run(*tensors))
    for number, (exact, a, g) in enumerate(zip(truth, allowed, results("triton", torch.float16))):
        floor = exact.abs().max() * torch.finfo(torch.float16).eps
        assert (g - exact).abs().max() <= 2 * (a - exact).abs().max() + floor, f"result {number}"
    assert sorted(ran) == ["convolve", "convolve", "weight_gradient"]


@pytest.mark.parametrize("name", ["3x3", "3x3-of-32", "up", "up-to-32", "down", "down-from-32"])
def test_second_derivatives_of_a_convolution_of_our_own(name):
    x_shape, O, arguments = OF_OUR_OWN[name]
    x, w, f = of_our_own((1, *x_shape[1:]), O)
    assert_as_accurate(
        lambda x, w: conv2d_resample(x, w, f, impl="triton", **arguments),
        lambda x, w: conv2d_resample(x, w, f, impl="reference", **arguments),
        [x, w],
    )


def test_pytorch_convolves_where_there_is_no_kernel_of_our_own():
    x, w, f = normal(1, 4, 8, 16).half(), normal(6, 4, 3, 3).half(), setup_filter([1, 3, 3, 1])
    for factors in (dict(), dict(up=2), dict(down=2)):
        by_name = [conv2d_resample(x, w, f, padding=1, impl=impl, **factors) for impl in ("triton", "cudnn")]
        assert torch.equal(*by_name)


X, W = torch.zeros(1, 4, 5, 5), torch.zeros(6, 2, 3, 3)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (dict(x=torch.zeros(4, 5, 5)), ValueError, r"x must be \[N, C, H, W\]"),
        (dict(w=torch.zeros(6, 2, 3)), ValueError, r"w must be \[O, I / groups, h, w\]"),
        (dict(w=W.double()), TypeError, "w must have the dtype of x: expected torch.float32, got torch.float64"),
        (dict(w=W.to("meta")), ValueError, "w must be on the device of x"),
        (dict(f=torch.ones(3, 3, device="meta")), ValueError, "f must be on the device of x"),
        (dict(x=X.int()), TypeError, "x must be of a floating point dtype"),
        (dict(groups=1), ValueError, "x must have 2 channels, groups=1 times the 2 of w"),
        (dict(groups=4), ValueError, "groups=4 does not divide the 6 output channels"),
        (dict(f=torch.ones(3, 3, requires_grad=True)), ValueError, "f must not require a gradient"),
        (dict(up=[1, 2]), ValueError, r"up must be one factor for both axes, got \[1, 2\]"),
        (dict(down=0), ValueError, "down must be one or two integers of at least 1"),
        (dict(padding=-2), ValueError, "the output would be empty: .* kernel of 3 x 3"),
        (dict(padding=-1, f=torch.ones(4, 4), up=2, x=X[:, :, :1, :1]), ValueError, "the output would be empty"),
    ],
)
def test_says_what_is_wrong(arguments, error, words):
    with pytest.raises(error, match=words):
        conv2d_resample(**{"x": X, "w": W, "groups": 2, **arguments})


def test_padding_may_be_numpy_integers():
    assert conv2d_resample(X, W, groups=2, padding=[np.int64(1), 1]).shape == (1, 6, 5, 5)
