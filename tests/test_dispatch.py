import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from certified import CPU, certified, pretend_gpu
from fastdgl_kernels import (
    _dispatch,
    bias_act,
    conv2d_resample,
    explain,
    implementation,
    kernels_in_force,
    modulated_conv2d,
    modulated_conv2d_bias_act,
    setup_filter,
    upfirdn2d,
)
from fastdgl_kernels._dispatch import asked, dispatch, within
from fastdgl_kernels.certify import verdict as verdicts
from fastdgl_kernels.certify.verdict import Timing
from fastdgl_kernels.convolution import algebra, backends

X = torch.zeros(1, 2, 4, 4)

OPERATORS = {
    "bias_act": lambda impl: bias_act(X, impl=impl),
    "upfirdn2d": lambda impl: upfirdn2d(X, None, impl=impl),
    "conv2d_resample": lambda impl: conv2d_resample(X, torch.zeros(3, 2, 1, 1), impl=impl),
    "modulated_conv2d": lambda impl: modulated_conv2d(X, torch.zeros(3, 2, 1, 1), torch.zeros(1, 2), impl=impl),
}
every_operator = pytest.mark.parametrize("name", OPERATORS)


def fast():
    """Stands for a kernel."""


def slow():
    """Stands for the reference."""


def chosen(impl=None):
    return dispatch(X, impl, triton=fast, reference=slow)


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    monkeypatch.delenv("FASTDGL_IMPL", raising=False)


@pytest.fixture
def able(monkeypatch):
    """As on a GPU: whatever an operator has can run."""
    monkeypatch.setattr(_dispatch, "why_not", lambda name, x: None)
    monkeypatch.setattr(_dispatch, "why_not_by_itself", lambda *arguments: None)


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_the_fastest_runs_unless_told_otherwise(able):
    assert chosen() is fast and chosen("auto") is fast
    assert chosen("reference") is slow and chosen("triton") is fast


def test_the_fastest_may_be_interpreted_where_the_choice_by_itself_leaves_that_alone(interpreted):
    assert chosen("auto") is slow and chosen("fastest") is fast


def test_auto_takes_kernels_where_the_verdict_says_they_are_right(monkeypatch):
    pretend_gpu(monkeypatch)
    _dispatch.use(CPU, certified(wrong=["conv2d_resample"]))
    assert runs(bias_act, X) == "triton" and runs(conv2d_resample, X, torch.zeros(3, 2, 1, 1)) == "reference"
    # a class that was not checked
    assert runs(bias_act, X.double()) == "reference"
    _dispatch.use(CPU, None, "none is wanted")
    assert runs(bias_act, X) == "reference" and "none is wanted; available by name" in explain(bias_act, X)


def test_auto_takes_the_fastest_of_what_is_right(monkeypatch):
    pretend_gpu(monkeypatch)
    w, timed = torch.zeros(3, 2, 3, 3), "same 2>3 @4 N=1 float32 NCHW"
    us = {"reference": 9.0, "cudnn": 8.0, "triton": 2.0}
    for name in us:
        timing = Timing("conv2d_resample", "float32", "NCHW", timed, name, us)
        _dispatch.use(CPU, certified(timings=[timing]))
        assert runs(conv2d_resample, X, w, padding=1) == name
    # 2.0 against 9.0
    assert "as timed on 2026-11-30: 4.50 times as fast as the reference" in explain(conv2d_resample, X, w, padding=1)
    # what is wrong is not taken, however fast; another layer goes by the table
    _dispatch.use(CPU, certified(wrong=["conv2d_resample"], timings=[timing]))
    assert runs(conv2d_resample, X, w, padding=1) == "reference"
    _dispatch.use(CPU, certified(timings=[timing]))
    assert runs(conv2d_resample, X, w, padding=1, down=2) == "cudnn"


def test_auto_leaves_tensors_alone_that_are_larger_than_any_that_was_certified(monkeypatch):
    pretend_gpu(monkeypatch)
    _dispatch.use(CPU, certified())
    large = torch.zeros(1).expand(2**11, 2**20, 1, 1)
    assert runs(upfirdn2d, large, None) == "reference" and "more than 2147483647 elements" in explain(upfirdn2d, large, None)
    # what lies inside counts: 4 times as many after upsampling
    quarter = torch.zeros(1).expand(2**9, 2**20, 1, 1)
    assert runs(upfirdn2d, quarter, None) == "triton" and runs(upfirdn2d, quarter, None, up=2) == "reference"


def test_without_a_verdict_the_reference_runs_and_one_warning_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pretend_gpu(monkeypatch)
    with pytest.warns(UserWarning) as said:
        for _ in range(3):
            bias_act(X, act="relu")
        upfirdn2d(X, None)
    words = "fastdgl_kernels runs plain PyTorch on cpu: this machine has no verdict yet; run `python -m fastdgl_kernels certify` once"
    assert len(said) == 1 and str(said[0].message).startswith(words)
    assert "this machine has no verdict yet; available by name, or as 'fastest'" in explain(bias_act, X)


def test_a_name_stands_above_the_verdict(monkeypatch):
    pretend_gpu(monkeypatch)
    for verdict, name in ((certified(), "reference"), (certified(wrong=["bias_act"]), "triton")):
        _dispatch.use(CPU, verdict)
        with implementation(name):
            assert runs(bias_act, X) == name
        monkeypatch.setenv("FASTDGL_IMPL", name)
        assert runs(bias_act, X) == name
        monkeypatch.delenv("FASTDGL_IMPL")


def test_a_verdict_is_read_once(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine = pretend_gpu(monkeypatch)
    verdicts.write(certified(machine))
    read, reads = verdicts.read, []
    monkeypatch.setattr(verdicts, "read", lambda machine: reads.append(machine) or read(machine))
    for _ in range(3):
        assert runs(bias_act, X) == "triton" and kernels_in_force(CPU)
    assert len(reads) == 1


def runs(operator, *arguments, **keywords):
    """The implementation that an operator takes by itself."""
    return explain(operator, *arguments, **keywords).split("'")[1]


@pytest.mark.parametrize("name, in_force", [("auto", False), ("fastest", True), ("triton", True), ("reference", False)])
def test_whether_kernels_are_in_force(interpreted, name, in_force):
    with implementation(name):
        assert kernels_in_force(torch.device("cpu")) is in_force


def test_inside_an_operator_that_was_asked_for_kernels_need_no_verdict(monkeypatch):
    monkeypatch.setattr(_dispatch, "why_not_triton", lambda device: None)
    monkeypatch.setattr(_dispatch, "_verdicts", {})
    _dispatch.use(torch.device("cuda", 0), None, "none is wanted")
    on_a_gpu = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0), dtype=torch.float32)
    for impl, inner in [("triton", fast), ("cudnn", fast), ("fastest", fast), ("auto", slow), ("cuda", slow), (None, slow)]:
        assert dispatch(on_a_gpu, within(on_a_gpu, asked(impl)), triton=fast, reference=slow) is inner
        assert dispatch(X, within(X, asked(impl)), triton=fast, reference=slow) is slow
    with implementation("fastest"):
        assert asked(None) == "fastest"
    monkeypatch.setenv("FASTDGL_IMPL", "triton")
    assert asked(None) == "fastest"


@pytest.mark.parametrize("name, asked", [("auto", "auto"), ("fastest", "fastest")])
def test_operators_inside_of_others_are_chosen_as_these_were(monkeypatch, name, asked):
    inner = []
    monkeypatch.setattr(algebra, "within", lambda x, asked: inner.append(asked) or "reference")
    monkeypatch.setattr(_dispatch, "why_not", lambda name, x: None)
    monkeypatch.setattr(_dispatch, "why_not_by_itself", lambda name, *rest: "" if name == "triton" else None)
    with implementation(name):
        conv2d_resample(X, torch.randn(2, 2, 3, 3), setup_filter([1, 3, 3, 1]), down=2, padding=1)
    assert inner == [asked]


def test_the_spellings_of_other_codebases_are_understood(able):
    assert chosen("cuda") is fast
    assert chosen("ref") is slow


def test_the_surrounding_choice_holds_inside_only(able):
    with implementation("reference"):
        assert chosen() is slow
        with implementation("cuda"):
            assert chosen() is fast
        assert chosen() is slow
    assert chosen() is fast


def test_the_surrounding_choice_ends_with_an_error_too(able):
    with pytest.raises(KeyError), implementation("reference"):
        raise KeyError
    assert chosen() is fast


def test_the_surrounding_choice_is_no_other_threads(able):
    seen = []
    with implementation("reference"):
        thread = threading.Thread(target=lambda: seen.append(chosen()))
        thread.start()
        thread.join()
    assert seen == [fast]


def test_argument_goes_before_surroundings_before_environment(able, monkeypatch):
    monkeypatch.setenv("FASTDGL_IMPL", "reference")
    assert chosen() is slow
    with implementation("triton"):
        assert chosen() is fast
        assert chosen("reference") is slow


def test_an_empty_environment_variable_says_nothing(able, monkeypatch):
    monkeypatch.setenv("FASTDGL_IMPL", "")
    assert chosen() is fast


def test_unknown_names_are_refused_wherever_they_come_from(monkeypatch):
    with pytest.raises(ValueError, match="impl='fast': expected one of 'auto', 'fastest', 'reference'"):
        chosen("fast")
    with pytest.raises(ValueError, match="implementation='fast': expected one of"), implementation("fast"):
        pass
    monkeypatch.setenv("FASTDGL_IMPL", "fast")
    with pytest.raises(ValueError, match="FASTDGL_IMPL='fast': expected one of"):
        chosen()


@every_operator
@pytest.mark.parametrize("impl", [None, "auto", "reference", "cuda", "ref"])
def test_operators_run_under_every_name_they_have(name, impl):
    OPERATORS[name](impl)


def test_operators_say_which_implementations_they_have():
    words = "='cudnn': bias_act has no such implementation, it has 'triton', 'reference'"
    with pytest.raises(ValueError, match="impl" + words):
        OPERATORS["bias_act"]("cudnn")
    with pytest.raises(ValueError, match="implementation" + words), implementation("cudnn"):
        OPERATORS["bias_act"](None)


def test_an_interpreter_is_no_fast_implementation(interpreted):
    assert chosen() is slow and chosen("triton") is fast


@pytest.mark.parametrize("name", ["bias_act", "upfirdn2d"])
def test_says_why_triton_cannot_run(no_gpu, monkeypatch, name):
    words = f"cannot run {name} on x of shape \\(1, 2, 4, 4\\): it is on cpu, and Triton needs a GPU"
    with pytest.raises(RuntimeError, match="impl='triton' " + words):
        OPERATORS[name]("triton")
    with pytest.raises(RuntimeError, match="implementation='triton' " + words), implementation("triton"):
        OPERATORS[name](None)
    monkeypatch.setenv("FASTDGL_IMPL", "triton")
    with pytest.raises(RuntimeError, match="FASTDGL_IMPL='triton' " + words):
        OPERATORS[name](None)


def test_says_which_dtypes_the_kernels_take(interpreted):
    with pytest.raises(RuntimeError, match="its dtype is torch.float64, the kernels take torch.float16, torch.bfl"):
        bias_act(X.double(), impl="triton")


def test_says_that_triton_is_not_installed(interpreted, monkeypatch):
    monkeypatch.setattr(_dispatch, "_installed", lambda: None)
    with pytest.raises(RuntimeError, match="cannot run bias_act on x of shape .*: triton is not installed"):
        bias_act(X, impl="triton")
    assert bias_act(X).shape == X.shape


def test_says_that_triton_is_too_old(interpreted, monkeypatch, tmp_path):
    # one that cannot be imported either
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text('__version__ = "3.5.1"\nraise RuntimeError("old")\n')
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(_dispatch, "_installed", _dispatch._installed.__wrapped__)
    said = "triton is 3.5, the kernels need 3.6 or newer"
    with pytest.raises(RuntimeError, match=f"cannot run bias_act on x of shape .*: {said}$"):
        bias_act(X, impl="triton")
    assert f"  triton: {said}" in explain(bias_act, X)
    assert bias_act(X).shape == X.shape


def test_explains_what_an_operator_takes(no_gpu):
    assert explain(bias_act, X).splitlines() == [
        "bias_act runs as 'reference' on x of shape (1, 2, 4, 4), torch.float32, cpu; "
        '"auto" takes the first that is able',
        "  triton: it is on cpu, and Triton needs a GPU (or a CPU and TRITON_INTERPRET=1, for tests)",
        "  reference: able",
    ]


def test_explains_what_was_asked_for(interpreted):
    with implementation("triton"):
        text = explain(upfirdn2d, X, None)
    assert text.startswith("upfirdn2d runs as 'triton'") and "implementation='triton' leaves no choice" in text
    assert "slow: available by name only" in explain(upfirdn2d, X, None)
    assert explain(bias_act, X.double(), impl="triton").startswith("bias_act cannot run as 'triton'")


def test_explains_whose_convolution_it_is(interpreted):
    x, w, f = torch.zeros(1, 64, 16, 32).half(), torch.zeros(128, 64, 3, 3).half(), setup_filter([1, 3, 3, 1])
    text = explain(conv2d_resample, x, w, f, down=2, padding=1)
    assert "triton: it is on cpu" in text and text.count("; convolves by a kernel of its own") == 1
    text = explain(modulated_conv2d, x, w, torch.zeros(1, 64), impl="triton", padding=0)
    assert "triton: able; leaves the convolution to PyTorch: of 3 x 3 taps at stride 1, the kernels pad by 1" in text


def test_explaining_computes_nothing_and_refuses_what_the_operator_refuses():
    assert "bias_act runs as" in explain(bias_act, X, torch.zeros(2))
    with pytest.raises(ValueError, match="b must have one entry"):
        explain(bias_act, X, torch.zeros(3))
    # and leaves nothing behind
    assert bias_act(X).shape == X.shape


@pytest.fixture
def h100(able, monkeypatch):
    """As on an H100, for what asks which one it is."""
    monkeypatch.setattr(backends, "architecture", lambda device: "sm_90")


def taken(operator, *tensors, **arguments):
    """The implementation's name, and why it is that one, in words."""
    first = explain(operator, *tensors, impl="fastest", **arguments).splitlines()[0]
    return first.split("'")[1], first.partition("; ")[2]


def images(I, size, N=1):
    x = torch.zeros(N, I, size, size, dtype=torch.float16, device="meta")
    return x.contiguous(memory_format=torch.channels_last)


def weight(O, I, k):
    return torch.zeros(O, I, k, k, dtype=torch.float16, device="meta")


STYLES = torch.zeros(1, 64, dtype=torch.float16, device="meta")
LAYERS = {
    "same": (conv2d_resample, (images(64, 48), weight(128, 64, 3)), dict(padding=1)),
    "down": (conv2d_resample, (images(64, 48), weight(128, 64, 3)), dict(padding=1, down=2)),
    "modulated same": (modulated_conv2d, (images(64, 48), weight(128, 64, 3), STYLES), dict(padding=1)),
    "modulated up": (modulated_conv2d, (images(64, 48), weight(128, 64, 3), STYLES), dict(padding=1, up=2)),
    "to_rgb": (modulated_conv2d_bias_act, (images(64, 48), weight(3, 64, 1), STYLES), dict(demodulate=False)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_the_table_says_whose_convolution_runs(h100, monkeypatch, kind):
    operator, tensors, arguments = LAYERS[kind]
    for name in ("triton", "cudnn"):
        monkeypatch.setitem(backends.TABLE, "sm_90", {kind: name})
        words = f"{name!r} first, by the entry {kind!r} of the table for sm_90"
        assert taken(operator, *tensors, **arguments) == (name, f'"fastest" takes the first that is able: {words}')


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_the_table_knows_the_layers_of_the_networks(arch):
    assert set(backends.TABLE[arch]) >= set(LAYERS)
    assert set(backends.TABLE[arch].values()) <= {"cudnn", "triton"}


def test_an_entry_of_a_layer_goes_before_that_of_its_kind(h100, monkeypatch):
    own = "same 64>128 @32 N=1 float16 NHWC"
    monkeypatch.setitem(backends.TABLE, "sm_90", {"same": "cudnn", own: "triton"})
    _, (x, w), arguments = LAYERS["same"]
    assert taken(conv2d_resample, x, w, **arguments)[0] == "triton"
    # of sizes, the powers of two count; of all else, what it is
    assert backends.layer("same", images(64, 63, N=1), 128) == own
    for other in (images(64, 64), images(64, 48, N=2), x.float(), x.contiguous()):
        assert taken(conv2d_resample, other, w.to(other.dtype), **arguments)[0] == "cudnn"


def test_what_the_table_has_not_goes_by_rule(h100, monkeypatch):
    monkeypatch.setattr(backends, "TABLE", {})
    for kind, (operator, tensors, arguments) in LAYERS.items():
        name, words = taken(operator, *tensors, **arguments)
        assert name == ("triton" if kind == "to_rgb" else "cudnn")
        assert f"{name!r} first, by rule, for the table has no '{kind} 64>" in words and words.endswith("for sm_90")
    assert "has no 'other 64>128" in taken(conv2d_resample, images(64, 48), weight(128, 64, 1))[1]


def test_the_table_is_not_asked_for_what_has_a_name(h100, monkeypatch):
    monkeypatch.setattr(backends, "TABLE", None)
    operator, tensors, arguments = LAYERS["to_rgb"]
    for name in ("cudnn", "triton", "reference"):
        text = explain(operator, *tensors, impl=name, **arguments)
        assert text.startswith(f"modulated_conv2d_bias_act runs as {name!r}") and "leaves no choice" in text
    assert "triton: able; by the kernels of ToRGB" in text
