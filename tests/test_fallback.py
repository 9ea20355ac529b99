"""A kernel that does not compile, or does not fit its GPU: PyTorch computes in its place, in every derivative, and says so."""

import re
import warnings

import pytest
import torch
from fastdgl_kernels import (
    _dispatch,
    _fallback,
    _launch,
    bias_act,
    conv2d_resample,
    explain,
    modulated_conv2d_bias_act,
    scale_shift_act,
    setup_filter,
    upfirdn2d,
)
from numerics import assert_as_accurate, derivatives, normal
from triton.runtime.errors import OutOfResources, PTXASError

F = setup_filter([1, 3, 3, 1])
ORDERS = ("forward", "backward", "double backward")


class Launches:
    """Stands in for Triton's launches: from a derivative of the order `since` on, none succeeds."""

    def __init__(self, start, error):
        self.start, self.error, self.since, self.order, self.refused = start, error, "never", "forward", 0

    def __call__(self, kernel, grid, *arguments, **options):
        assert options["enable_fp_fusion"] is True
        if self.since in ORDERS and ORDERS.index(self.order) >= ORDERS.index(self.since):
            self.refused += 1
            raise self.error
        return self.start(kernel, grid, *arguments, **options)


@pytest.fixture
def launches(triton, monkeypatch):
    stand_in = Launches(_launch._start, OutOfResources(300000, 101376, "shared memory"))
    monkeypatch.setattr(_launch, "_start", stand_in)
    monkeypatch.setattr(_fallback, "_failures", {})
    return stand_in


def by_order(launches, operator):
    """`operator` run as kernels, which notes the order of the derivative under way."""

    class Mark(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, dy):
            launches.order = "backward" if torch.is_grad_enabled() else "double backward"
            return Mark.apply(dy)

    def run(*tensors):
        launches.order = "forward"
        # a backward passes the output's mark first, a backward of it the inputs'
        return Mark.apply(operator(*map(Mark.apply, tensors), impl="triton"))

    return run


def floats(*shapes, dtype=torch.float32):
    return [normal(*shape, seed=i).to(dtype) for i, shape in enumerate(shapes)]


def halves(*shapes):
    x, *others = floats(*shapes, dtype=torch.float16)
    return [x.contiguous(memory_format=torch.channels_last), *(t / t[0].numel() ** 0.5 for t in others)]


def layer(x, w, s, bias, impl=None, **keywords):
    return modulated_conv2d_bias_act(x, w, s, None, bias, padding=1, resample_filter=F, flip_weight=False, impl=impl, **keywords)


def to_rgb(x, w, s, bias, impl=None):
    return modulated_conv2d_bias_act(x, w, s, None, bias, demodulate=False, act="linear", clamp=2.0, impl=impl)


OPERATORS = {
    "bias_act lrelu": (lambda x, b, impl=None: bias_act(x, b, act="lrelu", clamp=1.0, impl=impl), [(2, 3, 5, 4), (3,)]),
    "bias_act swish": (lambda x, b, impl=None: bias_act(x, b, act="swish", clamp=1.0, impl=impl), [(2, 3, 5, 4), (3,)]),
    "upfirdn2d": (lambda x, impl=None: upfirdn2d(x, F, up=2, padding=[2, 1, 2, 1], gain=4, impl=impl), [(2, 3, 5, 4)]),
    "scale_shift_act": (
        lambda x, a, b, impl=None: scale_shift_act(x, a, b, up=2, impl=impl), [(2, 3, 4, 4), (2, 3), (2, 3)],
    ),
    "layer": (layer, [(2, 3, 4, 4), (4, 3, 3, 3), (2, 3), (4,)]),
    "layer up": (
        lambda *tensors, impl=None: layer(*tensors, up=2, clamp=1.0, impl=impl), [(2, 3, 4, 4), (4, 3, 3, 3), (2, 3), (4,)],
    ),
    "to_rgb": (to_rgb, [(2, 5, 4, 4), (3, 5, 1, 1), (2, 5), (3,)]),
}  # fmt: skip


@pytest.mark.parametrize("since", ORDERS)
@pytest.mark.parametrize("operator, shapes", OPERATORS.values(), ids=OPERATORS)
def test_pytorch_computes_what_a_kernel_that_is_rejected_would(launches, operator, shapes, since):
    launches.since = since
    run = by_order(launches, operator)

    def reference(*tensors):
        return operator(*tensors, impl="reference")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_as_accurate(run, reference, floats(*shapes), factor=4.0)
    assert launches.refused > 0
    said = [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]
    operators = [words.partition(":")[0] for words in said]
    # one warning for each operator, and no launch of it is tried after that
    assert len(said) == len(set(operators)) == launches.refused == len(_fallback._failures)
    for words in said:
        assert re.search("does not run on cpu: OutOfResources: .*300000.*101376.*PyTorch computes .*until this process ends", words)


@pytest.mark.parametrize("name", ["linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish"])
@pytest.mark.parametrize("clamp", [None, 0.7], ids=["", "clamped"])
def test_the_formulas_of_bias_act_are_right_for_every_activation(launches, name, clamp):
    launches.since = "forward"
    with pytest.warns(RuntimeWarning, match="bias_act: a kernel does not run"):
        assert_as_accurate(
            lambda x, b: bias_act(x, b, act=name, clamp=clamp, impl="triton"),
            lambda x, b: bias_act(x, b, act=name, clamp=clamp, impl="reference"),
            floats((2, 3, 5, 4), (3,)), factor=4.0,
        )  # fmt: skip


@pytest.mark.parametrize("keywords, shapes", [
    (dict(), [(2, 64, 8, 16), (64, 64, 3, 3)]),
    (dict(up=2), [(2, 64, 8, 16), (64, 64, 3, 3)]),
    (dict(down=2), [(1, 32, 16, 32), (64, 32, 3, 3)]),
    (dict(), [(1, 32, 8, 16), (32, 32, 3, 3)]),
], ids=["same", "up", "down", "of 32"])  # fmt: skip
def test_pytorch_convolves_what_a_kernel_that_is_rejected_would(launches, keywords, shapes):
    launches.since, launches.error = "forward", PTXASError("ptxas fatal")

    def run(x, w, impl):
        return conv2d_resample(x, w, F, padding=1, impl=impl, **keywords)

    x, w = halves(*shapes)
    dy = normal(*run(x, w, "reference").shape, seed=9).half()
    exact = derivatives(lambda x, w: run(x, w, "reference"), [x.double(), w.double()], dy.double())
    plain = derivatives(lambda x, w: run(x, w, "reference"), [x, w], dy)
    with pytest.warns(RuntimeWarning, match="convolution: a kernel does not run on cpu: PTXASError: PTXAS error: ptxas fatal"):
        got = derivatives(lambda x, w: run(x, w, "triton"), [x, w], dy)
    eps = torch.finfo(torch.float16).eps
    for name in got.keys() & exact.keys():
        bound = 4 * (plain[name] - exact[name]).norm() + 2 * eps * exact[name].norm()
        assert (got[name] - exact[name]).norm() <= bound, name


def test_a_rejected_gradient_of_a_weight_is_pytorchs(launches):
    """The forward's kernel has run: its backward finds its own rejected."""
    from fastdgl_kernels.convolution import kernel
    from fastdgl_kernels.convolution.spec import Geometry

    same = Geometry((3, 3), padding=(1, 1), own=True)
    x, dy = halves((1, 64, 8, 16), (1, 64, 8, 16))
    dy = dy.contiguous(memory_format=torch.channels_last)
    exact = torch.nn.grad.conv2d_weight(x.double(), (64, 64, 3, 3), dy.double(), padding=1)
    launches.since = "forward"
    with pytest.warns(RuntimeWarning, match="convolution"):
        got = kernel.weight_gradient(x, dy, same)
    assert got.dtype == torch.float32 and got.is_contiguous(memory_format=torch.channels_last)
    assert (got - exact).norm() <= torch.finfo(torch.float16).eps * exact.norm()


def test_what_failed_stays_with_the_reference_and_explain_says_why(launches):
    x = torch.zeros(2, 4)
    with _dispatch.implementation("fastest"):
        assert "runs as 'triton'" in explain(bias_act, x, act="relu")
        launches.since = "forward"
        with pytest.warns(RuntimeWarning):
            bias_act(x, act="relu")
        launches.since = "never"
        text = explain(bias_act, x, act="relu")
        assert "runs as 'reference'" in text and "a kernel of it failed in this process: OutOfResources" in text
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            bias_act(x, act="relu")
        # of other operators, nothing has failed
        assert "runs as 'triton'" in explain(scale_shift_act, torch.zeros(1, 1, 2, 2), torch.zeros(1), torch.zeros(1))


def test_who_checks_kernels_sees_them_fail(launches):
    launches.since = "forward"
    with _fallback.failures_raised(), pytest.raises(_fallback.LaunchError, match="300000"):
        bias_act(torch.zeros(2, 4), act="relu", impl="triton")
    assert not _fallback._failures


def test_other_errors_are_not_swallowed(launches):
    launches.since, launches.error = "forward", TypeError("a bug")
    with pytest.raises(TypeError, match="a bug"):
        bias_act(torch.zeros(2, 4), act="relu", impl="triton")
