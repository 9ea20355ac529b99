"""The matrix products behind the convolutions, kernel by kernel; the operators that use them have their own tests."""

import re

import pytest
import torch
import torch.nn.functional as F
from fastdgl_kernels import bias_act
from fastdgl_kernels._launch import launches_to
from fastdgl_kernels._tuning import LIMITS
from fastdgl_kernels.convolution import kernel
from fastdgl_kernels.convolution.spec import Geometry
from fastdgl_kernels.resampling.kernel import Tail
from numerics import assert_close, normal

N, C, H, W = 2, 64, 8, 16
SMALL_TILES = {
    "one-box": kernel.Tile(8, 16, 32, 32, 4, 3),
    "many-boxes": kernel.Tile(4, 16, 32, 32, 4, 3),
    "ragged": kernel.Tile(16, 32, 32, 32, 4, 3),
}
every_tile = pytest.mark.parametrize("tile", SMALL_TILES.values(), ids=SMALL_TILES)

SAME = Geometry((3, 3), padding=(1, 1))
DOWN = Geometry((3, 3), stride=2)
UP = Geometry((3, 3), stride=2, transposed=True, output_padding=(1, 1))
DOWN_AND_FILTER = Geometry((6, 6), stride=2, padding=(2, 2))
FILTER_AND_UP = DOWN_AND_FILTER.adjoint((2 * H, 2 * W))


# in bfloat16 there is nothing to see here: the interpreter's tl.dot multiplies its bits as integers
def half(*shape, seed=0, scale=1.0):
    return channels_last((normal(*shape, seed=seed) * scale).half())


def channels_last(t):
    return t.contiguous(memory_format=torch.channels_last)


def close_in_fp16(got, exact):
    assert got.shape == exact.shape and got.isfinite().all()
    assert got.is_contiguous(memory_format=torch.channels_last)
    # one rounding of the result: half of eps at most, uniformly; sums are in fp32
    assert (got.double() - exact).norm() <= torch.finfo(torch.float16).eps / 2 * exact.norm()


@every_tile
@pytest.mark.parametrize("own_weights", [False, True], ids=["shared", "own"])
def test_the_matrix_product_is_the_convolution(own_weights, tile):
    x = half(N, C // 2, H, W)
    each = [half(C, C // 2, 3, 3, seed=1 + n * own_weights, scale=1 / 17) for n in range(N)]
    exact = torch.cat([F.conv2d(x[n : n + 1].double(), each[n].double(), padding=1) for n in range(N)])
    w = torch.stack(each) if own_weights else each[0]
    close_in_fp16(kernel.convolve(x, w, SAME, blocks=tile), exact)


@every_tile
@pytest.mark.parametrize("geometry", [SAME, DOWN], ids=["same", "down"])
def test_the_matrix_product_ends_as_a_layer_does(geometry, tile):
    size = (H, W) if geometry is SAME else (2 * H + 2, 2 * W + 2)
    x, w = half(N, C, *size), half(C, C, 3, 3, seed=1, scale=1 / 24)
    u = F.conv2d(x.double(), w.double(), None, geometry.stride, geometry.padding)
    close_in_fp16(*ended(x, w, geometry, u, tile))


def ended(x, w, geometry, u, tile, shared_noise=False):
    """What the kernel makes of it with a tail, and what is exact, by the convolution u."""
    O, *size = u.shape[1:]
    d, noise, bias = normal(N, O, seed=2).abs(), normal(1 if shared_noise else N, 1, *size, seed=3), normal(O, seed=4)
    exact = bias_act(u * d[:, :, None, None] + noise, bias, act="lrelu", clamp=1.0, impl="reference")
    tail = Tail(d.float(), noise.float(), bias.float(), 0.2, 2**0.5, 1.0)
    return kernel.convolve(x, w, geometry, tail, tile), exact


@every_tile
def test_the_data_gradient_reads_the_weight_as_it_lies(tile):
    dy, w = half(N, C, H, W), half(C, C, 3, 3, seed=1, scale=1 / 24)
    exact = torch.nn.grad.conv2d_input((N, C, H, W), w.double(), dy.double(), padding=1)
    close_in_fp16(kernel.convolve(dy, w, SAME.adjoint((H, W)), blocks=tile), exact)


@every_tile
def test_a_stride_of_2_reads_every_other_pixel(tile):
    x, w = half(N, C, 2 * H + 2, 2 * W + 2), half(C // 2, C, 3, 3, seed=1, scale=1 / 24)
    close_in_fp16(kernel.convolve(x, w, DOWN, blocks=tile), F.conv2d(x.double(), w.double(), stride=2))


@every_tile
def test_the_transposed_convolution_makes_all_pixels_up_to_the_last_row_and_column(tile):
    x, w = half(N, C, H, W), half(C, C // 2, 3, 3, seed=1, scale=1 / 24)
    exact = F.conv_transpose2d(x.double(), w.double(), stride=2, output_padding=1)
    y = kernel.convolve(x, w, UP, blocks=tile, strip=8)
    close_in_fp16(y, exact)
    assert not y[:, :, -1].any() and not y[:, :, :, -1].any()


@every_tile
def test_6x6_taps_are_3x3_of_pixels_two_by_two(tile):
    x, w = half(N, C // 2, 2 * H, 2 * W), half(C, C // 2, 6, 6, seed=1, scale=1 / 34)
    close_in_fp16(
        kernel.convolve(x, w, DOWN_AND_FILTER, blocks=tile), F.conv2d(x.double(), w.double(), stride=2, padding=2)
    )


@every_tile
def test_transposed_6x6_taps_end_as_a_layer_does(tile):
    x, w = half(N, C, H, W), half(C, C // 2, 6, 6, seed=1, scale=1 / 34)
    u = F.conv_transpose2d(x.double(), w.double(), stride=2, padding=2)
    close_in_fp16(*ended(x, w, FILTER_AND_UP, u, tile))


@pytest.mark.parametrize("noise", ["own", "shared"])
@pytest.mark.parametrize("tile", [(8, 16, 64, 32), (16, 8, 32, 32)], ids=["one-box", "ragged"])
def test_of_32_channels_two_pixels_are_taken_for_one(tile, noise):
    x, w, tile = half(N, 32, H, 2 * W), half(32, 32, 3, 3, seed=1, scale=1 / 17), kernel.Tile(*tile, 4, 3)
    exact = F.conv2d(x.double(), w.double(), padding=1)
    close_in_fp16(kernel.convolve(x, w, SAME, blocks=tile), exact)
    close_in_fp16(*ended(x, w, SAME, exact, tile, shared_noise=noise == "shared"))
    exact = F.conv_transpose2d(x.double(), w.double(), padding=1)
    close_in_fp16(kernel.convolve(x, w, SAME.adjoint((H, 2 * W)), blocks=tile), exact)


WEIGHT_GRADIENTS = {
    "same": (SAME, (C, C), (H, W)),
    "down": (DOWN, (C, C), (2 * H + 2, 2 * W + 2)),
    "down-and-filter": (DOWN_AND_FILTER, (C, C // 2), (2 * H, 2 * W)),
    "same-of-32": (SAME, (32, 32), (H, 2 * W)),
}


@pytest.mark.parametrize(
    "cut",
    [kernel.Split(1, 4, 16, 32, 32, 2), kernel.Split(1, 1, 16, 64, 64, 3), kernel.Split(2, 8, 16, 64, 64, 1), None],
    ids=["boxes", "rows-uneven", "two-samples", "chosen"],
)
@pytest.mark.parametrize("geometry, channels, size", WEIGHT_GRADIENTS.values(), ids=WEIGHT_GRADIENTS)
def test_the_weight_gradient_is_exact_in_fp32_and_repeats(geometry, channels, size, cut):
    O, I = channels
    x, dy = half(N, I, *size), half(N, O, *geometry.output_size(size), seed=1)
    shape, where = (O, I, *geometry.kernel), (geometry.stride, geometry.padding)
    exact = torch.nn.grad.conv2d_weight(x.double(), shape, dy.double(), *where)
    got = kernel.weight_gradient(x, dy, geometry, cut)
    assert_close(got.double(), exact, tolerance=8 * torch.finfo(torch.float32).eps)
    if cut is None:
        assert torch.equal(got, kernel.weight_gradient(x, dy, geometry))


@pytest.fixture
def before_hopper(monkeypatch):
    """Kernels load by addresses of their own what descriptors would not copy asynchronously."""
    monkeypatch.setattr(kernel, "limits", lambda device: LIMITS[80])


@pytest.mark.parametrize("own_addresses", [False, True], ids=["descriptors", "addresses"])
@pytest.mark.parametrize("geometry, channels, size, cut", [
    (SAME, (64, 32), (5, 16), kernel.Split(1, 1, 16, 64, 32, 3)),
    (SAME, (32, 32), (4, 32), kernel.Split(2, 4, 16, 64, 64, 2)),
    (DOWN, (32, 64), (2 * 4 + 2, 2 * 16 + 2), kernel.Split(2, 4, 16, 32, 64, 1)),
    (DOWN_AND_FILTER, (64, 32), (2 * 2, 2 * 16), kernel.Split(1, 2, 16, 64, 64, 2)),
], ids=["same", "of 32", "down", "6x6"])  # fmt: skip
def test_both_ways_to_load_make_the_same_weight_gradient(monkeypatch, geometry, channels, size, cut, own_addresses):
    monkeypatch.setattr(kernel, "limits", lambda device: LIMITS[80 if own_addresses else 90])
    O, I = channels
    x, dy = half(3, I, *size), half(3, O, *geometry.output_size(size), seed=1)
    where = geometry.stride, geometry.padding
    exact = torch.nn.grad.conv2d_weight(x.double(), (O, I, *geometry.kernel), dy.double(), *where)
    got = kernel.weight_gradient(x, dy, geometry, cut)
    assert_close(got.double(), exact, tolerance=8 * torch.finfo(torch.float32).eps)


def test_the_data_gradient_is_the_same_by_addresses(before_hopper):
    dy, w = half(N, C, H, W), half(C, C // 2, 3, 3, seed=1, scale=1 / 24)
    exact = F.conv_transpose2d(dy.double(), w.double(), padding=1)
    close_in_fp16(kernel.convolve(dy, w, SAME.adjoint((H, W)), blocks=SMALL_TILES["many-boxes"]), exact)


def test_the_transposed_convolution_is_the_same_by_addresses(before_hopper):
    x, w = half(1, C, H, W), half(C, C // 2, 3, 3, seed=1, scale=1 / 24)
    exact = F.conv_transpose2d(x.double(), w.double(), stride=2, output_padding=1)
    close_in_fp16(kernel.convolve(x, w, UP, blocks=kernel.Tile(8, 16, 32, 64, 4, 3), strip=16), exact)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(), None),
        (dict(dtype=torch.float32), "16 bits"),
        (dict(device=LIMITS[75]), "compute capability 8.0, the GPU has 7.5"),
        (dict(device=LIMITS[86]), None),
        (dict(O=48), "multiples of 64 .*, they are 64 and 48"),
        (dict(O=32), "multiples of 64 .*, they are 64 and 32"),
        (dict(shape=(2, 32, 16, 32), O=32), None),
        (dict(shape=(2, 32, 16, 24), O=32), "they are 16 and 24"),
        (dict(geometry=DOWN_AND_FILTER, shape=(2, 32, 16, 32)), None),
        (dict(geometry=FILTER_AND_UP, O=32), None),
        (dict(geometry=FILTER_AND_UP, shape=(2, 32, 16, 16)), "they are 32 and 64"),
        (dict(shape=(2, 64, 4, 16)), "they are 4 and 16"),
        (dict(shape=(0, 64, 16, 16)), "none"),
        (dict(shape=(1, 64, 4096, 8176)), None),
        (dict(shape=(1, 64, 4096, 8192)), "a sample of 2147483648 elements is too large"),
        (dict(geometry=UP, shape=(1, 64, 4096, 2048)), "too large"),
        (dict(geometry=FILTER_AND_UP, shape=(1, 64, 4096, 4096), O=32), "too large"),
        (dict(geometry=Geometry((1, 1))), "of 3 x 3 taps .* not of 1, 1 x 1 and 1"),
        (dict(geometry=Geometry((3, 3), padding=(1, 1), groups=2)), "one group"),
        (dict(geometry=Geometry((3, 3), stride=3)), "not of 1, 3 x 3 and 3"),
        (dict(geometry=Geometry((3, 3))), "at stride 1, the kernels pad by 1"),
        (dict(geometry=DOWN, shape=(2, 64, 18, 34)), None),
        (dict(geometry=DOWN, shape=(2, 64, 17, 33)), "even height and width"),
        (dict(geometry=UP), None),
        (dict(geometry=Geometry((3, 3), stride=2, transposed=True)), "even height and width"),
    ],
)
def test_says_which_images_have_no_kernel(arguments, words):
    reason = kernel.why_not(**{"dtype": torch.half, "shape": (2, 64, 16, 16), "O": 64, "geometry": SAME, **arguments})
    assert reason is None if words is None else re.search(words, reason)


def test_a_view_that_begins_between_16_bytes_is_copied():
    # the interpreter fetches from anywhere, descriptors do not
    x, w, dy = half(N, 64, H, W), half(64, 64, 3, 3, seed=1), half(N, 64, H, W, seed=2)
    xs, ws, dys = (t.new_empty(t.numel() + 1)[1:].as_strided(t.shape, t.stride(), 1).copy_(t) for t in (x, w, dy))
    assert all(t.data_ptr() % 16 for t in (xs, ws, dys))
    seen = []
    with launches_to(lambda kernel, arguments, *_: seen.extend(arguments[:2])):
        kernel.convolve(xs, ws, SAME)
        kernel.weight_gradient(xs, dys, SAME)
    assert len(seen) == 4 and all(t.data_ptr() % 16 == 0 for t in seen)
    assert all(torch.equal(got, t) and got.stride() == t.stride() for got, t in zip(seen, (x, w, x, dy)))
