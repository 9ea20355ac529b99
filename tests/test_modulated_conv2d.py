import pytest
import torch
from fastdgl_kernels import bias_act, conv2d_resample, modulated_conv2d, modulated_conv2d_bias_act, setup_filter
from fastdgl_kernels.convolution import algebra as convolution_algebra
from fastdgl_kernels.convolution.bilinear import Conv, WeightGrad
from fastdgl_kernels.convolution.spec import Geometry
from fastdgl_kernels.modulation import algebra, epilogue
from numerics import (
    assert_as_accurate,
    assert_close,
    assert_golden,
    assert_golden_as_accurately,
    assert_same_derivatives,
    golden_cases,
    golden_id,
    normal,
)
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

FILTER = setup_filter([1, 3, 3, 1])


def textbook(x, weight, styles, noise=None, demodulate=True, **resampling):
    """Weights of each sample's own, `[N, O, I, h, w]`, in one grouped convolution."""
    N, I, H, W = x.shape
    O, _, h, w = weight.shape
    own = weight * styles[:, None, :, None, None]
    if demodulate:
        own = own / (own.square().sum([2, 3, 4], keepdim=True) + 1e-8).sqrt()
    x, own = x.reshape(1, N * I, H, W), own.reshape(N * O, I, h, w).to(x.dtype)
    y = conv2d_resample(x, own, FILTER, groups=N, **resampling)
    y = y.reshape(N, O, *y.shape[2:])
    return y if noise is None else y + noise


def made(k=3, noise=None, dtype=torch.float64):
    """x, weight and styles, and noise of the given shape."""
    tensors = [normal(2, 5, 6, 7, dtype=dtype), normal(4, 5, k, k, seed=1), normal(2, 5, seed=2)]
    return tensors if noise is None else [*tensors, normal(*noise, seed=3)]


RESAMPLINGS = {
    "same": dict(padding=1),
    "up": dict(up=2, padding=1, flip_weight=False),
    "down": dict(down=2, padding=1),
    "uneven": dict(padding=[2, 0, 1, -1]),
}
every_resampling = pytest.mark.parametrize("resampling", RESAMPLINGS.values(), ids=RESAMPLINGS)
every_implementation = pytest.mark.parametrize("impl", ["reference", "cudnn"])
demodulated_or_not = pytest.mark.parametrize("demodulate", [True, False], ids=["demodulated", "plain"])


@every_implementation
@pytest.mark.parametrize("case", golden_cases("modulated_conv2d"), ids=lambda c: f"{c[0]}-{golden_id(c)}")
def test_agrees_with_the_recorded_numbers(case, impl):
    number, arguments = case
    arguments = arguments | {"resample_filter": setup_filter(arguments["resample_filter"])}
    assert_golden(
        "modulated_conv2d",
        number,
        ["x", "weight", "styles", "noise"],
        lambda t: modulated_conv2d(t["x"], t["weight"], t["styles"], t.get("noise"), impl=impl, **arguments),
    )


# the interpreter is slow: up, down and 1x1 without demodulation once
@pytest.mark.parametrize("case", golden_cases("modulated_conv2d")[7:18:5], ids=golden_id)
def test_kernels_agree_with_the_recorded_numbers(triton, monkeypatch, case):
    # the filters as well, which are not interpreted by themselves
    for where in (algebra, convolution_algebra):
        monkeypatch.setattr(where, "within", lambda x, asked: "fastest")
    number, arguments = case
    taps = arguments["resample_filter"]
    arguments = {name: value for name, value in arguments.items() if name != "resample_filter"}

    def run(impl):
        def layer(t):
            f = setup_filter(taps, t["x"].device)
            layer_arguments = dict(resample_filter=f, impl=impl, **arguments)
            return modulated_conv2d(t["x"], t["weight"], t["styles"], t.get("noise"), **layer_arguments)

        return layer

    names = ["x", "weight", "styles", "noise"]
    assert_golden_as_accurately("modulated_conv2d", number, names, run("triton"), run("reference"))


@every_resampling
@demodulated_or_not
@every_implementation
def test_agrees_with_weights_of_each_samples_own(impl, demodulate, resampling):
    arguments = dict(demodulate=demodulate, resample_filter=FILTER, impl=impl, **resampling)
    assert_same_derivatives(
        lambda x, w, s: modulated_conv2d(x, w, s, **arguments),
        lambda x, w, s: textbook(x, w, s, demodulate=demodulate, **resampling),
        made(),
    )


@pytest.mark.parametrize("shape", [(2, 1, 6, 7), (1, 1, 6, 7), (6, 7)], ids=["random", "shared", "constant"])
@demodulated_or_not
@every_implementation
def test_noise_is_added_to_the_output(impl, demodulate, shape):
    assert_same_derivatives(
        lambda x, w, s, n: modulated_conv2d(x, w, s, n, demodulate=demodulate, padding=1, impl=impl),
        lambda x, w, s, n: textbook(x, w, s, n, demodulate=demodulate, padding=1),
        made(noise=shape),
    )


@demodulated_or_not
@every_implementation
def test_derivatives_are_those_of_the_function(impl, demodulate):
    tensors = [normal(1, 2, 2, 2), normal(2, 2, 3, 3, seed=1), normal(1, 2, seed=2), normal(4, 4, seed=3)]

    def f(x, weight, styles, noise):
        return modulated_conv2d(x, weight, styles, noise, 2, 1, 1, FILTER, demodulate, False, impl=impl)

    tensors = [t.requires_grad_() for t in tensors]
    assert gradcheck(f, tensors, fast_mode=True) and gradgradcheck(f, tensors, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("resampling", [RESAMPLINGS["same"], RESAMPLINGS["up"]], ids=["same", "up"])
@demodulated_or_not
@every_implementation
def test_is_as_accurate_as_weights_of_each_samples_own(impl, demodulate, resampling, dtype):
    _, weight, styles = (t.float() for t in made())
    # second derivatives by x alone: the fp32 masters leave those by weight and styles to chance
    assert_as_accurate(
        lambda x: modulated_conv2d(
            x, weight.to(x), styles.to(x), demodulate=demodulate, resample_filter=FILTER, impl=impl, **resampling
        ),
        lambda x: textbook(x, weight.to(x), styles.to(x), demodulate=demodulate, **resampling),
        [made(dtype=dtype)[0]],
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@every_implementation
def test_16_bit_layers_have_fp32_gradients_close_to_the_true_ones(impl, dtype):
    tensors = [t.float() for t in made()]

    def gradients(dtype):
        x, weight, styles = (t.to(torch.promote_types(t.dtype, dtype)).requires_grad_() for t in tensors)
        y = modulated_conv2d(x.to(dtype), weight, styles, padding=1, impl=impl)
        assert y.dtype == dtype
        return torch.autograd.grad((y.double() * normal(*y.shape, seed=9)).sum(), [x, weight, styles])

    for got, expected in zip(gradients(dtype), gradients(torch.float64)):
        assert got.dtype == torch.float32
        # a few roundings of 16-bit factors, and their average over many terms
        assert_close(got.double(), expected, tolerance=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4], ids=["small", "usual", "large"])
@every_implementation
def test_16_bit_layers_do_not_overflow(impl, scale, dtype):
    x, weight, styles = (t.float() for t in made())
    exact = modulated_conv2d(x.to(dtype).double(), weight.double(), styles.double() * scale, padding=1)
    got = modulated_conv2d(x.to(dtype), weight * 1e3, styles * scale, padding=1, impl=impl)
    assert_close(got.double(), exact, tolerance=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=lambda d: str(d)[6:])
@every_implementation
def test_a_style_of_zeros_gives_zeros(impl, dtype):
    x, weight, styles = (t.float() for t in made())
    styles = (styles * torch.tensor([[0.0], [1.0]])).requires_grad_()
    y = modulated_conv2d(x.to(dtype), weight, styles, padding=1, impl=impl)
    assert not y[0].any() and y[1].isfinite().all()
    assert torch.autograd.grad(y.float().sum(), styles)[0].isfinite().all()


def test_demodulation_gives_unit_variance():
    x, weight, styles = normal(4, 16, 16, 16), normal(8, 16, 3, 3, seed=1), normal(4, 16, seed=2)
    y = modulated_conv2d(x, weight, styles, padding=1)[:, :, 1:-1, 1:-1]
    assert 0.9 < y.std() < 1.1


@every_implementation
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_no_tensor_is_as_large_as_the_samples_own_weights(impl, twice):
    N, O, I = 8, 24, 16

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for t in result if isinstance(result, (tuple, list)) else [result]:
                # the interpreter's copies of memory are of bytes
                if isinstance(t, torch.Tensor) and t.is_floating_point():
                    self.numel = max(self.numel, t.numel())
            return result

    x, weight, styles = normal(N, I, 4, 4), normal(O, I, 3, 3, seed=1), normal(N, I, seed=2)
    x, weight, styles = (t.requires_grad_() for t in (x, weight, styles))
    with Largest() as largest:
        y = modulated_conv2d(x, weight, styles, padding=1, impl=impl)
        gradients = torch.autograd.grad(y.square().sum(), [x, weight, styles], create_graph=twice)
        if twice:
            sum(g.square().sum() for g in gradients).backward()
    assert largest.numel < N * O * I * 9 / 2


def test_fused_modconv_changes_nothing():
    x, weight, styles = made()
    one, other = (modulated_conv2d(x, weight, styles, padding=1, fused_modconv=fused) for fused in (True, False))
    assert torch.equal(one, other)


@every_implementation
def test_samples_do_not_see_each_other(impl):
    x, weight, styles = made()
    together = modulated_conv2d(x, weight, styles, padding=1, impl=impl)
    assert_close(modulated_conv2d(x[1:], weight, styles[1:], padding=1, impl=impl), together[1:])


@every_implementation
def test_caller_keeps_his_tensors(impl):
    tensors = [t.requires_grad_() for t in made(noise=(6, 7))]
    before = [t.clone() for t in tensors]
    modulated_conv2d(*tensors, padding=1, impl=impl).sum().backward()
    assert all(torch.equal(t, b) for t, b in zip(tensors, before))


@every_implementation
def test_empty_batch_gives_an_empty_result(impl):
    x, weight, styles = (t.requires_grad_() for t in (normal(0, 5, 4, 4), normal(3, 5, 3, 3), normal(0, 5)))
    y = modulated_conv2d(x, weight, styles, normal(0, 1, 4, 4), padding=1, impl=impl)
    assert y.shape == (0, 3, 4, 4)
    assert not torch.autograd.grad(y.sum(), weight)[0].any()


def one_after_the_other(x, weight, styles, noise=None, bias=None, act="lrelu", clamp=None, **arguments):
    """The layer as two operators of plain PyTorch."""
    y = modulated_conv2d(x, weight, styles, noise, impl="reference", resample_filter=FILTER, **arguments)
    return bias_act(y, None if bias is None else bias.to(y), act=act, clamp=clamp, impl="reference")


def layer(x, weight, styles, noise=None, bias=None, **arguments):
    return modulated_conv2d_bias_act(
        x, weight, styles, noise, bias, impl="cudnn", resample_filter=FILTER, **arguments
    )


LAYERS = {
    "hidden": dict(padding=1, clamp=1.0),
    "up": dict(up=2, padding=1, flip_weight=False, clamp=1.0),
    "rgb": dict(demodulate=False, act="linear", clamp=2.0),
    "relu": dict(padding=1, act="relu"),
    "tanh": dict(padding=1, act="tanh"),
}
every_layer = pytest.mark.parametrize("arguments", LAYERS.values(), ids=LAYERS)


def of_a_layer(arguments, dtype=torch.float64):
    """x, weight, styles, noise and bias."""
    up = arguments.get("up", 1)
    k = 3 if arguments.get("padding") else 1
    return [*made(k, noise=(2, 1, 6 * up, 7 * up), dtype=dtype), normal(4, seed=4)]


@every_layer
def test_a_layer_is_one_after_the_other(arguments):
    assert_same_derivatives(
        lambda *tensors: layer(*tensors, **arguments),
        lambda *tensors: one_after_the_other(*tensors, **arguments),
        of_a_layer(arguments),
    )


@every_layer
@pytest.mark.parametrize("channels_last", [False, True], ids=["channels-first", "channels-last"])
@pytest.mark.parametrize("noise", ["own", "shared", "none"])
def test_gradients_taken_once_are_those_of_the_reference(noise, channels_last, arguments):
    x, weight, styles, strength, bias = of_a_layer(arguments)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    tensors = [x, weight, styles, bias]
    if noise != "none":
        tensors.insert(3, strength if noise == "own" else strength[0, 0])
    tensors = [t.requires_grad_() for t in tensors]

    def gradients(f):
        y = f(*tensors[:3], tensors[3] if noise != "none" else None, tensors[-1], **arguments)
        # transposed, as autograd may hand it over
        dy = normal(*y.shape[:2], y.shape[3], y.shape[2], seed=9).transpose(2, 3)
        return torch.autograd.grad(y, tensors, dy)

    for number, (got, expected) in enumerate(zip(gradients(layer), gradients(one_after_the_other))):
        assert_close(got, expected, f"gradient of input {number}")


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_small_tensors_may_be_expanded_or_slices(twice):
    x, weight, styles, noise, bias = of_a_layer(LAYERS["hidden"])
    styles = styles[:1].expand(2, 5), torch.cat([styles, styles], 1)[:, ::2]
    noises, biases = (noise[:1].expand(2, 1, 6, 7), noise.mT.contiguous().mT), (bias[:1].expand(4), bias.repeat(2)[::2])
    for s, n, b in zip(styles, noises, biases):
        tensors = [t.requires_grad_() for t in (x, weight)] + [t.detach().requires_grad_() for t in (s, n, b)]
        results = []
        for f in (layer, one_after_the_other):
            # the gradients that come back are expanded too
            gradients = torch.autograd.grad(f(*tensors, padding=1).sum(), tensors, create_graph=twice)
            if twice:
                gradients = torch.autograd.grad(sum(g.sum() for g in gradients), tensors[:3])
            results.append(gradients)
        for got, expected in zip(*results):
            assert_close(got, expected)


class Products(TorchDispatchMode):
    """Counts convolutions, and the gradients of each by one: all but filters, which have groups."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function is torch.ops.aten.convolution.default and arguments[8] == 1:
            self.count += 1
        if function is torch.ops.aten.convolution_backward.default and arguments[9] == 1:
            self.count += sum(arguments[10][:2])
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("arguments", [LAYERS["hidden"], LAYERS["up"]], ids=["hidden", "up"])
def test_second_derivatives_of_a_layer_convolve_as_often_as_the_reference(triton, arguments):
    """As a step of path length regularisation: gradients of styles and image, and those of everything by them."""

    def products(f):
        tensors = [t.requires_grad_() for t in of_a_layer(arguments)]
        with Products() as counter:
            y = f(*tensors, **arguments)
            dx, dstyles = torch.autograd.grad(y.sum(), [tensors[0], tensors[2]], create_graph=True)
            torch.autograd.grad(y.square().sum() + dx.square().sum() + dstyles.square().sum(), tensors)
        return counter.count

    assert products(layer) == products(one_after_the_other) > 0


@pytest.mark.parametrize("needed", range(5), ids=["x", "weight", "styles", "noise", "bias"])
def test_one_gradient_alone_is_the_same(needed):
    tensors = of_a_layer(LAYERS["hidden"])
    tensors[needed].requires_grad_()
    got = torch.autograd.grad(layer(*tensors, padding=1).square().sum(), tensors[needed])[0]
    expected = torch.autograd.grad(one_after_the_other(*tensors, padding=1).square().sum(), tensors[needed])[0]
    assert_close(got, expected)


# rounding may put an element on the other side of zero or of the bound, whose gradient is then another:
# these layers have no such places
SMOOTH_LAYERS = {
    "hidden": dict(padding=1, act="linear"),
    "up": dict(up=2, padding=1, flip_weight=False, act="linear"),
    "rgb": dict(demodulate=False, act="linear"),
}
every_smooth_layer = pytest.mark.parametrize("arguments", SMOOTH_LAYERS.values(), ids=SMOOTH_LAYERS)
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:]
)


@every_dtype
@every_smooth_layer
def test_a_layer_is_as_accurate_as_one_after_the_other(arguments, dtype):
    x, *masters = of_a_layer(arguments, dtype)
    masters = [t.float() for t in masters]
    assert_as_accurate(
        lambda x: layer(x, *(t.to(torch.promote_types(t.dtype, x.dtype)) for t in masters), **arguments),
        lambda x: one_after_the_other(x, *(t.to(x) for t in masters), **arguments),
        [x],
    )


# in fp32 the interpreter sums in another order than PyTorch and the GPU, which is all there would be to see
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@every_smooth_layer
def test_gradients_taken_once_are_as_accurate_as_one_after_the_other(arguments, dtype):
    tensors = [t.to(dtype) for t in of_a_layer(arguments)]

    def gradients(f, dtype):
        inputs = [t.to(dtype).requires_grad_() for t in tensors]
        y = f(*inputs, **arguments)
        return torch.autograd.grad(y, inputs, normal(*y.shape, seed=9).to(tensors[0].dtype).to(dtype))

    truth = gradients(one_after_the_other, torch.float64)
    for number, (exact, a, g) in enumerate(
        zip(truth, gradients(one_after_the_other, dtype), gradients(layer, dtype))
    ):
        error, floor = (g - exact).abs().max(), exact.abs().max() * torch.finfo(dtype).eps
        bound = 2 * (a - exact).abs().max() + floor
        assert error <= bound, f"gradient of input {number}: error {error:.3g}, allowed {bound:.3g}"


def test_a_16_bit_layer_returns_channels_last():
    y = layer(*(t.half() for t in of_a_layer(LAYERS["hidden"])), padding=1)
    assert y.dtype == torch.float16 and y.is_contiguous(memory_format=torch.channels_last)


def test_autocast_does_not_narrow_an_fp32_layer():
    tensors = [t.float() for t in of_a_layer(LAYERS["hidden"])]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = layer(*tensors, padding=1)
    assert torch.equal(inside, layer(*tensors, padding=1))


def test_nan_is_not_clamped_away():
    tensors = of_a_layer(LAYERS["hidden"])
    tensors[0][0, 0, 3, 3] = torch.nan
    y = layer(*tensors, **LAYERS["hidden"])
    assert y[0, :, 3, 3].isnan().all() and y[1].isfinite().all()


def test_a_clamped_element_has_no_gradient_whatever_the_rounding_of_the_bound():
    x, weight, styles, _, bias = (t.half() for t in of_a_layer(LAYERS["hidden"]))
    for clamp in (0.7, 0.1, 0.3):
        bias = torch.full_like(bias, 100).requires_grad_()
        y = layer(x, weight, styles, None, bias, padding=1, clamp=clamp)
        assert not torch.autograd.grad(y.sum(), bias)[0].any()


def test_the_families_are_closed_under_differentiation():
    x, a, s = normal(2, 2, 3, 2).requires_grad_(), normal(2, 2, 3, 2, seed=1), normal(2, 2, seed=2).requires_grad_()
    a = a.requires_grad_()
    for f, inputs in (
        (algebra.Scale.apply, [x, s]),
        (algebra.Dot.apply, [x, a]),
        (lambda dy: algebra.Slope.apply(dy, a.detach(), algebra.Tail(0.2, 2.0, 1.0)), [x]),
    ):
        assert gradcheck(f, inputs, fast_mode=True) and gradgradcheck(f, inputs, fast_mode=True)


@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [4, 5])
def test_convolutions_are_closed_under_differentiation(size, stride, transposed):
    geometry = Geometry((3, 3), stride, (1, 0), transposed)
    x = normal(2, 2, size, 4).requires_grad_()
    w = normal(*([2, 3] if transposed else [3, 2]), 3, 3, seed=1).requires_grad_()
    dy = torch.randn_like(Conv.apply(x, w, geometry)).requires_grad_()
    assert dy.shape[2:] == geometry.output_size(x.shape[2:])
    for f, inputs in (
        (lambda x, w: Conv.apply(x, w, geometry), [x, w]),
        (lambda x, dy: WeightGrad.apply(x, dy, geometry), [x, dy]),
    ):
        assert gradcheck(f, inputs, fast_mode=True) and gradgradcheck(f, inputs, fast_mode=True)


def test_says_that_a_batch_is_too_large_for_its_kernels(triton):
    x = torch.zeros(1).expand(epilogue.SAMPLES + 1, 1, 1, 1)
    with pytest.raises(ValueError, match="at most 65535 samples .*, got 65536: split the batch"):
        modulated_conv2d(x, torch.ones(1, 1, 1, 1), x[:, :, 0, 0], impl="cudnn")


X, WEIGHT, STYLES = torch.zeros(2, 3, 5, 5), torch.zeros(4, 3, 3, 3), torch.zeros(2, 3)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (dict(x=X[0]), ValueError, r"x must be \[N, C, H, W\]"),
        (dict(weight=WEIGHT[0]), ValueError, r"weight must be \[O, I, h, w\]"),
        (dict(weight=WEIGHT[:, :2]), ValueError, r"weight must take the 3 channels of x: expected \[O, 3, h, w\]"),
        (dict(weight=WEIGHT.int()), TypeError, "weight must be of a floating point dtype, got torch.int32"),
        (dict(weight=WEIGHT.to("meta")), ValueError, "weight must be on the device of x"),
        (dict(styles=STYLES[:1]), ValueError, r"styles must have .* expected shape \(2, 3\), got \(1, 3\)"),
        (dict(styles=STYLES.to("meta")), ValueError, "styles must be on the device of x"),
        (dict(noise=torch.zeros(2, 1, 5, 5)), ValueError, r"noise must have shape \(2, 1, 3, 3\), \(1, 1, 3, 3\) or"),
        (dict(noise=torch.zeros(3, 3, dtype=torch.int32)), TypeError, "noise must be of a floating point dtype"),
        (dict(noise=torch.zeros(3, 3, device="meta")), ValueError, "noise must be on the device of x"),
        (dict(resample_filter=[1, 2]), TypeError, "resample_filter must be a floating point tensor"),
        (dict(resample_filter=FILTER.to("meta")), ValueError, "resample_filter must be on the device of x"),
        (dict(resample_filter=FILTER.clone().requires_grad_()), ValueError, "resample_filter must not require"),
        (dict(up=[2, 2, 2]), ValueError, "up must be one or two integers"),
        (dict(padding=-2), ValueError, "the output would be empty"),
    ],
)
def test_says_what_is_wrong(arguments, error, words):
    with pytest.raises(error, match=words):
        modulated_conv2d(**{"x": X, "weight": WEIGHT, "styles": STYLES, **arguments})


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (dict(bias=torch.zeros(3)), ValueError, r"bias must have .* expected shape \(4,\), got \(3,\)"),
        (dict(bias=torch.zeros(4, device="meta")), ValueError, "bias must be on the device of x"),
        (dict(bias=torch.zeros(4).int()), TypeError, "bias must be of a floating point dtype"),
        (dict(act="gelu"), ValueError, "act='gelu': expected one of 'linear'"),
        (dict(clamp=-1), ValueError, "clamp must be None or at least 0, got -1"),
    ],
)
def test_a_layer_says_what_is_wrong(arguments, error, words):
    with pytest.raises(error, match=words):
        modulated_conv2d_bias_act(X, WEIGHT, STYLES, padding=1, **arguments)


@pytest.mark.parametrize("factors", [dict(up=2), dict(up=2, down=2)], ids=["up", "up-and-down"])
@pytest.mark.parametrize("noise", [(2, 1), (1, 1), ()], ids=["own-noise", "shared-noise", "constant-noise"])
def test_the_tail_may_come_with_the_filter(noise, factors):
    size = [n * factors["up"] // factors.get("down", 1) for n in (5, 6)]
    tensors = [normal(2, 8, 5, 6), normal(16, 8, 3, 3, seed=1), normal(2, 8, seed=2), normal(*noise, *size, seed=3)]
    tensors.append(normal(16, seed=4))

    def results(f, dtype):
        inputs = [t.to(dtype if i == 0 else torch.promote_types(dtype, torch.float32)) for i, t in enumerate(tensors)]
        inputs = [t.requires_grad_() for t in inputs]
        y = f(*inputs, padding=1, act="linear", clamp=100.0, **factors)
        return [y, *torch.autograd.grad(y, inputs, normal(*y.shape, seed=9).to(dtype))]

    for number, (exact, allowed, got) in enumerate(
        zip(
            results(one_after_the_other, torch.float64),
            results(one_after_the_other, torch.float16),
            results(layer, torch.float16),
        )
    ):
        floor = exact.abs().max() * torch.finfo(torch.float16).eps
        assert (got - exact).abs().max() <= 2 * (allowed - exact).abs().max() + floor, f"result {number}"


# 8 x 16 pixels on the smaller side, or 8 x 32 of 32 channels: channels of input and output, arguments
OF_OUR_OWN = {
    "same": (64, 64, dict(padding=1)),
    "same-of-32": (32, 32, dict(padding=1)),
    "up": (128, 64, dict(up=2, padding=1, flip_weight=False)),
    "up-to-32": (64, 32, dict(up=2, padding=1, flip_weight=False)),
    "down": (64, 128, dict(down=2, padding=1)),
}
every_one_of_our_own = pytest.mark.parametrize("I, O, arguments", OF_OUR_OWN.values(), ids=OF_OUR_OWN)


def of_our_own(I, O, arguments):
    """x, weight, styles, noise and bias of a layer whose convolution has a kernel."""
    up, down, W = arguments.get("up", 1), arguments.get("down", 1), 32 if I == O == 32 else 16
    x, noise = normal(1, I, 8 * down, W * down).half(), normal(8 * up, W * up, seed=3)
    return [x, normal(O, I, 3, 3, seed=1), normal(1, I, seed=2), noise, normal(O, seed=4)]


@every_one_of_our_own
@pytest.mark.parametrize("bare", [False, True], ids=["layer", "bare"])
def test_a_layer_of_our_own_convolution_is_as_accurate_as_one_after_the_other(bare, I, O, arguments):
    tensors = of_our_own(I, O, arguments)[: 3 if bare else 5]

    def results(impl, dtype):
        inputs = [t.to(dtype if i == 0 else torch.promote_types(dtype, torch.float32)) for i, t in enumerate(tensors)]
        inputs = [t.requires_grad_() for t in inputs]
        if bare:
            y = modulated_conv2d(*inputs, resample_filter=FILTER, demodulate=False, impl=impl, **arguments)
        else:
            y = modulated_conv2d_bias_act(
                *inputs, resample_filter=FILTER, act="linear", gain=2.0, impl=impl, **arguments
            )
        return [y, *torch.autograd.grad(y, inputs, normal(*y.shape, seed=9).half().to(dtype))]

    assert_as_accurate_in_fp16(results)


@pytest.mark.parametrize("name", ["same", "up-to-32", "down"])
def test_second_derivatives_of_a_layer_of_our_own_convolution(name):
    I, O, arguments = OF_OUR_OWN[name]
    x, *masters = of_our_own(I, O, arguments)
    masters = [t.float() for t in masters]

    def result(impl):
        def run(x):
            tensors = [t.to(torch.promote_types(t.dtype, x.dtype)) for t in masters]
            return modulated_conv2d_bias_act(
                x, *tensors, resample_filter=FILTER, act="linear", impl=impl, **arguments
            )

        return run

    assert_as_accurate(result("triton"), result("reference"), [x])


def assert_as_accurate_in_fp16(results):
    """What `results` gives by "triton" errs at most twice as much as what it gives by "reference"."""
    allowed, got = (results(impl, torch.float16) for impl in ("reference", "triton"))
    truth = results("reference", torch.float64)
    for number, (exact, a, g) in enumerate(zip(truth, allowed, got)):
        floor = exact.abs().max() * torch.finfo(torch.float16).eps
        assert (g - exact).abs().max() <= 2 * (a - exact).abs().max() + floor, f"result {number}"


def test_layers_without_a_kernel_are_convolved_by_pytorch():
    tensors = [t.float() for t in of_a_layer(LAYERS["hidden"], torch.float32)]
    by_name = [modulated_conv2d_bias_act(*tensors, padding=1, impl=impl) for impl in ("triton", "cudnn")]
    assert torch.equal(*by_name)
