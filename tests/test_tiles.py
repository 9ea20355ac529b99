"""Tiles go by what a GPU has, as its driver says it: shared memory, multiprocessors, compute capability."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fastdgl_kernels import _dispatch, _tuning, conv2d_resample, explain, modulated_conv2d, setup_filter
from fastdgl_kernels._plans import forget_plans
from fastdgl_kernels._tuning import LIMITS, Limits, limits

pytest.importorskip("triton")

from fastdgl_kernels.convolution import algebra, kernel  # noqa: E402

# (batch, height and width, channels in and out): of config F at 256 and 1024, and small ones
LAYERS = [(32, 8, 512, 512), (32, 16, 512, 512), (32, 32, 512, 512), (32, 64, 512, 512), (32, 128, 256, 256),
          (32, 256, 128, 128), (8, 512, 64, 64), (8, 1024, 32, 64), (1, 64, 512, 256), (3, 48, 64, 128)]  # fmt: skip
DEVICES = {
    **{f"sm_{arch}": device for arch, device in LIMITS.items() if arch >= 80},
    "Jetson": Limits(87, 163 * 1024, 16), "Spark": Limits(121, 99 * 1024, 48), "Thor": Limits(110, 227 * 1024, 20),
    "a slice": replace(LIMITS[90], multiprocessors=16),
    "48 KB": Limits(80, 48 * 1024, 10), "64 KB": Limits(90, 64 * 1024, 10), "80 KB": Limits(120, 80 * 1024, 10),
}  # fmt: skip


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("N, R, I, O", LAYERS)
def test_every_tile_fits_the_shared_memory_of_its_device(device, N, R, I, O):
    t = kernel.tile(R, R, I, O, device)
    assert t.shared(device) <= device.shared and O % t.BO == 0 and I % t.BI == 0 and t.BH * t.BW >= 64
    cut = kernel.split(N, R, R, I, O, device=device)
    assert cut.shared(device) <= device.shared and O % cut.BO == 0 and I % cut.BI == 0
    assert R % cut.BH == 0 and R % cut.BW == 0 and cut.BN * cut.BH * cut.BW >= 16


def test_where_it_does_not_fit_the_next_smaller_tile_is_taken():
    def need(shared, capability=80):
        device = Limits(capability, shared, 100)
        return kernel.tile(32, 32, 512, 512, device), device

    widest, device = need(163 * 1024)
    assert (widest.BH * widest.BW, widest.BO, widest.BI, widest.num_stages) == (256, 128, 64, 3)
    sizes = [widest.shared(device)]
    while sizes[-1] > 48 * 1024:
        smaller, device = need(sizes[-1] - 1)
        assert smaller.shared(device) < sizes[-1]
        sizes.append(smaller.shared(device))
    assert len(sizes) > 3


@pytest.mark.parametrize("same, other", [(80, 86), (80, 89), (90, 100)])
def test_gpus_of_one_kind_have_the_same_tiles_where_they_fit(same, other):
    for _, R, I, O in LAYERS:
        assert kernel.tile(R, R, I, O, LIMITS[same]) == kernel.tile(R, R, I, O, LIMITS[other])


def test_a_weight_gradient_is_cut_for_the_multiprocessors_there_are():
    parts = {n: kernel.split(8, 128, 128, 128, 128, device=replace(LIMITS[90], multiprocessors=n)).parts for n in (28, 132)}
    assert parts[28] < parts[132]


PROPERTIES = dict(major=8, minor=6, multi_processor_count=28, shared_memory_per_block_optin=101376, shared_memory_per_block=49152)


@pytest.mark.parametrize("change, expected", [
    ({}, Limits(86, 101376, 28)),
    (dict(major=12, minor=1), Limits(121, 101376, 28)),
    (dict(shared_memory_per_block_optin=None), Limits(86, 49152, 28)),
    (dict(shared_memory_per_block_optin=None, shared_memory_per_block=None), Limits(86, 49152, 28)),
], ids=["86", "121", "older PyTorch", "oldest"])  # fmt: skip
def test_limits_are_read_from_the_device(monkeypatch, change, expected):
    found = SimpleNamespace(**{k: v for k, v in (PROPERTIES | change).items() if v is not None})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    monkeypatch.setattr(torch.version, "hip", None)
    assert limits.__wrapped__(torch.device("cuda", 0)) == expected


def test_a_gpu_of_another_maker_has_no_compute_capability(monkeypatch):
    found = SimpleNamespace(**PROPERTIES | dict(major=9, minor=4, gcnArchName="gfx942:sramecc+:xnack-"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    device = torch.device("cuda", 0)
    assert limits.__wrapped__(device).capability == 0 and _tuning.architecture.__wrapped__(device) == "gfx942"


def test_one_place_opens_the_kernels_to_a_gpu_of_another_maker(monkeypatch):
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(_dispatch, "architecture", lambda device: "gfx942")
    monkeypatch.setattr(_dispatch, "_capability", lambda device: (9, 4))
    assert "gfx942" in _dispatch.why_not_triton(device) and "certified" in _dispatch.why_not_triton(device)
    monkeypatch.setattr(_dispatch, "OPENED", frozenset({"gfx942"}))
    assert _dispatch.why_not_triton(device) is None


@pytest.mark.parametrize("capability, words", [(75, "compute capability 8.0, the GPU has 7.5"), (0, "NVIDIA's GPUs")])
def test_older_gpus_convolve_by_pytorch_and_run_every_other_kernel(triton, monkeypatch, capability, words):
    device = Limits(capability, 64 * 1024, 40)
    for module in (algebra, kernel):
        monkeypatch.setattr(module, "limits", lambda _: device)
    launched = []

    def take(kernel, *rest):
        launched.append(kernel.fn.__name__)

    x, w, s = torch.zeros(1, 64, 8, 8).half(), torch.zeros(64, 64, 3, 3).half(), torch.zeros(1, 64)
    text = explain(conv2d_resample, x, w, padding=1, impl="triton")
    assert "leaves the convolution to PyTorch" in text and words in text
    from fastdgl_kernels._launch import launches_to

    for impl in ("triton", "fastest"):
        with launches_to(take):
            conv2d_resample(x, w, padding=1, impl=impl)
            modulated_conv2d(x, w, s, up=2, padding=1, resample_filter=setup_filter([1, 3, 3, 1]), impl=impl)
    assert launched and not {"_convolution", "_transposed", "_weight_gradient"} & set(launched)
    # no device changes its limits, and plans do not ask for them again
    monkeypatch.setattr(algebra, "limits", lambda _: LIMITS[80])
    forget_plans()
    with launches_to(take):
        conv2d_resample(x, w, padding=1, impl="triton")
    assert "_convolution" in launched
