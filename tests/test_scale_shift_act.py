import pytest
import torch
import torch.nn.functional as F
from devices import DEVICE, every_format
from fastdgl_kernels import scale_shift_act
from numerics import assert_as_accurate, assert_close, assert_errs_as_little, assert_same_derivatives, normal
from torch.autograd import gradcheck, gradgradcheck

every_act = pytest.mark.parametrize("act", ["linear", "relu"])
every_factor = pytest.mark.parametrize("up", [1, 2], ids=["same", "up"])
own_or_shared = pytest.mark.parametrize("own", [True, False], ids=["own", "shared"])
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda dtype: str(dtype)[6:]
)


def textbook(x, scale, shift, act="relu", up=1):
    """One step after another; pixels are repeated along one axis and then along the other."""
    one = [-1, x.shape[1], 1, 1]
    y = x * scale.to(x.dtype).reshape(one) + shift.to(x.dtype).reshape(one)
    y = torch.where(y > 0, y, 0 * y) if act == "relu" else y
    return y.repeat_interleave(up, 2).repeat_interleave(up, 3)


def made(*shape, own=True, dtype=torch.float64):
    """x, scale and shift, such that nothing lies next to the corner of relu: it would fall on either side of it."""
    few = shape[:2] if own else shape[1:2]
    x, scale, shift = normal(*shape, dtype=dtype), normal(*few, seed=1, dtype=dtype), normal(*few, seed=2, dtype=dtype)
    scale = torch.where(scale.abs() < 0.2, 0.7, scale)
    near = textbook(x.double(), scale.double(), shift.double(), "linear").abs() < 0.05
    moved = (1 - shift.double()) / scale.double()
    return [torch.where(near, moved.expand(shape[:2])[:, :, None, None], x.double()).to(dtype), scale, shift]


@own_or_shared
@every_act
@every_factor
def test_is_scale_shift_activation_and_repeated_pixels(own, act, up):
    assert_same_derivatives(
        lambda *t: scale_shift_act(*t, act=act, up=up), lambda *t: textbook(*t, act, up), made(2, 3, 5, 4, own=own)
    )


@own_or_shared
@every_factor
def test_derivatives_are_those_of_the_function(own, up):
    tensors = [t.requires_grad_() for t in made(2, 2, 2, 3, own=own)]
    assert gradcheck(lambda *t: scale_shift_act(*t, up=up), tensors)
    assert gradgradcheck(lambda *t: scale_shift_act(*t, up=up), tensors)


@every_dtype
@every_factor
def test_is_as_accurate_as_one_step_after_another(dtype, up):
    x, *masters = made(2, 3, 5, 4, dtype=dtype)
    masters = [t.float() for t in masters]
    # second derivatives by x alone: the fp32 masters leave those by scale and shift to chance
    assert_as_accurate(
        lambda x: scale_shift_act(x, *(t.to(torch.promote_types(t.dtype, x.dtype)) for t in masters), up=up),
        lambda x: textbook(x, *masters, up=up),
        [x],
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
def test_16_bit_images_have_fp32_gradients_of_their_fp32_scale_and_shift(dtype):
    tensors = made(2, 3, 8, 8, dtype=dtype)

    def gradients(images, wide):
        inputs = [t.to(images if i == 0 else wide).requires_grad_() for i, t in enumerate(tensors)]
        y = scale_shift_act(*inputs)
        assert y.dtype == images
        return torch.autograd.grad(y, inputs, normal(*y.shape, seed=9, dtype=dtype).to(images))

    for got, expected in zip(gradients(dtype, torch.float32)[1:], gradients(torch.float64, torch.float64)[1:]):
        assert got.dtype == torch.float32
        assert_close(got.double(), expected, tolerance=8 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("training", [True, False], ids=["batch", "running"])
def test_makes_a_batch_norm(training):
    x, weight, bias = made(4, 3, 5, 4, own=False)
    mean, var = normal(3, seed=3), normal(3, seed=4).square()

    def norm(x, weight, bias):
        v, m = torch.var_mean(x, [0, 2, 3], correction=0) if training else (var, mean)
        scale = weight * (v + 1e-5).rsqrt()
        return scale_shift_act(x, scale, bias - m * scale, act="linear")

    assert_same_derivatives(
        norm, lambda x, w, b: F.batch_norm(x, mean.clone(), var.clone(), w, b, training, eps=1e-5), [x, weight, bias]
    )


@every_factor
def test_memory_format_is_kept(up):
    x, scale, shift = made(2, 3, 5, 7)
    assert scale_shift_act(x, scale, shift, up=up).is_contiguous()
    y = scale_shift_act(x.contiguous(memory_format=torch.channels_last), scale, shift, up=up)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_caller_keeps_his_tensors():
    tensors = made(2, 3, 4, 4)
    before = [t.clone() for t in tensors]
    scale_shift_act(*tensors)
    assert all(torch.equal(t, b) for t, b in zip(tensors, before))


@own_or_shared
@every_factor
def test_empty_batch_gives_an_empty_result(own, up):
    few = [0, 3] if own else [3]
    assert scale_shift_act(normal(0, 3, 4, 5), normal(*few), normal(*few), up=up).shape == (0, 3, 4 * up, 5 * up)


X, SCALE = torch.zeros(2, 3, 5, 5), torch.zeros(3)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (dict(x=X[0]), ValueError, r"x must be \[N, C, H, W\]"),
        (dict(scale=SCALE[:2]), ValueError, r"scale must .* expected shape \(3,\) or \(2, 3\), got \(2,\)"),
        (dict(shift=SCALE.expand(3, 3)), ValueError, r"shift must .* got \(3, 3\)"),
        (dict(shift=SCALE.int()), TypeError, "shift must be of a floating point dtype, got torch.int32"),
        (dict(scale=SCALE.to("meta")), ValueError, "scale must be on the device of x"),
        (dict(act="gelu"), ValueError, "act='gelu': expected one of 'linear', 'relu'"),
        (dict(up=3), ValueError, "up must be 1 or 2, got 3"),
    ],
)
def test_says_what_is_wrong(arguments, error, words):
    with pytest.raises(error, match=words):
        scale_shift_act(**{"x": X, "scale": SCALE, "shift": SCALE, **arguments})


# The kernels, on a GPU where there is one, else in Triton's interpreter.


def on_gpu(tensors, channels_last=False):
    x, *few = (t.to(DEVICE) for t in tensors)
    return [x.contiguous(memory_format=torch.channels_last) if channels_last else x, *few]


# one pixel, odd, more than a tile, more channels than a tile has, channels in groups of 8
SHAPES = [
    ((2, 3, 1, 1), True), ((1, 1, 5, 3), False), ((2, 3, 5, 4), False), ((1, 2, 67, 65), True), ((2, 67, 4, 5), True),
    ((2, 16, 9, 8), False),
]  # fmt: skip


@every_format
@every_factor
@pytest.mark.parametrize("shape, own", SHAPES, ids=str)
def test_kernels_take_any_shape(triton, shape, own, up, channels_last):
    tensors = on_gpu(made(*shape, own=own, dtype=torch.float32), channels_last)
    dy = normal(*shape[:2], shape[2] * up, shape[3] * up, seed=9, dtype=torch.float32).to(DEVICE)
    for twice in (False, True):
        got, expected = (gradients(tensors, dy, impl, twice, up=up) for impl in ("triton", "reference"))
        assert got[0].stride() == expected[0].stride()
        assert_errs_as_little(got, expected, gradients([t.double() for t in tensors], dy.double(), "reference", twice, up=up), terms=dy.numel())


def gradients(tensors, dy, impl, twice, **arguments):
    """Value and gradients, or with `twice` second gradients: backward takes another way to each."""
    inputs = [t.detach().requires_grad_() for t in (*tensors, dy)]
    y = scale_shift_act(*inputs[:3], **arguments, impl=impl)
    first = torch.autograd.grad(y, inputs[:3], inputs[3], create_graph=twice)
    if not twice:
        return y.detach(), *first
    return torch.autograd.grad(sum(g.float().square().sum() for g in first), [inputs[0], inputs[1], inputs[3]])


@every_format
@every_factor
@every_act
@every_dtype
def test_kernels_are_as_accurate_as_one_step_after_another(triton, dtype, act, up, channels_last):
    assert_as_accurate(
        lambda *t: scale_shift_act(*t, act=act, up=up, impl="triton"),
        lambda *t: textbook(*t, act, up),
        on_gpu(made(2, 3, 5, 4, dtype=dtype), channels_last),
        # the interpreter cuts off what does not fit into bfloat16, where a GPU rounds
        factor=4 if dtype == torch.bfloat16 and DEVICE == "cpu" else 2,
    )


@every_format
@every_factor
def test_kernels_sum_gradients_in_fp32_and_in_one_order(triton, up, channels_last):
    tensors = made(2, 3, 40, 30, dtype=torch.float16)
    dy = normal(2, 3, 40 * up, 30 * up, seed=9, dtype=torch.float16).to(DEVICE)
    x, *few = on_gpu(tensors, channels_last)
    few = [t.float() for t in few]
    got, again = (gradients([x, *few], dy, "triton", False, up=up) for _ in range(2))
    expected = gradients([x.double(), *(t.double() for t in few)], dy.double(), "reference", False, up=up)
    for g, a, e in zip(got, again, expected):
        assert torch.equal(g, a)
    for g, e in zip(got[2:], expected[2:]):
        assert g.dtype == torch.float32
        assert_close(g.double(), e, tolerance=8 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("needed", range(3), ids=["x", "scale", "shift"])
def test_kernels_give_one_gradient_alone(triton, needed):
    tensors = on_gpu(made(2, 3, 5, 4, dtype=torch.float32))
    tensors[needed].requires_grad_()
    got, expected, truth = (
        torch.autograd.grad(scale_shift_act(*(t.to(dtype) for t in tensors), up=2, impl=impl).square().sum(), tensors[needed])
        for impl, dtype in (("triton", torch.float32), ("reference", torch.float32), ("reference", torch.float64))
    )
    assert_errs_as_little(got, expected, truth)


def test_kernels_take_any_strides_of_input_and_gradient(triton):
    x, scale, shift = on_gpu(made(2, 4, 5, 3, dtype=torch.float32))
    scale, shift = scale.T.contiguous().T, shift[:1].expand(2, 4)
    strided = x.mT.contiguous().mT, torch.stack([x, x], -1)[..., 0], x[:, :, :1].expand(x.shape)
    for x in strided:
        # as y.sum() leaves it: expanded, without strides
        dy = torch.ones([], device=DEVICE).expand(2, 4, 10, 6)
        got, expected = (gradients([x, scale, shift], dy, impl, False, up=2) for impl in ("triton", "reference"))
        assert_errs_as_little(got, expected, gradients([t.double() for t in (x, scale, shift)], dy.double(), "reference", False, up=2))


def test_kernels_pass_what_is_not_finite(triton):
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0], device=DEVICE).reshape(1, 1, 2, 2)
    one = torch.ones(1, device=DEVICE)
    for act in ("linear", "relu"):
        got, expected = (scale_shift_act(x, one, one, act=act, up=2, impl=impl) for impl in ("triton", "reference"))
        torch.testing.assert_close(got, expected, equal_nan=True)


def test_kernels_take_an_empty_batch(triton):
    x, one = (torch.ones(size, device=DEVICE, requires_grad=True) for size in ((0, 3, 4, 4), (3,)))
    y = scale_shift_act(x, one, one, up=2, impl="triton")
    y.sum().backward()
    assert y.shape == (0, 3, 8, 8) and one.grad.tolist() == [0, 0, 0]
