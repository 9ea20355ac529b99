"""What a step of StyleGAN2's config F launches, and what moves: counted, since a GPU's time goes by these, and no GPU is needed."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton")

from bench.launches import nvidia, prices, steps, table  # noqa: E402
from bench.launches.counting import CHUNK, CHUNKS, TENSORS, Launch, counted, launches_of_lists, size  # noqa: E402
from fastdgl.models.layers import scaled  # noqa: E402
from fastdgl_kernels import bias_act, setup_filter, upfirdn2d  # noqa: E402
from numerics import normal  # noqa: E402
from ranks import ROOT  # noqa: E402

# ten percent below what they were on the day they were first counted: 1,207, 1,029, 566 and 2,117
MOST = {"G": 1086, "D": 926, "R1": 509, "path length": 1905}


@pytest.fixture(scope="module")
def kernels():
    return steps.count_steps(256, "kernels")


@pytest.mark.parametrize("step", MOST)
def test_a_step_launches_no_more_kernels_than_it_may(kernels, step):
    assert 100 < len(kernels[step].launches) <= MOST[step], kernels[step].by_name.most_common(20)


def test_optimizer_and_average_are_a_handful_of_launches(kernels):
    for step in ("optimizer of G", "optimizer of D", "EMA"):
        assert 0 < len(kernels[step].launches) < 12, kernels[step].by_name
    assert kernels["optimizer of G"].by_name["_fused_adam_"] > 0 and kernels["optimizer of G"].by_name["nan_to_num_"] == 1


def test_triton_kernels_and_convolutions_are_among_them(kernels):
    names = kernels["G"].by_name
    assert names["separable_kernel"] > 40 and names["bias_act_kernel"] > 20 and names["convolution"] > 60
    # 1.5 to 2 times the forward of G and D, in TFLOP at 32 images
    assert 10e12 < sum(launch.flops for launch in kernels["G"].launches) < 20e12


def test_counting_leaves_no_pretence_behind(kernels):
    x = torch.empty(2)
    assert not x.is_cuda and x.is_cpu and not torch.empty(2, device="meta").is_cuda
    f = setup_filter([1, 2, 1])
    assert upfirdn2d(torch.ones(1, 1, 3, 3), f).shape == (1, 1, 1, 1)


def test_an_operator_is_what_it_moves_and_multiplies():
    x = torch.empty(2, 3, 8, 8, device="meta", dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    w = torch.empty(5, 3, 3, 3, device="meta", dtype=torch.float16, requires_grad=True)
    with counted() as count:
        y = F.conv2d(x, w, padding=1)
        view = y.flatten(1)[:, :7]
        torch.autograd.grad(view.sum(), w)
    assert y.is_contiguous(memory_format=torch.channels_last)
    convolution, *_, backward = count.launches
    flops = 2 * 9 * 3 * 5 * 64 * 2
    assert convolution == Launch("convolution", 2 * (x.numel() + w.numel() + y.numel()), flops, torch.float16)
    assert backward.name == "convolution_backward" and backward.flops == flops and count.by_name["convolution_backward"] == 1
    assert count.by_name["sum"] == 1 and set(count.by_name).isdisjoint(["view", "slice", "expand", "empty"])


def test_a_kernel_of_ours_is_one_launch_and_its_tensors():
    with steps.pretended_gpu(), counted() as count:
        x = torch.empty(2, 64, 8, 8, device="meta")
        bias_act(x, torch.empty(64, device="meta"), act="lrelu", impl="triton")
    assert count.launches == [Launch("bias_act_kernel", 4 * (2 * x.numel() + 64), 0, torch.float32)]


def test_what_is_expanded_is_read_once():
    assert size(torch.empty(4, 1).expand(4, 100)) == 16 and size(torch.empty(4, 100)[:, :3]) == 48


@pytest.mark.parametrize("sizes, launches", [
    ([1] * TENSORS[2], 1), ([1] * (TENSORS[2] + 1), 2), ([CHUNK * CHUNKS], 1), ([CHUNK * CHUNKS + 1], 2), ([CHUNK * (CHUNKS - 1), 1, 1], 2), ([], 0), ([0], 0),
])
def test_lists_of_tensors_take_as_many_launches_as_their_chunks_need(sizes, launches):
    tensors = [torch.empty(n, device="meta") for n in sizes]
    assert launches_of_lists([tensors, tensors]) == launches


def test_a_price_is_the_longest_of_memory_arithmetic_and_start():
    gpu = prices.GPUS["H100"]
    small, moving = Launch("a", 1, 0, torch.float32), Launch("b", int(gpu.bandwidth), 0, torch.float32)
    multiplying = Launch("c", 1, int(gpu.matrix_rate), torch.float16)
    assert prices.seconds([small, moving, multiplying], gpu) == pytest.approx(prices.LEAST + 2)
    wide = Launch("d", 1, int(gpu.fp32_rate), torch.float32)
    assert prices.seconds([wide], gpu) == pytest.approx(1) and prices.seconds([wide], gpu, tf32=True) < 0.5
    assert prices.GPUS["H200"].bandwidth > gpu.bandwidth


def test_the_table_has_a_row_for_each_step_and_the_sum(kernels):
    lines = table.text(256, {"kernels": kernels}, prices.GPUS["A100"], False).splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")] == ["| step", *(f"| {step}" for step in steps.INTERVALS), "| an iteration"]
    counts = {step: len(kernels[step].launches) for step in kernels}
    total = counts["G"] + counts["D"] + counts["R1"] / 16 + counts["path length"] / 4 + counts["EMA"]
    total += counts["optimizer of G"] * 5 / 4 + counts["optimizer of D"] * 17 / 16
    assert f"| an iteration | {total:,.0f} | " in lines[-1]


@pytest.mark.parametrize("arguments, words", [
    (["--gpu", "H1000"], "invalid choice: 'H1000'"), (["--resolution", "300"], "invalid choice: 300"),
    (["--nvidia", "/no/such"], "--nvidia /no/such: expected a checkout of stylegan3 or stylegan2-ada-pytorch"),
])
def test_what_it_does_not_know_is_refused_in_a_sentence(arguments, words, monkeypatch, capsys):
    from bench.launches.__main__ import main

    monkeypatch.setattr(sys, "argv", ["launches", *arguments])
    with pytest.raises(SystemExit):
        main()
    assert words in capsys.readouterr().err


NVIDIA = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from bench.launches import nvidia
nvidia.use(Path(sys.argv[1]))
counts = nvidia.count_steps(256)
for step in ("G", "D", "R1", "path length"):
    names = counts[step].by_name
    assert names["bias_act"] > 10 and names["upfirdn2d"] > 10 and len(counts[step].launches) > 400, (step, names)
print("counted")
"""


@pytest.mark.slow
def test_nvidias_networks_are_counted_from_a_checkout():
    checkout = os.environ.get("STYLEGAN3")
    if not checkout:
        pytest.skip("set STYLEGAN3 to a checkout of NVlabs/stylegan3")
    done = subprocess.run([sys.executable, "-c", NVIDIA, checkout, str(ROOT), str(ROOT / "kernels")], capture_output=True, text=True)
    assert done.stdout == "counted\n", done.stderr


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_scaled_weight_is_what_a_product_and_a_cast_make_bit_for_bit(dtype):
    w, dy = normal(6, 5, 3, 3, dtype=torch.float32).requires_grad_(), normal(6, 5, 3, 3, seed=1, dtype=dtype)
    y, expected = scaled(w, 0.37, dtype), (w * 0.37).to(dtype)
    assert y.dtype == dtype and torch.equal(y, expected) and y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(*(torch.autograd.grad(t, w, dy)[0] for t in (y, expected)))
    # linear: a gradient of the gradient is the same map again
    dy.requires_grad_()
    gradients = [torch.autograd.grad(t, w, dy, create_graph=True)[0] for t in (scaled(w, 0.37, dtype), (w * 0.37).to(dtype))]
    assert torch.equal(*(torch.autograd.grad(g, dy, torch.ones_like(g))[0] for g in gradients))


def test_a_scaled_weight_follows_function_transforms_and_forward_mode():
    w = normal(3, 4, 2, 3, 3, dtype=torch.float32)
    assert torch.equal(torch.func.vmap(lambda w: scaled(w, 0.37, torch.float16))(w), (w * 0.37).half())
    assert torch.equal(torch.func.jvp(lambda w: scaled(w, 0.37, torch.float16), (w,), (w,))[1], (w * 0.37).half())
    assert scaled(w, 0.37, torch.float32).dtype == torch.float32
