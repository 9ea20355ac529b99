"""Tests of the held kernels of _launch, for a process without the interpreter: test_launch.py runs them."""

import threading
import warnings

import pytest
import torch
import triton
import triton.language as tl
from fastdgl_kernels import _launch
from fastdgl_kernels._fallback import LaunchError
from fastdgl_kernels._launch import launch, specialisation
from pretended_gpu import Driver, every_kernel, on_gpu
from triton.runtime import _allocation


@triton.jit
def kernel(x, y, n, scale, GAIN: tl.constexpr, CLAMP: tl.constexpr, FLAG: tl.constexpr):
    v = tl.load(x) * scale * GAIN
    if y is not None:
        v += tl.load(y)
    if CLAMP is not None:
        v = tl.minimum(v, CLAMP)
    tl.store(x + n, v)


@triton.jit
def descriptors(x, y, n, N: tl.constexpr):
    xs = tl.make_tensor_descriptor(x, [n, N], [N, 1], [16, N])
    ys = tl.make_tensor_descriptor(y, [n, N], [N, 1], [16, N])
    ys.store([tl.program_id(0) * 16, 0], xs.load([tl.program_id(0) * 16, 0]))


X, Y = on_gpu(torch.zeros(64)), on_gpu(torch.zeros(64))
NAMES = ("x", "y", "n", "scale", "GAIN", "CLAMP", "FLAG")
BASE = (X, Y, 32, 0.5, 1.5, 2.0, True)


@pytest.fixture
def driver(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(_launch, "_held", {})
    driver = Driver()
    monkeypatch.setattr(torch.cuda, "current_device", driver.get_current_device)
    triton.runtime.driver.set_active(driver)
    for function in (kernel, descriptors):
        function.device_caches.clear()
    return driver


def but(**changes):
    return tuple(changes.get(name, value) for name, value in zip(NAMES, BASE))


def kernels(*launches):
    for arguments, options in launches:
        launch(kernel, 1, *arguments, **options)
    return len(_launch._held)


def test_kernels_take_what_is_known_at_compile_time_last():
    found = every_kernel()
    assert len(found) > 10
    for function in found:
        known = [p.is_constexpr for p in function.params]
        assert known == sorted(known), f"{function}: {known}"


@pytest.mark.parametrize("change", [
    dict(GAIN=1.25), dict(CLAMP=3.0), dict(CLAMP=None), dict(FLAG=False), dict(y=None), dict(n=1), dict(n=33),
    dict(n=2**40),
    dict(x=on_gpu(torch.zeros(64, dtype=torch.float16))), dict(x=on_gpu(torch.zeros(65)[1:])),
], ids=lambda change: " ".join(change))  # fmt: skip
def test_what_triton_compiles_anew_is_another_kernel(driver, change):
    assert kernels((BASE, {}), (but(**change), {}), (BASE, {})) == driver.compiled == 2


@pytest.mark.parametrize("change", [{}, dict(scale=0.25), dict(x=on_gpu(torch.ones(64)))], ids=["", "scale", "x"])
def test_what_is_just_passed_is_the_same_kernel(driver, change):
    assert kernels((BASE, {}), (but(**change), {})) == driver.compiled == 1


def test_no_more_kernels_are_held_than_allowed_and_a_dropped_one_is_not_compiled_again(driver, monkeypatch):
    monkeypatch.setattr(_launch, "MOST_HELD", 3, raising=False)
    # Triton compiles one kernel for all these sizes, and each of them is held for itself
    sizes = [33, 35, 37, 39, 41]
    assert kernels(*((but(n=n), {}) for n in sizes)) == 3

    def held() -> list[int]:
        return [next(n for n in sizes if any(isinstance(part, tuple) and n in part for part in key)) for key in _launch._held]

    assert held() == sizes[2:]
    assert kernels((but(n=33), {})) == 3 and held() == [39, 41, 33]
    assert driver.compiled == 1 and len(driver.launches) == 6


@pytest.mark.parametrize("option", [dict(num_warps=8), dict(num_stages=2)], ids=str)
def test_options_make_kernels(driver, option):
    assert kernels((BASE, {}), (BASE, option)) == 2


@pytest.mark.parametrize("a, b", [
    (1, 1.0), (1, True), (0.0, False), ((1.0,), (2.0,)), (tl.float16, tl.float32),
], ids=str)  # fmt: skip
def test_values_at_compile_time_are_told_apart(driver, a, b):
    assert specialisation(kernel, but(GAIN=a)) != specialisation(kernel, but(GAIN=b))


@pytest.mark.parametrize("arguments", [BASE, but(y=None, n=33, CLAMP=None)], ids=["all", "some"])
def test_a_held_kernel_is_started_with_what_triton_starts_it_with(driver, arguments):
    for driver.stream in (7, 8, 9):
        launch(kernel, (2, 3), *arguments)
    assert driver.compiled == 1
    assert [entry.stream for entry in driver.launches] == [7, 8, 9]
    for entry in driver.launches:
        assert entry.kernel == "kernel" and entry.grid == (2, 3, 1)
        assert all(a is b for a, b in zip(entry.arguments, arguments, strict=True))


@triton.jit
def total(x, y, N: tl.constexpr):
    """Needs shared memory."""
    tl.store(y, tl.sum(tl.load(x + tl.arange(0, N))))


def test_every_compilation_says_that_products_and_sums_are_fused(driver, monkeypatch):
    """Triton 3.10 asks for it; 3.9 warns where nobody says."""
    said, run = [], triton.JITFunction.run

    def spy(self, *arguments, grid, warmup, **options):
        said.append(options)
        return run(self, *arguments, grid=grid, warmup=warmup, **options)

    monkeypatch.setattr(triton.JITFunction, "run", spy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        launch(kernel, 1, *BASE)
    assert [options["enable_fp_fusion"] for options in said] == [True]
    assert next(iter(_launch._held.values())).metadata.enable_fp_fusion is True


@pytest.mark.parametrize("fault", ["shared memory", "driver", "compiler"])
def test_a_kernel_that_cannot_run_is_reported_as_such_and_not_held(driver, monkeypatch, fault):
    if fault == "shared memory":
        monkeypatch.setattr(triton.compiler.compiler, "max_shared_mem", lambda device: 8)
    elif fault == "driver":
        driver.utils.load_binary = lambda *arguments: fail(RuntimeError("Triton Error [CUDA]: no kernel image"))
    else:
        monkeypatch.setattr(_launch, "_start", lambda *arguments, **options: fail(RuntimeError("Failed to find C compiler")))
    words = {"shared memory": "out of resource", "driver": "no kernel image", "compiler": "C compiler"}[fault]
    total.device_caches.clear()
    with pytest.raises(LaunchError, match=words):
        launch(total, 1, X, Y, 1024, num_warps=4)
    assert not _launch._held


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("none left"), torch.AcceleratorError("sticky")], ids=["memory", "gpu"])
def test_what_is_wrong_with_the_gpu_itself_is_raised_as_it_is(driver, monkeypatch, error):
    monkeypatch.setattr(_launch, "_start", lambda *arguments, **options: fail(error))
    with pytest.raises(type(error)) as caught:
        launch(kernel, 1, *BASE)
    assert caught.value is error


def fail(error):
    raise error


@pytest.mark.parametrize("programs", [0, (4, 0, 2)], ids=str)
def test_no_program_is_no_launch(driver, programs):
    launch(kernel, programs, *BASE)
    assert not driver.launches and not driver.compiled


def test_the_device_of_the_tensors_is_made_current(driver, monkeypatch):
    entered = []

    class Device:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            entered.append(self.device)

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(torch.cuda, "device", Device)
    for driver.current in (0, 1, 1):
        launch(kernel, 1, *BASE)
    assert entered == [torch.device("cuda", 0)] * 2


def test_descriptors_are_given_memory_on_the_stream_in_every_thread(driver, monkeypatch):
    given = []

    def scratch(size, alignment, stream):
        given.append((size, stream))
        return torch.empty(size, dtype=torch.int8)

    monkeypatch.setattr(_launch, "_scratch", scratch)
    arguments = (descriptors, 4, *(on_gpu(torch.zeros(64, 64, dtype=torch.float16)) for _ in range(2)), 64, 64)
    launch(*arguments)
    launch(*arguments)
    # backward has threads of its own
    thread = threading.Thread(target=launch, args=arguments)
    thread.start()
    thread.join()
    assert driver.compiled == 1 and len(given) == 3
    assert given == [entry.scratch for entry in driver.launches]
    assert given[0][0] >= 4 * 2 * 128 and given[0][1] == driver.stream


def test_the_allocator_of_the_caller_stays(driver, monkeypatch):
    def others(size, alignment, stream):
        raise AssertionError("was asked for memory")

    monkeypatch.setattr(_launch, "_scratch", lambda size, alignment, stream: torch.empty(size, dtype=torch.int8))
    triton.set_allocator(others)
    for _ in range(2):
        launch(descriptors, 4, *(on_gpu(torch.zeros(64, 64, dtype=torch.float16)) for _ in range(2)), 64, 64)
    assert _allocation._allocator.get() is others
