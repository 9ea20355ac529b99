import gc
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from devices import DEVICE, every_format, on_device
from fastdgl_kernels import downsample2d, filter2d, filtered_lrelu, modulated_conv2d, setup_filter, upfirdn2d, upsample2d
from fastdgl_kernels.convolution import algebra as convolution_algebra
from fastdgl_kernels.resampling.geometry import Resample, parse_padding, parse_scaling
from numerics import (
    assert_as_accurate,
    assert_close,
    assert_errs_as_little,
    assert_golden,
    assert_golden_as_accurately,
    golden_cases,
    golden_id,
    normal,
)
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint


def by_definition(x, f, up=(1, 1), down=(1, 1), padding=(0, 0, 0, 0), flip_filter=False, gain=1.0):
    """upfirdn2d in NumPy, step by step; everything in (x, y) order."""
    f = np.ones([1, 1]) if f is None else np.asarray(f, dtype=np.float64)
    f = np.outer(f, f) if f.ndim == 1 else f
    N, C, H, W = x.shape
    z = np.zeros([N, C, H * up[1], W * up[0]])
    z[:, :, :: up[1], :: up[0]] = x
    x0, x1, y0, y1 = padding
    z = np.pad(z, [(0, 0), (0, 0), (max(y0, 0), max(y1, 0)), (max(x0, 0), max(x1, 0))])
    z = z[:, :, max(-y0, 0) : z.shape[2] - max(-y1, 0), max(-x0, 0) : z.shape[3] - max(-x1, 0)]
    windows = np.lib.stride_tricks.sliding_window_view(z, f.shape, axis=(2, 3))
    y = np.einsum("nchwij,ij->nchw", windows, f if flip_filter else f[::-1, ::-1])
    return y[:, :, :: down[1], :: down[0]] * gain


def step_by_step(x, f, up, down, padding, flip_filter, gain):
    """The same in PyTorch, at the precision of x."""
    N, C, H, W = x.shape
    x = F.pad(x[:, :, :, None, :, None], [0, up[0] - 1, 0, 0, 0, up[1] - 1]).reshape(N, C, H * up[1], W * up[0])
    x = F.pad(x, padding)
    f = f.to(x.dtype) if flip_filter else f.to(x.dtype).flip([0, 1])
    return F.conv2d(x, f.expand(C, 1, *f.shape), groups=C)[:, :, :: down[1], :: down[0]] * gain


# shape, filter, arguments
CASES = {
    "filter": ((2, 3, 7, 8), (4, 4), dict(padding=(2, 1, 2, 1))),
    "no-padding": ((1, 2, 5, 7), (4, 4), dict()),
    "one-pixel": ((1, 1, 1, 1), (3, 3), dict(padding=(1, 1, 1, 1))),
    "filter-as-large-as-the-image": ((1, 2, 3, 5), (3, 5), dict()),
    "oblong-filter": ((2, 1, 6, 5), (2, 5), dict(padding=(3, 2, 1, 0))),
    "flipped": ((1, 2, 6, 7), (3, 4), dict(padding=(1, 2, 0, 1), flip_filter=True)),
    "gain": ((1, 2, 6, 7), (3, 4), dict(gain=-2.5)),
    "up": ((2, 3, 5, 7), (4, 4), dict(up=(2, 2), padding=(2, 1, 2, 1), gain=4.0)),
    "up-3-by-2": ((1, 2, 5, 7), (4, 5), dict(up=(3, 2), padding=(1, 3, 2, 0))),
    "up-along-x": ((1, 2, 5, 7), (3, 2), dict(up=(2, 1), padding=(1, 1, 0, 0))),
    "up-cropped": ((1, 2, 5, 7), (4, 4), dict(up=(2, 2), padding=(-1, -3, 2, -2))),
    "up-beyond-the-filter": ((1, 1, 3, 3), (2, 2), dict(up=(4, 4), padding=(5, 6, 7, 0))),
    "up-flipped": ((1, 2, 4, 3), (3, 4), dict(up=(2, 3), padding=(2, 2, 2, 2), flip_filter=True)),
    "down": ((2, 3, 8, 9), (4, 4), dict(down=(2, 2), padding=(1, 1, 1, 1))),
    "down-2-by-3": ((1, 2, 11, 9), (3, 4), dict(down=(2, 3), padding=(0, 1, 2, 0))),
    "down-cropped": ((1, 2, 11, 9), (3, 4), dict(down=(2, 2), padding=(-1, 1, -2, -1))),
    "cropped-only": ((1, 2, 6, 7), None, dict(padding=(-1, -2, 0, -3))),
    "up-and-down": ((1, 2, 7, 5), (3, 5), dict(up=(2, 3), down=(3, 2), padding=(1, 2, 3, 0), flip_filter=True)),
    "zeros-only": ((1, 2, 5, 4), None, dict(up=(2, 3), padding=(1, 0, 0, 2), gain=3.0)),
    "1-D": ((1, 2, 6, 7), (5,), dict(padding=(2, 2, 2, 2), gain=0.7)),
    "1-D-up": ((1, 2, 6, 7), (12,), dict(up=(2, 2), padding=(6, 5, 6, 5), gain=4.0)),
    "1-D-up-3-by-2-flipped": ((1, 2, 4, 5), (6,), dict(up=(3, 2), padding=(3, -1, 4, 2), flip_filter=True)),
    "1-D-down": ((1, 2, 13, 16), (12,), dict(down=(2, 2), padding=(5, 5, 5, 5))),
}
every_case = pytest.mark.parametrize("shape, taps, arguments", CASES.values(), ids=CASES)


def made(shape, taps, dtype=torch.float64):
    return normal(*shape, dtype=dtype), None if taps is None else normal(*taps, seed=1)


@pytest.mark.parametrize("case", golden_cases("upfirdn2d"), ids=golden_id)
def test_agrees_with_the_recorded_numbers(case):
    number, arguments = case
    assert_golden("upfirdn2d", number, ["x"], lambda t: upfirdn2d(t["x"], t.get("f"), **arguments))


@every_case
def test_agrees_with_the_definition(shape, taps, arguments):
    x, f = made(shape, taps)
    expected = by_definition(x.numpy(), f, **arguments)
    assert_close(upfirdn2d(x, f, **arguments), torch.from_numpy(expected))


@every_case
def test_derivatives_are_those_of_the_function(shape, taps, arguments):
    x, f = made(shape, taps)
    x.requires_grad_()
    assert gradcheck(lambda x: upfirdn2d(x, f, **arguments), [x], fast_mode=True)
    assert gradgradcheck(lambda x: upfirdn2d(x, f, **arguments), [x], fast_mode=True)


@every_case
def test_gradient_is_the_adjoint_resampling(shape, taps, arguments):
    x, f = made(shape, taps)
    x.requires_grad_()
    y = upfirdn2d(x, f, **arguments)
    dy = normal(*y.shape, seed=2)
    (dx,) = torch.autograd.grad(y, x, dy)
    size = (1, 1) if f is None else (f.shape[-1], f.shape[0])
    r = Resample(**arguments).adjoint((x.shape[3], x.shape[2]), size)
    assert_close(upfirdn2d(dy, f, r.up, r.down, r.padding, r.flip_filter, r.gain), dx)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", ["filter", "up", "up-3-by-2", "down", "up-and-down"])
def test_is_as_accurate_as_the_definition_step_by_step(name, dtype):
    shape, taps, arguments = CASES[name]
    arguments = dict(up=(1, 1), down=(1, 1), padding=(0, 0, 0, 0), flip_filter=False, gain=1.0) | arguments
    # a filter with taps that 16 bits cannot hold
    f = normal(*taps, seed=1, dtype=torch.float32)
    x = normal(*shape, dtype=dtype)
    assert_as_accurate(lambda x: upfirdn2d(x, f, **arguments), lambda x: step_by_step(x, f, **arguments), [x])
    assert upfirdn2d(x, f, **arguments).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=lambda d: str(d)[6:])
def test_takes_a_filter_of_any_precision(dtype):
    # what net.half() makes of the filter, which is a buffer of the net
    x, f = normal(1, 2, 5, 5, dtype=dtype), setup_filter([1, 3, 3, 1])
    assert torch.equal(upfirdn2d(x, f.to(dtype)), upfirdn2d(x, f))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@every_case
def test_16_bit_images_are_rounded_once(shape, taps, arguments, dtype):
    x, f = made(shape, taps, dtype)
    assert torch.equal(upfirdn2d(x, f, **arguments), upfirdn2d(x.float(), f, **arguments).to(dtype))


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1)], ids=str)
@pytest.mark.parametrize("taps", [None, 1, 2, 3, 4, 12], ids=lambda t: f"{t}-taps")
def test_helpers_give_the_sizes_they_are_named_for(size, taps):
    H, W = size
    x = normal(1, 2, H, W)
    f = None if taps is None else setup_filter(np.arange(1.0, taps + 1).tolist())
    assert filter2d(x, f).shape[2:] == (H, W)
    assert upsample2d(x, f).shape[2:] == (2 * H, 2 * W)
    assert upsample2d(x, f, up=[3, 1]).shape[2:] == (H, 3 * W)
    assert downsample2d(x, f, padding=1).shape[2:] == (H // 2 + 1, W // 2 + 1)
    if min(size) > 1:
        assert downsample2d(x, f).shape[2:] == (H // 2, W // 2)


def test_resampling_keeps_a_constant_image():
    x, f = torch.full([1, 1, 12, 12], 3.0, dtype=torch.float64), setup_filter([1, 3, 3, 1])
    for resampled in (filter2d(x, f), upsample2d(x, f), downsample2d(x, f), upsample2d(x, f, up=[2, 1])):
        inner = resampled[:, :, 3:-3, 3:-3] if resampled.shape[-1] > 6 else resampled[:, :, 2:-2, 2:-2]
        assert_close(inner, torch.full_like(inner, 3.0), tolerance=1e-7)


def test_resampling_is_centred():
    # a symmetric filter commutes with turning the image round
    x, f = normal(1, 1, 6, 8), setup_filter([1, 3, 3, 1])
    for resample in (upsample2d, downsample2d):
        assert_close(resample(x.flip([2, 3]), f), resample(x, f).flip([2, 3]))


def test_one_filter_in_two_forms_gives_one_result():
    x, taps = normal(1, 2, 9, 9), [1.0, 2, 4, 3]
    for up, down in [(1, 1), (2, 1), (1, 2)]:
        arguments = dict(up=up, down=down, padding=[2, 1, 0, 3], gain=3)
        separable, outer = setup_filter(taps, separable=True), setup_filter(taps, separable=False)
        assert_close(upfirdn2d(x, separable, **arguments), upfirdn2d(x, outer, **arguments), tolerance=1e-6)


def test_padding_is_x_first():
    x = normal(1, 1, 4, 4)
    assert upfirdn2d(x, None, padding=[1, 2]).shape == (1, 1, 8, 6)
    assert upfirdn2d(x, None, padding=[1, 2, 0, 0]).shape == (1, 1, 4, 7)
    assert upfirdn2d(x, None, up=[2, 3], padding=np.int64(1)).shape == (1, 1, 14, 10)


@pytest.mark.parametrize("arguments", [dict(), dict(up=2), dict(down=2), dict(up=2, down=2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("separable", [False, True], ids=["2-D", "1-D"])
def test_memory_format_is_kept(arguments, dtype, separable):
    x, f = normal(2, 3, 8, 8, dtype=dtype), setup_filter([1, 3, 3, 1], separable=separable)
    y = upfirdn2d(x.contiguous(memory_format=torch.channels_last), f, padding=1, **arguments)
    assert y.is_contiguous(memory_format=torch.channels_last)
    expected = upfirdn2d(x, f, padding=1, **arguments)
    assert expected.is_contiguous()
    assert_close(y.double(), expected.double(), tolerance=4 * torch.finfo(dtype).eps)


def test_strides_of_the_input_do_not_matter():
    x, f = normal(2, 3, 8, 9), setup_filter([1, 3, 3, 1])
    for odd in (x.transpose(2, 3).contiguous().transpose(2, 3), x[:1].expand(2, -1, -1, -1), x[:, :, ::2]):
        assert_close(upfirdn2d(odd, f, up=2), upfirdn2d(odd.contiguous(), f, up=2))


@pytest.mark.parametrize("resample", [filter2d, upsample2d, downsample2d])
def test_empty_batch_gives_an_empty_result(resample):
    x = normal(0, 3, 4, 4).requires_grad_()
    y = resample(x, setup_filter([1, 3, 3, 1]))
    assert y.shape[:2] == (0, 3)
    y.sum().backward()
    assert x.grad.shape == x.shape


X, FILTER = torch.zeros(1, 2, 4, 4), torch.ones(3, 3)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (dict(x=torch.zeros(2, 4, 4)), ValueError, r"x must be \[N, C, H, W\], got shape \(2, 4, 4\)"),
        (dict(x=X.int()), TypeError, "x must be of a floating point dtype, got torch.int32"),
        (dict(x=torch.zeros(1, 0, 4, 4)), ValueError, "x must have channels, height and width"),
        (dict(f=[1, 2, 1]), TypeError, "f must be a floating point tensor, as setup_filter makes it, got list"),
        (dict(f=FILTER.int()), TypeError, "got one of torch.int32"),
        (dict(f=torch.ones(1, 1, 3, 3)), ValueError, r"f must be \[taps\] or \[h, w\] and not empty"),
        (dict(f=torch.ones(0)), ValueError, "not empty"),
        (dict(f=FILTER.clone().requires_grad_()), ValueError, "f must not require a gradient"),
        (dict(f=FILTER.to("meta")), ValueError, "f must be on the device of x: expected cpu, got meta"),
        (dict(up=0), ValueError, "up must be one or two integers of at least 1, got 0"),
        (dict(up=1.5), TypeError, "up must be an integer or a list of integers, got 1.5"),
        (dict(down=[1, 2, 3]), ValueError, "down must be one or two integers"),
        (dict(padding=[1, 2, 3]), ValueError, r"padding must be one, two or four integers, got \[1, 2, 3\]"),
        (dict(padding=-1), ValueError, r"the output would be empty: x of shape \(1, 2, 4, 4\).* 3 x 3 taps"),
        (dict(impl="fast"), ValueError, "impl='fast': expected one of"),
    ],
)
def test_says_what_is_wrong(arguments, error, words):
    with pytest.raises(error, match=words):
        upfirdn2d(**{"x": X, "f": FILTER, **arguments})


def test_geometry_reads_the_short_forms():
    assert parse_scaling(2, "up") == (2, 2) and parse_scaling((3, 2), "up") == (3, 2)
    assert parse_padding(1) == (1, 1, 1, 1)
    assert parse_padding([1, 2]) == (1, 1, 2, 2)
    assert parse_padding([1, -2, 3, 4]) == (1, -2, 3, 4)


def test_short_filters_become_2d_and_long_ones_stay_1d():
    assert torch.equal(setup_filter([1, 3, 3, 1]), torch.outer(*[torch.tensor([1.0, 3, 3, 1]) / 8] * 2))
    assert setup_filter([1.0] * 7).shape == (7, 7) and setup_filter([1.0] * 8).shape == (8,)
    assert setup_filter(None).tolist() == [[1.0]] and setup_filter(5).tolist() == [[1.0]]
    assert setup_filter(np.ones([2, 3])).shape == (2, 3)
    assert setup_filter([1, 3, 3, 1]).dtype == torch.float32


def test_setup_filter_scales_and_flips():
    assert setup_filter([1.0, 3], normalize=False).tolist() == [[1, 3], [3, 9]]
    assert setup_filter([1.0, 3], normalize=False, flip_filter=True).tolist() == [[9, 3], [3, 1]]
    assert setup_filter([1.0, 3], normalize=False, gain=4, separable=True).tolist() == [2, 6]
    assert setup_filter([1.0, 3], gain=4, separable=False).sum() == 4


@pytest.mark.parametrize("arguments", [dict(), dict(normalize=False)], ids=["normalized", "as-is"])
def test_setup_filter_leaves_the_given_tensor_alone(arguments):
    given = torch.tensor([[1.0, 2], [3, 4]])
    made = setup_filter(given, **arguments)
    made.mul_(0)
    assert given.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    "f, arguments, words",
    [
        (torch.ones(1, 2, 3), dict(), r"f must be a number, \[taps\] or \[h, w\]"),
        ([], dict(), "and not empty"),
        ([[1.0, 2], [3, 4]], dict(separable=True), "a separable filter is given as its 1-D taps"),
    ],
)
def test_setup_filter_says_what_is_wrong(f, arguments, words):
    with pytest.raises(ValueError, match=words):
        setup_filter(f, **arguments)


# The kernels, on a GPU where there is one, else in Triton's interpreter.

@pytest.mark.parametrize("case", golden_cases("upfirdn2d"), ids=golden_id)
def test_kernels_agree_with_the_recorded_numbers(triton, case):
    number, arguments = case
    fast, slow = (
        lambda t, impl=impl: upfirdn2d(t["x"], t.get("f"), **arguments, impl=impl) for impl in ("triton", "reference")
    )
    assert_golden_as_accurately("upfirdn2d", number, ["x"], fast, slow)


@every_case
def test_kernels_agree_with_the_definition(triton, shape, taps, arguments):
    # the interpreter is slow: every second case in either format
    channels_last = [*CASES.values()].index((shape, taps, arguments)) % 2 == 1
    x, f = on_device(*shape, channels_last=channels_last), None if taps is None else on_device(*taps, seed=1)
    x.requires_grad_()
    y = upfirdn2d(x, f, **arguments, impl="triton")
    dy = on_device(*y.shape, seed=2)
    (dx,) = torch.autograd.grad(y, x, dy)
    results = {}
    for dtype in (torch.float32, torch.float64):
        expected = upfirdn2d(x.to(dtype), f, **arguments, impl="reference")
        results[dtype] = expected, *torch.autograd.grad(expected, x, dy.to(dtype))
    assert_errs_as_little((y, dx), *results.values())


# of a network: taps, up, down, padding before; even and odd, cropped, both turns
NETWORK = {
    "filter": (4, 1, 1, (2, 1, 2, 1)),
    "filter-cropped": (4, 1, 1, (-1, 3, 1, -2)),
    "filter-3": (3, 1, 1, (1, 1, 1, 1)),
    "up": (4, 2, 1, (2, 1, 2, 1)),
    "up-odd": (4, 2, 1, (3, 1, 1, 2)),
    "up-cropped": (4, 2, 1, (-2, 3, -1, 1)),
    "down": (4, 1, 2, (1, 1, 1, 1)),
    "down-even": (4, 1, 2, (2, 1, -2, 3)),
    "filter-12": (12, 1, 1, (6, 5, 5, 6)),
    "up-12": (12, 2, 1, (6, 5, 6, 5)),
    "up-12-odd": (12, 2, 1, (-1, 5, 7, 6)),
    "down-12": (12, 1, 2, (5, 5, 4, 6)),
}


def shape_of(name, channels_last):
    """40 channels are a whole tile of 32 and a part of the next; so are 70 columns, in planes for themselves."""
    if "12" in name:
        return 1, 8, 6, 5
    if channels_last:
        return 2, 40, 5, 3
    return (1, 3, 3, 70) if name in ("filter", "up", "down") else (2, 5, 5, 3)


@every_format
@pytest.mark.parametrize("name", NETWORK)
def test_fast_kernel_agrees_with_the_definition(triton, name, channels_last):
    taps, up, down, padding = NETWORK[name]
    x, f = on_device(*shape_of(name, channels_last), channels_last=channels_last), on_device(taps, seed=1)
    assert kernel().fits(x, kernel()._factors(f), Resample((up, up), (down, down), padding))
    arguments = dict(up=up, down=down, padding=padding, flip_filter=padding[0] % 2 == 1, gain=1.3)
    y = upfirdn2d(x, f, **arguments, impl="triton")
    expected, truth = (upfirdn2d(x.to(dtype), f, **arguments, impl="reference") for dtype in (torch.float32, torch.float64))
    assert_errs_as_little([y], [expected], [truth])


def kernel():
    from fastdgl_kernels.resampling import kernel

    return kernel


@every_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("up, down", [(1, 1), (2, 1), (1, 2)], ids=["filter", "up", "down"])
def test_kernels_are_as_accurate_as_the_definition(triton, up, down, dtype, channels_last):
    # channels last, the fast kernel takes whole groups of 8 channels
    x, f = on_device(1, 8 if channels_last else 1, 5, 6, dtype=dtype, channels_last=channels_last), on_device(4, seed=1)
    arguments = dict(up=(up, up), down=(down, down), padding=(2, 1, 2, 1), flip_filter=False, gain=1.3)
    assert_as_accurate(
        lambda x: upfirdn2d(x, f, **arguments, impl="triton"),
        lambda x: step_by_step(x, torch.outer(f, f), **arguments),
        [x],
        # the interpreter cuts off what does not fit into bfloat16, where a GPU rounds
        factor=4 if dtype == torch.bfloat16 and DEVICE == "cpu" else 2,
    )


@pytest.mark.parametrize("taps", [(4, 4), (6,)], ids=["2-D", "1-D"])
@every_format
def test_kernels_round_16_bits_once(triton, taps, channels_last):
    x, f = on_device(1, 8, 5, 4, dtype=torch.float16, channels_last=channels_last), on_device(*taps, seed=1)
    y = upfirdn2d(x, f, padding=2, impl="triton")
    assert torch.equal(y, upfirdn2d(x.float(), f, padding=2, impl="triton").half())


@pytest.mark.parametrize("C", [1, 8])
def test_kernels_take_any_strides_of_input_and_gradient(triton, C):
    x, f = on_device(2, C, 3, 4), setup_filter([1, 3, 1], device=DEVICE)
    strange = [
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        x[:1].expand(2, -1, -1, -1),
        torch.cat([x, x], 2)[:, :, ::2],
        torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last)[:, :C],
    ]
    for x in strange:
        expected = upfirdn2d(x, f, up=2, padding=1, impl="reference")
        x = x.detach().requires_grad_()
        y = upfirdn2d(x, f, up=2, padding=1, impl="triton")
        assert_errs_as_little([y], [expected], [upfirdn2d(x.double(), f, up=2, padding=1, impl="reference")])
        assert y.stride() == expected.stride()
        # an expanded gradient, and one in the other format
        for dy in (torch.ones([1, 1, 1, 1], device=DEVICE).expand_as(y), torch.cos(y.detach()).contiguous()):
            (dx,) = torch.autograd.grad(y, x, dy, retain_graph=True)
            expected_dx, true_dx = (
                torch.autograd.grad(upfirdn2d(x.to(dtype), f, up=2, padding=1, impl="reference"), x, dy.to(dtype))
                for dtype in (torch.float32, torch.float64)
            )
            assert_errs_as_little([dx], expected_dx, true_dx)


@every_format
def test_kernels_count_in_64_bits_where_they_must(triton, monkeypatch, channels_last):
    x, f = on_device(2, 3, 5, 4, channels_last=channels_last), on_device(3, 3, seed=1)
    expected = upfirdn2d(x, f, up=2, padding=2, impl="triton")
    # a tensor that needs them is too large for a test
    monkeypatch.setattr(kernel(), "_far", lambda x: True)
    assert torch.equal(upfirdn2d(x, f, up=2, padding=2, impl="triton"), expected)
    monkeypatch.undo()
    assert kernel()._far(torch.empty([1, 2, 2**16, 2**15], device="meta"))
    assert not kernel()._far(torch.empty([9, 1, 2**16, 2**15], device="meta"))


@every_format
def test_kernels_give_the_same_bits_again(triton, channels_last):
    x, f = on_device(1, 8, 5, 6, channels_last=channels_last), on_device(4, 4, seed=1)
    run = lambda x: upfirdn2d(x, f, up=2, padding=1, impl="triton")  # noqa: E731
    assert torch.equal(run(x), run(x))


@pytest.mark.parametrize("resample", [filter2d, upsample2d, downsample2d])
@every_format
def test_kernels_take_an_empty_batch(triton, resample, channels_last):
    x = on_device(0, 8, 4, 4, channels_last=channels_last).requires_grad_()
    y = resample(x, setup_filter([1, 3, 3, 1], device=DEVICE), impl="triton")
    y.sum().backward()
    assert y.shape[:2] == (0, 8) and x.grad.shape == x.shape


def test_kernels_see_a_filter_that_was_written_to(triton):
    x, f = on_device(1, 8, 4, 4, channels_last=True), setup_filter([1, 3, 3, 1], device=DEVICE)
    before = upfirdn2d(x, f, impl="triton")
    f.mul_(2)
    assert torch.equal(upfirdn2d(x, f, impl="triton"), 2 * before)


@pytest.mark.parametrize("taps", [[1, 3, 3, 1], [1.0] * 12], ids=["2-D", "1-D"])
def test_a_filter_that_is_gone_is_not_held(triton, taps):
    f = setup_filter(taps, device=DEVICE)
    upfirdn2d(on_device(1, 1, 16, 16), f, impl="triton")
    held = weakref.ref(f)
    del f
    gc.collect()
    assert held() is None


def upfirdn2d_of(x, f):
    return upfirdn2d(x, f, up=2, impl="triton")


def filtered_lrelu_of(x, f):
    return filtered_lrelu(x, f, f, up=2, down=2, padding=3, impl="triton")


def layer_of(x, f):
    weight, styles = on_device(8, 8, 3, 3, seed=1), on_device(2, 8, seed=2)
    return modulated_conv2d(x, weight, styles, up=2, padding=1, resample_filter=f, impl="cudnn")


def copies_are_unpacked(operator, x, f):
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, torch.clone):
        return operator(x, f)


def checkpointed(operator, x, f):
    return checkpoint(operator, x, f, use_reentrant=False)


every_filtering = pytest.mark.parametrize("operator", [upfirdn2d_of, filtered_lrelu_of, layer_of])


@every_filtering
@pytest.mark.parametrize("run", [copies_are_unpacked, checkpointed])
def test_a_filter_is_taken_apart_once_whatever_becomes_of_saved_tensors(triton, monkeypatch, run, operator):
    # a layer leaves filters to PyTorch where kernels are interpreted
    monkeypatch.setattr(convolution_algebra, "within", lambda x, asked: "triton")
    separated, separate = [], kernel()._separate
    monkeypatch.setattr(kernel(), "_separate", lambda f: separated.append(f) or separate(f))
    x, f = on_device(2, 8, 4, 4, channels_last=True).requires_grad_(), setup_filter([1, 3, 3, 1], device=DEVICE)
    dx, = torch.autograd.grad(run(operator, x, f).square().sum(), x, create_graph=True)
    torch.autograd.grad(dx.square().sum(), x)
    assert len(separated) == 1


@every_filtering
def test_says_that_a_filter_was_written_to_before_backward(triton, operator):
    x, f = on_device(2, 8, 4, 4).requires_grad_(), setup_filter([1, 3, 3, 1], device=DEVICE)
    y = operator(x, f)
    f.mul_(2)
    with pytest.raises(RuntimeError, match=r"a filter of shape \(4, 4\) was written to after the forward"):
        y.sum().backward()


def test_filters_are_taken_apart_only_where_they_are_products():
    product = setup_filter([1, 3, 3, 1])
    fx, fy = kernel()._factors(product)
    assert_close(torch.outer(fy, fx), product, tolerance=2e-7)
    assert kernel()._factors(normal(4, 4).float()) is None
    assert kernel()._factors(torch.zeros(4, 4)) is None
    assert kernel()._factors(None) is None


@pytest.mark.parametrize("up, down", [(1, 1), (2, 1)], ids=["filter", "up"])
@pytest.mark.parametrize("noisy", ["demod-noise-bias", "noise-per-sample", "bare"])
@pytest.mark.parametrize("clamp", [None, 0.6], ids=["free", "clamped"])
def test_tail_is_the_operators_one_after_another(triton, up, down, noisy, clamp):
    x, f = on_device(2, 8, 5, 4, channels_last=True), setup_filter([1, 3, 3, 1], device=DEVICE)
    resample = Resample((up, up), (down, down), (2, 1, 2, 1), gain=1.5)
    H, W = upfirdn2d(x, f, up, down, resample.padding, impl="reference").shape[2:]
    demod, noise, bias = on_device(2, 8, seed=1), on_device(1, 1, H, W, seed=2), on_device(8, seed=3)
    if noisy == "noise-per-sample":
        # as a slice
        noise = on_device(2, 2, H, W, seed=2)[:, :1]
    tail = kernel().Tail(demod, noise, bias, 0.2, 1.4, clamp)
    if noisy == "bare":
        tail = kernel().Tail(alpha=0.2, gain=1.4, clamp=clamp)

    def one_after_another(dtype):
        y = upfirdn2d(x.to(dtype), f, up, down, resample.padding, gain=1.5, impl="reference")
        if noisy != "bare":
            y = y * demod[:, :, None, None] + noise + bias[:, None, None]
        y = F.leaky_relu(y, 0.2) * 1.4
        return y if clamp is None else y.clamp(-clamp, clamp)

    got = kernel().upfirdn2d(x, f, resample, tail)
    assert_errs_as_little([got], [one_after_another(torch.float32)], [one_after_another(torch.float64)])
