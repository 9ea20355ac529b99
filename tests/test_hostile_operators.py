"""Arguments that operators cannot take, and tensors laid out as nobody expects: a sentence, or the numbers of the reference in float64."""

import warnings

import pytest
import torch
from fastdgl_kernels import bias_act, conv2d_resample, filtered_lrelu, modulated_conv2d, scale_shift_act, setup_filter, upfirdn2d
from hostile import examples, for_all, not_for_ever
from hypothesis import strategies as st

IMPLS = ("reference", "triton")
REFUSALS = (ValueError, TypeError, RuntimeError)


def numbers(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def call(operator, x, impl, **changes):
    """The operator on `x`, with the other tensors that it wants of it."""
    N, C = x.shape[:2]
    f, like = setup_filter([1, 3, 3, 1]), {"dtype": x.dtype, "device": x.device}
    if operator is bias_act:
        return bias_act(x, numbers([C]).to(**like), **{"act": "lrelu"} | changes, impl=impl)
    if operator is upfirdn2d:
        return upfirdn2d(x, f.to(x.device), **{"up": 2, "padding": 2} | changes, impl=impl)
    if operator is filtered_lrelu:
        return filtered_lrelu(x, fu=f.to(x.device), fd=f.to(x.device), **{"up": 2, "down": 2, "padding": 3} | changes, impl=impl)
    if operator is conv2d_resample:
        return conv2d_resample(x, numbers([2, C, 3, 3]).to(**like), f=f.to(x.device), **{"down": 2, "padding": 1} | changes, impl=impl)
    if operator is modulated_conv2d:
        return modulated_conv2d(x, numbers([2, C, 3, 3]).to(**like), numbers([N, C], 1).to(**like), **{"padding": 1} | changes, impl=impl)
    return scale_shift_act(x, numbers([N, C]).to(**like), numbers([N, C], 1).to(**like), **changes, impl=impl)


OPERATORS = (bias_act, upfirdn2d, filtered_lrelu, conv2d_resample, modulated_conv2d, scale_shift_act)
every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.__name__)
every_impl = pytest.mark.parametrize("impl", IMPLS)


def right_or_refused(operator, x, impl, **changes):
    """Hold what comes of a call against the reference in float64 on a plain copy; or None where it is refused in a sentence."""
    with not_for_ever(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            y = call(operator, x, impl, **changes)
        except REFUSALS as error:
            assert str(error) and "Interpreter" not in type(error).__name__
            return None
        right = call(operator, x.double().contiguous(), "reference", **changes)
    assert y.shape == right.shape and y.dtype == x.dtype
    eps = torch.finfo(x.dtype).eps
    finite = right[right.isfinite()]
    close = (y.double() - right).abs() <= 64 * eps * (finite.abs().max() if finite.numel() else 1)
    # sums on the way may leave the range of the dtype where the result is in it
    overflowed = ~y.isfinite() & ((finite.abs().max() if finite.numel() else 0) > torch.finfo(x.dtype).max / 1000)
    assert (close | overflowed | (y.isnan() & right.isnan()) | (y.double() == right)).all()
    return y


LAYOUTS = {
    "plain": lambda x: x,
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "turned": lambda x: x.transpose(2, 3),
    "every-other": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "cut-out": lambda x: torch.nn.functional.pad(x, [1, 2, 3, 1])[..., 3:-1, 1:-2],
    "batch-repeated": lambda x: x[:1].expand(len(x), -1, -1, -1),
    "all-one-number": lambda x: x.flatten()[:1].reshape(1, 1, 1, 1).expand(x.shape) if x.numel() else x,
    "overlapping": lambda x: torch.arange(x.shape[2] + x.shape[3]).to(x.dtype).as_strided(x.shape, (0, 0, 1, 1)) if x.numel() else x,
    "flipped": lambda x: x.flip(2),
}


@st.composite
def inputs(draw, impl):
    """Small tensors of any layout, dtype and emptiness, some of whose numbers are none."""
    shape = [draw(st.sampled_from([0, 1, 2])), draw(st.sampled_from([0, 1, 3]) if draw(st.booleans()) else st.just(2)),
             draw(st.sampled_from([0, 1, 4, 5])), draw(st.sampled_from([1, 3, 4]))]
    x = numbers(shape, draw(st.integers(0, 3)))
    if draw(st.booleans()) and x.numel():
        x.view(-1)[draw(st.integers(0, x.numel() - 1))] = draw(st.sampled_from([float("nan"), float("inf"), -float("inf"), 0.0, 1e38]))
    x = x.to(draw(st.sampled_from([torch.float32, torch.float32, torch.float64] + ([torch.int32, torch.bool, torch.complex64] if impl == "reference" else []))))
    return LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](x)


GEOMETRY = st.sampled_from([-100, -3, -1, 0, 1, 2, 3, 7, [1, 0], [3, -1, 0, 2], [0, 1, 2], [], 2**24 + 1, 2**31, 2**63, -2**63, 1.5, "2", None])


@examples(few=80, many=10000)
def test_any_call_of_the_reference_is_right_or_refused(examples):
    def check(case):
        operator, x, key, value = case
        if operator in (bias_act, scale_shift_act):
            right_or_refused(operator, x, "reference")
        else:
            right_or_refused(operator, x, "reference", **({} if key is None else {key: value}))

    # what is scaled up by much takes much memory, and is no mistake
    scalings = GEOMETRY.filter(lambda value: not isinstance(value, int) or value < 8 or value > 2**24)
    settings = st.one_of(st.tuples(st.none(), st.none()), st.tuples(st.just("padding"), GEOMETRY), st.tuples(st.sampled_from(["up", "down"]), scalings))
    cases = st.tuples(st.sampled_from(OPERATORS), inputs("reference"), settings).map(lambda case: (case[0], case[1], *case[2]))
    for_all(cases.filter(lambda case: not (case[0] is modulated_conv2d and case[2] == "down")), examples, check)


@examples(few=12, many=1500)
def test_any_call_of_the_kernels_is_right_or_refused(examples, triton):
    for_all(st.tuples(st.sampled_from(OPERATORS), inputs("triton")), examples, lambda case: right_or_refused(*case, "triton"))


@every_impl
@every_operator
def test_an_empty_batch_is_an_empty_batch(operator, impl, triton):
    assert right_or_refused(operator, torch.empty(0, 3, 4, 4), impl).shape[0] == 0


@every_operator
def test_what_is_no_tensor_is_refused_by_name(operator):
    for x in ([1.0, 2.0], None, 5):
        with pytest.raises(TypeError, match=f"x must be a tensor, got {type(x).__name__}"):
            if operator is bias_act:
                bias_act(x)
            elif operator is upfirdn2d:
                upfirdn2d(x, None)
            elif operator is filtered_lrelu:
                filtered_lrelu(x)
            elif operator is conv2d_resample:
                conv2d_resample(x, numbers([2, 3, 3, 3]))
            elif operator is modulated_conv2d:
                modulated_conv2d(x, numbers([2, 3, 3, 3]), numbers([1, 3]))
            else:
                scale_shift_act(x, numbers([1, 3]), numbers([1, 3]))


@every_impl
@pytest.mark.parametrize("key", ["up", "down", "padding"])
@pytest.mark.parametrize("value", [2**24 + 1, 2**31, 2**63, [1, 2**40]], ids=str)
def test_numbers_that_32_bits_cannot_add_up_are_refused(key, value, impl, triton):
    with pytest.raises(ValueError, match=f"{key} must be from -16777216 to 16777216, got "):
        upfirdn2d(numbers([1, 1, 4, 4]), None, **{key: value}, impl=impl)


def test_shapes_of_more_than_any_memory_are_refused_and_nothing_is_written():
    """2^40 elements, of one number in memory."""
    x = torch.zeros(1).expand(2**10, 2**10, 2**10, 2**10)
    for operator in OPERATORS:
        with pytest.raises(REFUSALS):
            call(operator, x, "reference")


@every_operator
def test_tensors_of_no_device_have_results_of_no_device(operator):
    """As tracers use them; no kernel is started."""
    x = torch.empty(2, 3, 8, 8, device="meta")
    assert call(operator, x, None).device.type == "meta"
    with pytest.raises(RuntimeError, match="it is on meta"):
        call(operator, x, "triton")
