"""The convolutions of StyleGAN2, config F, at 256 and 1024, in 16 bits: of the generator and of the discriminator.

What keeps the size has a tail in the generator. What halves it in the discriminator is the data gradient of what
doubles it in the generator, and the other way round.
"""

from collections.abc import Iterator
from dataclasses import replace

from fastdgl_kernels._tuning import LIMITS
from fastdgl_kernels.convolution import kernel

from ..shapes import ALPHA, CLAMP, GAIN, channels, conv_flops, layers
from .case import ARCHS, Case

IMAGES = dict(x="*fp16", w="*fp16", y="*fp16")
SIZES = dict(N="i32", H="i32", W="i32")
ANY = IMAGES | SIZES | dict(weights_per_sample="i32", noise_stride="i32")
FEW = dict(d="*fp32", noise="*fp32", bias="*fp32")
TAIL = dict(ALPHA=ALPHA, GAIN=GAIN, CLAMP=CLAMP)
NO_TAIL = dict(d=None, noise=None, bias=None, ALPHA=1.0, GAIN=1.0, CLAMP=None)

# every pixel of its own
ONE = dict(TAPS=3, STRIDE=1, TRANSPOSED=False, PAIRED=False, PH=1, PW=1)


def cases() -> Iterator[Case]:
    """All of them, for every architecture."""
    for arch in ARCHS:
        if arch < kernel.LEAST_CAPABILITY:
            continue
        for N, R, C in layers(half=True):
            if C >= 64:
                yield from _same(arch, N, R, C)
                yield from _resampling(arch, N, R // 2, C, channels(R // 2))
            else:
                yield from _same_of_32(arch, N, R)
                yield from _resampling_of_32(arch, N, R // 2)
        yield from _single(arch)
        yield from _strips(arch, 32, 64, channels(128), channels(64))


def _single(arch: int) -> Iterator[Case]:
    """One sample with weights of its own: Triton makes a kernel of its own where an integer is 1."""
    for case in _same(arch, 1, 64, 512):
        one = {"N": 1, "weights_per_sample": 1}.items()
        constexprs = {name: value for name, value in one if name in case.signature}
        yield replace(case, constexprs=case.constexprs | constexprs, excuse="one sample does not fill the machine")


def _same(arch: int, N: int, R: int, C: int) -> Iterator[Case]:
    layer, flops, images = f"{C}@{R} N={N}", conv_flops(N, R * R, C, C), 2 * N * R * R * C * 2
    shape, launch = _tiled(arch, N, R, R, C, C)
    yield Case(
        f"conv {layer}", kernel._convolution, ANY | FEW, shape | ONE | TAIL, arch, flops=flops,
        bytes=images + 18 * C * C + 4 * N * R * R, **launch,
    )  # fmt: skip
    yield Case(
        f"conv data gradient {layer}", kernel._convolution, ANY, shape | ONE | NO_TAIL | dict(TRANSPOSED=True), arch,
        flops=flops, bytes=images + 18 * C * C, **launch,
    )  # fmt: skip
    yield _weight_gradient(f"conv weight gradient {layer}", arch, N, R, R, C, C)


def _same_of_32(arch: int, N: int, R: int) -> Iterator[Case]:
    """Two pixels are taken for one of 64 channels; of 36 blocks of the weight between them, 24 are multiplied with."""
    layer, flops, images = f"32@{R} N={N}", conv_flops(N, R * R, 32, 32), 2 * N * R * R * 32 * 2
    shape, launch = _tiled(arch, N, R, R // 2, 32, 64)
    shape, launch = shape | dict(I=64), launch | dict(trips=12, flops=flops * 4 // 3)
    pairs = ONE | dict(PAIRED=True, PW=2)
    yield Case(
        f"conv {layer}", kernel._convolution, ANY | FEW, shape | pairs | TAIL, arch,
        bytes=images + 4 * N * R * R, **launch,
    )  # fmt: skip
    yield Case(
        f"conv data gradient {layer}", kernel._convolution, ANY, shape | pairs | NO_TAIL | dict(TRANSPOSED=True), arch,
        bytes=images, **launch,
    )  # fmt: skip
    yield _weight_gradient(f"conv weight gradient {layer}", arch, N, R, R // 2, 64, 64)


def _resampling(arch: int, N: int, R: int, I: int, O: int) -> Iterator[Case]:
    """Between I channels at 2 R + 2 and O channels at R."""
    flops, bytes = conv_flops(N, R * R, I, O), 2 * N * ((2 * R + 1) ** 2 * I + R * R * O) + 18 * I * O
    shape, launch = _tiled(arch, N, R, R, I, O)
    yield Case(
        f"conv down {I}@{2 * R}>{O}@{R} N={N}", kernel._convolution, ANY, shape | ONE | NO_TAIL | dict(STRIDE=2), arch,
        flops=flops, bytes=bytes, excuse="programs for two waves and a half" if R <= 16 else "", **launch,
    )  # fmt: skip
    shape, launch = _tiled(arch, N, R, R, O, I)
    # a parity sums over 9 / 4 taps in the mean
    launch |= dict(programs=4 * launch["programs"], trips=launch["trips"] // 4)
    yield Case(
        f"conv up {O}@{R}>{I}@{2 * R} N={N}", kernel._transposed, IMAGES | SIZES | _regions(), shape, arch,
        flops=flops, bytes=bytes, **launch,
    )  # fmt: skip
    yield _weight_gradient(f"conv down weight gradient {I}@{2 * R}>{O}@{R} N={N}", arch, N, R, R, I, O, stride=2)


def _resampling_of_32(arch: int, N: int, R: int) -> Iterator[Case]:
    """Between 32 channels at 2 R and 64 at R, by 6x6 taps: the filter is in them."""
    flops, bytes = conv_flops(N, R * R, 32, 64, 36), 2 * N * R * R * (4 * 32 + 64)
    shape, launch = _tiled(arch, N, R, R, 64, 64)
    yield Case(
        f"conv and filter down 32@{2 * R}>64@{R} N={N}", kernel._convolution, ANY,
        shape | ONE | NO_TAIL | dict(I=32, TAPS=6, STRIDE=2), arch, flops=flops, bytes=bytes, **launch | dict(trips=18),
    )  # fmt: skip
    shape, launch = _tiled(arch, N, R, R, 64, 128)
    pixels = ONE | dict(PH=2, PW=2)
    # outside the loop: one number is stored once, and loaded once
    known = dict(stack=8, excuse="ptxas spills 8 bytes for sm_100, outside the loop") if arch == 100 else {}
    yield Case(
        f"conv and filter up 64@{R}>32@{2 * R} N={N}", kernel._convolution, ANY | FEW, shape | pixels | TAIL, arch,
        flops=flops, bytes=bytes + 16 * N * R * R, **launch | known,
    )  # fmt: skip
    yield Case(
        f"conv and filter down data gradient 32@{2 * R}>64@{R} N={N}", kernel._convolution, ANY,
        shape | pixels | NO_TAIL, arch, flops=flops, bytes=bytes, **launch,
    )  # fmt: skip
    name = f"conv and filter down weight gradient 32@{2 * R}>64@{R} N={N}"
    yield _weight_gradient(name, arch, N, R, R, 32, 64, taps=6, stride=2)


def _strips(arch: int, N: int, R: int, I: int, O: int) -> Iterator[Case]:
    """The last two rows, and the last two columns, of an image that doubles in size."""
    shape, launch = _tiled(arch, N, R, R, O, I)
    launch |= dict(programs=4 * N * (I // shape["BO"]), trips=launch["trips"] // 4, flops=conv_flops(N, R, I, O))
    for name, box in (("rows", dict(BH=1, BW=R)), ("columns", dict(BH=R, BW=1))):
        launch |= dict(copies=(R + shape["BO"]) * shape["BI"] * 2 // (16 * 32 * launch["num_warps"]))
        yield Case(
            f"conv up {O}@{R}>{I}@{2 * R} N={N} last {name}", kernel._transposed, IMAGES | SIZES | _regions(),
            shape | box, arch, bytes=2 * N * R * (4 * I + O) + 18 * I * O, excuse="a few microseconds", **launch,
        )  # fmt: skip


def _regions() -> dict[str, str]:
    return dict(first_h="i32", first_w="i32", end_h="i32", end_w="i32")


def _tiled(arch: int, N: int, H: int, W: int, I: int, O: int) -> tuple[dict, dict]:
    """Sizes that are compile-time, and the launch, of a convolution of 9 taps to O channels of H x W pixels."""
    device = LIMITS[arch]
    tile = kernel.tile(H, W, I, O, device)
    shape = dict(I=I, O=O, POINTERS=not device.has_tma) | tile.blocks
    copies = (tile.BH * tile.BW + tile.BO) * tile.BI * 2 // (16 * 32 * tile.num_warps)
    programs = N * -(-H // tile.BH) * -(-W // tile.BW) * (O // tile.BO)
    launch = dict(programs=programs, trips=9 * I // tile.BI, num_warps=tile.num_warps)
    launch |= dict(copies=copies, shared=tile.shared(device))
    return shape, launch | dict(num_stages=tile.num_stages, divisible=("H", "W"))


def _weight_gradient(
    name: str, arch: int, N: int, H: int, W: int, I: int, O: int, taps: int = 3, stride: int = 1
) -> Case:
    depth = I * taps // 3
    device = LIMITS[arch]
    cut = kernel.split(N, H, W, depth, O, 3 * taps, device)
    copies = cut.BN * cut.BH * cut.BW * (cut.BO + cut.BI) * 2 // (16 * 32 * cut.num_warps)
    boxes = -(-N // cut.BN) * (H // cut.BH) * (W // cut.BW)
    images, weights = 2 * N * H * W * (stride * stride * I + O), 4 * taps * taps * I * O
    return Case(
        name, kernel._weight_gradient, dict(x="*fp16", dy="*fp16", partial="*fp32", N="i32", steps="i32"),
        dict(H=H, W=W, I=I, O=O, TAPS=taps, STRIDE=stride, POINTERS=not device.has_tma) | cut.blocks,
        arch, cut.num_warps, cut.num_stages, copies=copies, shared=cut.shared(device),
        programs=3 * taps * (O // cut.BO) * (depth // cut.BI) * cut.parts, bytes=images + weights * (cut.parts + 1),
        flops=conv_flops(N, H * W, I, O, taps * taps), trips=-(-boxes // cut.parts),
        excuse="a workspace more costs as much as the ragged wave" if H <= 16 else "",
    )  # fmt: skip
