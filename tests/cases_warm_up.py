"""Tests of warm_up, for a process without the interpreter: test_launch.py runs them."""

import warnings
from pathlib import Path

import pytest
import torch
import triton
from fastdgl_kernels import (
    _dispatch,
    _fallback,
    _launch,
    _tuning,
    bias_act,
    modulated_conv2d_bias_act,
    setup_filter,
    upfirdn2d,
    warm_up,
)
from pretended_gpu import Driver, every_kernel
from torch import nn


def operators(x, b, w, s, f):
    """A network in small: the gradients of a layer, and the second ones of what follows it."""
    y = modulated_conv2d_bias_act(x, w, s, None, b, up=2, padding=1, resample_filter=f, clamp=256.0, impl="triton")
    torch.autograd.grad(y.float().sum(), [x, w, s, b])
    y = bias_act(upfirdn2d(x, f, down=2, padding=1, impl="triton"), b, act="swish", impl="triton")
    (dx,) = torch.autograd.grad(y.float().sum(), x, create_graph=True)
    return torch.autograd.grad(dx.float().square().sum(), b)


def inputs(N, dtype=torch.float16):
    x = torch.randn(N, 64, 8, 8).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    w, s = (torch.randn(*shape, requires_grad=True) for shape in ((64, 64, 3, 3), (N, 64)))
    return x, torch.zeros(64, dtype=dtype, requires_grad=True), w, s, setup_filter([1, 3, 3, 1])


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """The folder of compiled kernels; operators on the CPU take them as on a GPU, and launch nothing."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(_dispatch, "why_not_triton", lambda device: None)
    monkeypatch.setitem(_tuning.TABLE, "cpu", {})
    monkeypatch.setattr(_launch, "_held", {})
    triton.runtime.driver.set_active(Driver())
    # on the CPU, the launcher leaves it to the caller
    triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8))
    return tmp_path


def forget():
    """As in a new process."""
    for function in every_kernel():
        function.device_caches.clear()


def compiled(cache: Path) -> dict[str, int]:
    return {path.parent.name + path.name: path.stat().st_mtime_ns for path in cache.rglob("*.cubin")}


def test_what_was_warmed_up_is_not_compiled_again(cache):
    forget()
    tensors = inputs(4)
    with warm_up(workers=2):
        operators(*tensors)
    first = compiled(cache)
    assert len(first) > 6
    forget()
    with warm_up():
        operators(*tensors)
    assert compiled(cache) == first, "a second warm-up compiled"
    forget()
    operators(*tensors)
    assert compiled(cache) == first, "a launch compiled what the warm-up had left out"
    assert triton.runtime.driver.active.launches


def test_a_kernel_that_does_not_fit_is_reported_and_left_to_pytorch(cache, monkeypatch):
    forget()
    monkeypatch.setattr(_fallback, "_failures", {})
    monkeypatch.setattr(triton.compiler.compiler, "max_shared_mem", lambda device: 8)
    x, b = torch.zeros(64, 64, requires_grad=True), torch.zeros(64, requires_grad=True)

    def step():
        y = bias_act(x, b, act="lrelu", impl="triton")
        return torch.autograd.grad(y.sum(), [x, b])

    with pytest.warns(RuntimeWarning, match="bias_act: a kernel does not run on cpu: OutOfResources") as caught:
        with warm_up():
            step()
    # Triton's own warnings of Python's version are none of ours
    assert len([one for one in caught if issubclass(one.category, RuntimeWarning)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dx, db = step()
    slope = 0.2 * 2**0.5
    assert torch.allclose(dx, torch.full_like(dx, slope)) and torch.allclose(db, torch.full_like(db, 64 * slope))


def test_nothing_is_launched_or_computed(cache):
    forget()
    layer = nn.Linear(4, 64)
    before = [p.clone() for p in layer.parameters()]
    with warm_up():
        y = bias_act(layer(torch.zeros(2, 4)), layer.bias, act="lrelu", impl="triton")
        torch.autograd.grad(y.sum(), list(layer.parameters()))
    assert not triton.runtime.driver.active.launches
    assert all(torch.equal(p, q) and p.grad is None for p, q in zip(layer.parameters(), before))
    assert len(compiled(cache)) == 3


def test_an_error_inside_compiles_nothing(cache):
    forget()
    with pytest.raises(ValueError, match="act"), warm_up():
        bias_act(torch.zeros(2, 4), act="relu", impl="triton")
        bias_act(torch.zeros(2, 4), act="none")
    assert not compiled(cache)


def test_the_reference_needs_nothing(cache):
    with warm_up():
        bias_act(torch.zeros(2, 4), act="relu", impl="reference")
    assert not compiled(cache)
