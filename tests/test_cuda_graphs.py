"""No operator waits for the GPU or copies numbers to it, and so a CUDA graph can hold a whole layer."""

import fastdgl_kernels as ops
import pytest
import torch
from devices import DEVICE, on_device
from fastdgl_kernels._launch import launches_to
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense, aten.item, aten.nonzero, aten.is_nonzero, aten.equal, aten.masked_select, aten.lift_fresh,
    aten._pin_memory,
}  # fmt: skip

F = ops.setup_filter([1, 3, 3, 1], device=DEVICE)
LONG = ops.setup_filter([1.0] * 8, device=DEVICE)


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for the device, or copies between them."""

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        moved = operator.overloadpacket is aten._to_copy and keywords.get("device") not in (None, arguments[0].device)
        assert operator.overloadpacket not in WAITS and not moved, f"{operator} waits for the GPU"
        return operator(*arguments, **(keywords or {}))


def layers(x, b, w, s, impl):
    y = ops.modulated_conv2d_bias_act(x, w, s, None, b, up=2, padding=1, resample_filter=F, clamp=256, impl=impl)
    y = ops.modulated_conv2d_bias_act(y, w, s, y[:, :1], b, padding=1, impl=impl)
    y = ops.conv2d_resample(y, w.to(y.dtype), F, down=2, padding=1, impl=impl)
    y = ops.bias_act(y, b, act="swish", clamp=256, impl=impl)
    y = ops.upfirdn2d(y, LONG, up=2, padding=7, impl=impl)
    return ops.scale_shift_act(y, s, b, up=2)


def inputs(dtype):
    x = on_device(1, 64, 8, 8, seed=1, dtype=dtype, channels_last=dtype != torch.float32)
    b, w, s = on_device(64, seed=2, dtype=dtype), on_device(64, 64, 3, 3, seed=3), on_device(1, 64, seed=4)
    return [t.requires_grad_() for t in (x, b, w, s)]


def value_and_gradients(tensors, impl, again=True):
    y = layers(*tensors, impl)
    dx, *others = torch.autograd.grad(y.float().sum(), tensors, create_graph=again)
    return [y, dx, *others, *(torch.autograd.grad(dx.float().square().sum(), tensors) if again else ())]


@pytest.mark.parametrize("impl, dtype", [
    ("triton", torch.float16), ("triton", torch.float32), ("reference", torch.float32),
], ids=str)  # fmt: skip
def test_nothing_waits_for_the_gpu(triton, impl, dtype):
    tensors = inputs(dtype)
    with launches_to(lambda *call: None):
        # the factors of a filter are found once
        value_and_gradients(tensors, impl)
        with NoWaiting():
            value_and_gradients(tensors, impl)


@pytest.mark.parametrize("wait", [
    lambda x: x.sum().item(), lambda x: bool(x.sum() > 0), lambda x: x.nonzero(), lambda x: x + torch.tensor(1.0),
], ids=["item", "bool", "nonzero", "tensor"])  # fmt: skip
def test_waiting_is_seen(wait):
    with NoWaiting(), pytest.raises(AssertionError, match="waits for the GPU"):
        wait(torch.ones(3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_a_graph_replays_layers_and_their_gradients(dtype):
    tensors = inputs(dtype)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            value_and_gradients(tensors, "triton", again=False)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = value_and_gradients(tensors, "triton", again=False)
    for seed in (5, 6):
        with torch.no_grad():
            tensors[0].copy_(on_device(*tensors[0].shape, seed=seed, dtype=dtype))
        graph.replay()
        for got, expected in zip(captured, value_and_gradients(tensors, "triton", again=False), strict=True):
            assert torch.equal(got, expected)
