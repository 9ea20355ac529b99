import pytest
import torch
from fastdgl_kernels import conv2d_resample, modulated_conv2d, setup_filter
from numerics import (
    assert_as_accurate,
    assert_close,
    assert_golden,
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
demodulated_or_not = pytest.mark.parametrize("demodulate", [True, False], ids=["demodulated", "plain"])


@pytest.mark.parametrize("case", golden_cases("modulated_conv2d"), ids=lambda c: f"{c[0]}-{golden_id(c)}")
def test_agrees_with_the_recorded_numbers(case):
    number, arguments = case
    arguments = arguments | {"resample_filter": setup_filter(arguments["resample_filter"])}
    assert_golden(
        "modulated_conv2d",
        number,
        ["x", "weight", "styles", "noise"],
        lambda t: modulated_conv2d(t["x"], t["weight"], t["styles"], t.get("noise"), **arguments),
    )


@every_resampling
@demodulated_or_not
def test_agrees_with_weights_of_each_samples_own(demodulate, resampling):
    assert_same_derivatives(
        lambda x, w, s: modulated_conv2d(x, w, s, demodulate=demodulate, resample_filter=FILTER, **resampling),
        lambda x, w, s: textbook(x, w, s, demodulate=demodulate, **resampling),
        made(),
    )


@pytest.mark.parametrize("shape", [(2, 1, 6, 7), (1, 1, 6, 7), (6, 7)], ids=["random", "shared", "constant"])
@demodulated_or_not
def test_noise_is_added_to_the_output(demodulate, shape):
    assert_same_derivatives(
        lambda x, w, s, n: modulated_conv2d(x, w, s, n, demodulate=demodulate, padding=1),
        lambda x, w, s, n: textbook(x, w, s, n, demodulate=demodulate, padding=1),
        made(noise=shape),
    )


@demodulated_or_not
def test_derivatives_are_those_of_the_function(demodulate):
    tensors = [normal(2, 2, 2, 3), normal(2, 2, 3, 3, seed=1), normal(2, 2, seed=2), normal(4, 6, seed=3)]

    def f(x, weight, styles, noise):
        return modulated_conv2d(x, weight, styles, noise, 2, 1, 1, FILTER, demodulate, False)

    tensors = [t.requires_grad_() for t in tensors]
    assert gradcheck(f, tensors)
    assert gradgradcheck(f, tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("resampling", [RESAMPLINGS["same"], RESAMPLINGS["up"]], ids=["same", "up"])
@demodulated_or_not
def test_is_as_accurate_as_weights_of_each_samples_own(demodulate, resampling, dtype):
    _, weight, styles = (t.float() for t in made())
    # second derivatives by x alone: the fp32 masters leave those by weight and styles to chance
    assert_as_accurate(
        lambda x: modulated_conv2d(
            x, weight.to(x), styles.to(x), demodulate=demodulate, resample_filter=FILTER, **resampling
        ),
        lambda x: textbook(x, weight.to(x), styles.to(x), demodulate=demodulate, **resampling),
        [made(dtype=dtype)[0]],
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_16_bit_layers_have_fp32_gradients_close_to_the_true_ones(dtype):
    tensors = [t.float() for t in made()]

    def gradients(dtype):
        x, weight, styles = (t.to(torch.promote_types(t.dtype, dtype)).requires_grad_() for t in tensors)
        y = modulated_conv2d(x.to(dtype), weight, styles, padding=1)
        assert y.dtype == dtype
        return torch.autograd.grad((y.double() * normal(*y.shape, seed=9)).sum(), [x, weight, styles])

    for got, expected in zip(gradients(dtype), gradients(torch.float64)):
        assert got.dtype == torch.float32
        # a few roundings of 16-bit factors, and their average over many terms
        assert_close(got.double(), expected, tolerance=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4], ids=["small", "usual", "large"])
def test_16_bit_layers_do_not_overflow(scale, dtype):
    x, weight, styles = (t.float() for t in made())
    exact = modulated_conv2d(x.to(dtype).double(), weight.double(), styles.double() * scale, padding=1)
    got = modulated_conv2d(x.to(dtype), weight * 1e3, styles * scale, padding=1)
    assert_close(got.double(), exact, tolerance=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=lambda d: str(d)[6:])
def test_a_style_of_zeros_gives_zeros(dtype):
    x, weight, styles = (t.float() for t in made())
    styles = (styles * torch.tensor([[0.0], [1.0]])).requires_grad_()
    y = modulated_conv2d(x.to(dtype), weight, styles, padding=1)
    assert not y[0].any() and y[1].isfinite().all()
    assert torch.autograd.grad(y.float().sum(), styles)[0].isfinite().all()


def test_demodulation_gives_unit_variance():
    x, weight, styles = normal(4, 16, 16, 16), normal(8, 16, 3, 3, seed=1), normal(4, 16, seed=2)
    y = modulated_conv2d(x, weight, styles, padding=1)[:, :, 1:-1, 1:-1]
    assert 0.9 < y.std() < 1.1


def test_no_tensor_is_as_large_as_the_samples_own_weights():
    N, O, I = 8, 24, 16

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for t in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(t, torch.Tensor):
                    self.numel = max(self.numel, t.numel())
            return result

    x, weight, styles = normal(N, I, 4, 4), normal(O, I, 3, 3, seed=1), normal(N, I, seed=2)
    x, weight, styles = (t.requires_grad_() for t in (x, weight, styles))
    with Largest() as largest:
        dx, dw, ds = torch.autograd.grad(
            modulated_conv2d(x, weight, styles, padding=1).square().sum(), [x, weight, styles], create_graph=True
        )
        (dx.square().sum() + dw.square().sum() + ds.square().sum()).backward()
    assert largest.numel < N * O * I * 9 / 2


def test_fused_modconv_changes_nothing():
    x, weight, styles = made()
    one, other = (modulated_conv2d(x, weight, styles, padding=1, fused_modconv=fused) for fused in (True, False))
    assert torch.equal(one, other)


def test_samples_do_not_see_each_other():
    x, weight, styles = made()
    together = modulated_conv2d(x, weight, styles, padding=1)
    assert_close(modulated_conv2d(x[1:], weight, styles[1:], padding=1), together[1:])


def test_caller_keeps_his_tensors():
    tensors = made(noise=(6, 7))
    before = [t.clone() for t in tensors]
    modulated_conv2d(*tensors, padding=1)
    assert all(torch.equal(t, b) for t, b in zip(tensors, before))


def test_empty_batch_gives_an_empty_result():
    assert modulated_conv2d(normal(0, 5, 4, 4), normal(3, 5, 3, 3), normal(0, 5), padding=1).shape == (0, 3, 4, 4)


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
        (dict(resample_filter=[1, 2]), TypeError, "resample_filter must be a floating point tensor"),
        (dict(up=[2, 2, 2]), ValueError, "up must be one or two integers"),
        (dict(padding=-2), ValueError, "the output would be empty"),
    ],
)
def test_says_what_is_wrong(arguments, error, words):
    with pytest.raises(error, match=words):
        modulated_conv2d(**{"x": X, "weight": WEIGHT, "styles": STYLES, **arguments})
