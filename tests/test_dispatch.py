import threading

import pytest
import torch
from fastdgl_kernels import bias_act, conv2d_resample, implementation, modulated_conv2d, upfirdn2d
from fastdgl_kernels._dispatch import dispatch

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


def test_the_fastest_runs_unless_told_otherwise():
    assert chosen() is fast and chosen("auto") is fast
    assert chosen("reference") is slow and chosen("triton") is fast


def test_the_spellings_of_other_codebases_are_understood():
    assert chosen("cuda") is fast
    assert chosen("ref") is slow


def test_the_surrounding_choice_holds_inside_only():
    with implementation("reference"):
        assert chosen() is slow
        with implementation("cuda"):
            assert chosen() is fast
        assert chosen() is slow
    assert chosen() is fast


def test_the_surrounding_choice_ends_with_an_error_too():
    with pytest.raises(KeyError), implementation("reference"):
        raise KeyError
    assert chosen() is fast


def test_the_surrounding_choice_is_no_other_threads():
    seen = []
    with implementation("reference"):
        thread = threading.Thread(target=lambda: seen.append(chosen()))
        thread.start()
        thread.join()
    assert seen == [fast]


def test_argument_goes_before_surroundings_before_environment(monkeypatch):
    monkeypatch.setenv("FASTDGL_IMPL", "reference")
    assert chosen() is slow
    with implementation("triton"):
        assert chosen() is fast
        assert chosen("reference") is slow


def test_an_empty_environment_variable_says_nothing(monkeypatch):
    monkeypatch.setenv("FASTDGL_IMPL", "")
    assert chosen() is fast


def test_unknown_names_are_refused_wherever_they_come_from(monkeypatch):
    with pytest.raises(ValueError, match="impl='fast': expected one of 'auto', 'reference'"):
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


@every_operator
def test_operators_say_which_implementations_they_have(name):
    words = f"impl='triton': {name} has no such implementation, it has 'reference'"
    with pytest.raises(ValueError, match=words):
        OPERATORS[name]("triton")
    with pytest.raises(ValueError, match=words), implementation("triton"):
        OPERATORS[name](None)
