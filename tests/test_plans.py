"""Operators check and choose once for calls that are alike, and again as soon as anything differs that they go by."""

import weakref
from contextlib import contextmanager
from functools import wraps

import pytest
import torch
from certified import CPU, certified, pretend_gpu
from fastdgl_kernels import (
    _dispatch,
    _fallback,
    _launch,
    _plans,
    bias_act,
    conv2d_resample,
    implementation,
    modulated_conv2d,
    modulated_conv2d_bias_act,
    setup_filter,
    upfirdn2d,
)
from fastdgl_kernels.activation import op as activation
from fastdgl_kernels.convolution import algebra
from fastdgl_kernels.convolution import op as convolution
from fastdgl_kernels.modulation import op as modulation
from fastdgl_kernels.resampling import op as resampling

F = setup_filter([1, 3, 3, 1])


def image(*shape, dtype=torch.float32):
    return torch.randn(shape or (2, 8, 4, 4)).to(dtype)


CALLS = {
    "bias_act": lambda x, **k: bias_act(x, torch.zeros(x.shape[1], dtype=x.dtype), **k),
    "upfirdn2d": lambda x, **k: upfirdn2d(x, F, **({"padding": [2, 1, 2, 1]} | k)),
    "conv2d_resample": lambda x, **k: conv2d_resample(x, torch.zeros(4, x.shape[1], 3, 3, dtype=x.dtype), F, **({"padding": 1} | k)),
    "modulated_conv2d": lambda x, **k: modulated_conv2d(x, torch.zeros(4, x.shape[1], 3, 3), torch.zeros(x.shape[:2]), **({"padding": 1} | k)),
    "modulated_conv2d_bias_act": lambda x, **k: modulated_conv2d_bias_act(
        x, torch.zeros(4, x.shape[1], 3, 3), torch.zeros(x.shape[:2]), bias=torch.zeros(4), **({"padding": 1} | k)
    ),
}
every_operator = pytest.mark.parametrize("operator", CALLS)


@pytest.fixture(autouse=True)
def choices(monkeypatch):
    """How often an operator was chosen for, of those called by the test and not by one another."""
    monkeypatch.delenv("FASTDGL_IMPL", raising=False)
    made = []
    for module in (activation, resampling, convolution, modulation):

        def counted(x, *arguments, dispatch=module.dispatch, **keywords):
            made.append(keywords["reference"].__name__)
            return dispatch(x, *arguments, **keywords)

        monkeypatch.setattr(module, "dispatch", counted)
    return made


@contextmanager
def others(choices, operator, number):
    """Expect so many choices for an operator inside."""
    before = choices.count(operator)
    yield
    assert choices.count(operator) - before == number


@every_operator
def test_a_shape_seen_before_is_not_checked_again(operator, choices):
    call = CALLS[operator]
    expected = call(x := image())
    with others(choices, operator, 0):
        for _ in range(3):
            assert torch.equal(call(x), expected)
        # other numbers, an offset and gradients change no choice
        call(image(3, 8, 4, 4)[1:])
        call(image().requires_grad_())


@every_operator
@pytest.mark.parametrize(
    "x", [image(1, 8, 4, 4), image(2, 4, 4, 4), image(dtype=torch.float64), image().to(memory_format=torch.channels_last),
          image(2, 8, 8, 8)[:, :, ::2, ::2], image().to("meta")],
    ids=["batch", "channels", "dtype", "layout", "strides", "device"],
)  # fmt: skip
def test_another_tensor_has_a_plan_of_its_own(operator, choices, x):
    call = CALLS[operator]
    call(image())
    if x.is_meta:
        with pytest.raises(ValueError, match="device"):
            call(x)
        return
    with others(choices, operator, 1):
        call(x)
        call(x)


@every_operator
def test_bad_input_is_rejected_however_often_it_comes(operator):
    call = CALLS[operator]
    call(image())
    for _ in range(2):
        with pytest.raises(TypeError, match="x must be"):
            call(image().int())
    if operator != "bias_act":
        for _ in range(2):
            with pytest.raises(ValueError, match="N, C, H, W"):
                call(image(2, 8, 4))


def test_equal_numbers_of_other_types_are_checked_as_what_they_are():
    x = image()
    upfirdn2d(x, F, up=2, padding=1), bias_act(x, gain=2.0)
    for bad in ({"up": 2.0}, {"up": 2, "padding": 1.0}, {"up": 2, "padding": [1.0, 1.0]}):
        with pytest.raises(TypeError, match="integer"):
            upfirdn2d(x, F, **({"padding": 1} | bad))
    # a tensor is a number that may change
    gain = torch.tensor(2.0)
    assert torch.equal(bias_act(x, gain=gain), x * 2)
    gain.fill_(3.0)
    assert torch.equal(bias_act(x, gain=gain), x * 3)
    # whose sign of zero counts
    assert bias_act(x.abs(), gain=0.0).signbit().sum() == 0 and bias_act(x.abs() + 1, gain=-0.0).signbit().all()


def test_a_filter_that_takes_gradients_is_rejected_after_one_that_does_not():
    x = image()
    for call in (lambda f: upfirdn2d(x, f, padding=2), lambda f: conv2d_resample(x, torch.zeros(4, 8, 3, 3), f, down=2, padding=1)):
        call(F)
        with pytest.raises(ValueError, match="gradient"):
            call(F.clone().requires_grad_())


@every_operator
def test_what_is_in_force_is_asked_at_every_call(operator, monkeypatch, triton, choices):
    call, x = CALLS[operator], image()
    references = []
    for module in (activation, resampling, convolution, modulation):
        if definition := getattr(module.reference, operator, None):

            @wraps(definition)
            def computed(*arguments, definition=definition):
                references.append(operator)
                return definition(*arguments)

            monkeypatch.setattr(module.reference, operator, computed)
    monkeypatch.setattr(_launch, "_start", lambda *arguments, **options: None)

    def runs_kernels(**keywords):
        references.clear()
        call(x, **keywords)
        return not references

    for _ in range(2):
        assert not runs_kernels()
        assert runs_kernels(impl="triton")
        with implementation("triton"):
            assert runs_kernels() and not runs_kernels(impl="reference")
        monkeypatch.setenv("FASTDGL_IMPL", "triton")
        assert runs_kernels()
        monkeypatch.setenv("FASTDGL_IMPL", "reference")
        assert not runs_kernels()
        monkeypatch.delenv("FASTDGL_IMPL")
    monkeypatch.setenv("FASTDGL_IMPL", "none such")
    for _ in range(2):
        with pytest.raises(ValueError, match="none such"):
            call(x)
    monkeypatch.delenv("FASTDGL_IMPL")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        call(x, impl="triton")


def test_another_verdict_another_choice(monkeypatch, triton):
    pretend_gpu(monkeypatch)
    taken, x = [], image()
    monkeypatch.setattr(_launch, "_start", lambda kernel, *arguments, **options: taken.append(kernel))

    def runs_kernels():
        taken.clear()
        bias_act(x, torch.zeros(8))
        return bool(taken)

    for _ in range(2):
        _dispatch.use(CPU, certified())
        assert runs_kernels() and runs_kernels()
        _dispatch.use(CPU, certified(wrong=["bias_act"]))
        assert not runs_kernels() and not runs_kernels()
        _dispatch.use(CPU, None, "none is wanted")
        assert not runs_kernels()
    # a kernel that fails later on
    _dispatch.use(CPU, certified())
    assert runs_kernels()
    monkeypatch.setattr(_fallback, "_failures", {("bias_act", CPU): "of a test"})
    assert not runs_kernels()


def test_a_transform_takes_no_plan_of_kernels(triton):
    x = image()
    with implementation("triton"):
        bias_act(x, act="lrelu")
        with pytest.raises(RuntimeError, match="torch.func"):
            torch.func.grad(lambda t: bias_act(t, act="lrelu").sum())(x)


def test_autocast_is_left_alone_by_plans_made_outside():
    x, w, s = image(), torch.randn(4, 8, 3, 3), torch.randn(2, 8)
    expected = modulated_conv2d(x, w, s, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        got = modulated_conv2d(x, w, s, padding=1)
    _plans.forget_plans()
    with torch.autocast("cpu", torch.bfloat16):
        fresh = modulated_conv2d(x, w, s, padding=1)
    assert torch.equal(got, fresh) and torch.equal(modulated_conv2d(x, w, s, padding=1), expected)


def test_plans_are_bounded_and_the_oldest_go_first(monkeypatch, choices):
    monkeypatch.setattr(_plans, "MOST_PLANS", 3)
    for n in range(1, 8):
        bias_act(image(n, 8, 4, 4))
        assert len(activation._plans) <= 3
    with others(choices, "bias_act", 1):
        bias_act(image(7, 8, 4, 4))
        bias_act(image(1, 8, 4, 4))


@every_operator
def test_a_plan_keeps_no_tensor_alive(operator):
    x = image()
    gone = weakref.ref(x)
    CALLS[operator](x)
    del x
    assert gone() is None


def test_a_layer_computes_its_sizes_once(triton, monkeypatch):
    """Tiles and adjoints are looked up for a shape seen before, in backward too."""
    from fastdgl_kernels.activation import kernel as act
    from fastdgl_kernels.modulation import epilogue
    from fastdgl_kernels.resampling import kernel as filters

    monkeypatch.setattr(algebra, "within", lambda x, asked: "triton")
    monkeypatch.setattr(_launch, "_start", lambda *arguments, **options: None)
    x, w, s, b = (t.requires_grad_() for t in (image(), torch.randn(8, 8, 3, 3), torch.randn(2, 8), torch.randn(8)))

    def step():
        y = modulated_conv2d_bias_act(x, w, s, bias=b, up=2, padding=1, resample_filter=F, flip_weight=False, impl="triton")
        y = bias_act(y, b, act="lrelu", impl="triton")
        torch.autograd.grad(y, (x, w, s, b), torch.ones_like(y))

    step()
    computed = []
    for module, name in ((act, "_matrix"), (epilogue, "tile"), (filters, "_separable_tile")):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, f=function, **k: computed.append(f.__name__) or f(*a, **k))
    step()
    assert computed == []
