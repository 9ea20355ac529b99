"""The modulated layers of StyleGAN2, config F, at 256 and 1024: every kernel around their convolutions."""

from collections.abc import Iterator

from fastdgl_kernels.modulation import epilogue, to_rgb_kernel

from ..shapes import ALPHA, CLAMP, GAIN, NETWORKS, layers
from .case import ARCHS, Case


def cases() -> Iterator[Case]:
    """All of them, for every architecture."""
    for arch in ARCHS:
        for N, R, C in layers(half=True):
            yield from _around(arch, N, R, C)
            yield from _to_rgb(arch, N, R, C)
        for N, R, C in layers(half=False):
            yield from _around(arch, N, R, C, wide=True)
            yield from _to_rgb(arch, N, R, C, wide=True)
        for R, N in NETWORKS.items():
            yield from _image(arch, N, R)


def _around(arch: int, N: int, R: int, C: int, wide: bool = False) -> Iterator[Case]:
    P, size, image = R * R, 4 if wide else 2, "*fp32" if wide else "*fp16"
    layer = f"{C}@{R} N={N}" + (" fp32" if wide else "")
    tile = epilogue.tile(C, P, channels_last=not wide)
    blocks, tiles = -(-C // tile["BC"]), -(-P // tile["BP"])
    chunks = -(-tiles // epilogue.STEPS)
    activation = dict(ALPHA=ALPHA, GAIN=GAIN, CLAMP=CLAMP)
    numbers = dict(C="i32", P="i32", noise_stride="i32")
    few = dict(d="*fp32", noise="*fp32", bias="*fp32")
    # accesses of an image's tile by a thread
    one = epilogue.TILE * size // (16 * 128)
    # launches of a few microseconds do not fill the machine
    excuse = "a few microseconds" if P <= 16 * 16 else ""
    yield Case(
        f"epilogue {layer}", epilogue._forward, dict(u=image, y=image, **few, **numbers), activation | tile, arch,
        divisible=tuple(numbers), programs=N * tiles * blocks, bytes=N * P * (2 * size * C + 4), wide=2 * one,
        excuse=excuse,
    )  # fmt: skip
    yield Case(
        f"scale {layer}", epilogue._forward, dict(u=image, y=image, d="*fp32", **numbers),
        dict(noise=None, bias=None, ALPHA=1.0, GAIN=1.0, CLAMP=None) | tile, arch,
        divisible=tuple(numbers), programs=N * tiles * blocks, bytes=N * P * 2 * size * C, wide=2 * one, excuse=excuse,
    )  # fmt: skip
    sums = dict(sum_g="*fp32", sum_gu="*fp32", dnoise="*fp32")
    yield Case(
        f"epilogue gradient {layer}", epilogue._backward, dict(dy=image, y=image, du=image, **few, **sums, **numbers),
        activation | tile | dict(STEPS=epilogue.STEPS), arch, divisible=tuple(numbers), programs=N * chunks * blocks,
        bytes=N * (P * (3 * size * C + 4 + 4 * blocks) + chunks * C * 8), trips=min(epilogue.STEPS, tiles),
        wide=3 * one, excuse=excuse,
    )  # fmt: skip
    yield Case(
        f"scale gradient {layer}", epilogue._scale_backward,
        dict(t=image, x=image, s="*fp32", dx=image, xs=image, ds="*fp32", C="i32", P="i32"),
        tile | dict(STEPS=epilogue.STEPS), arch, divisible=("C", "P"), programs=N * chunks * blocks,
        bytes=N * (P * 4 * size * C + chunks * C * 4), trips=min(epilogue.STEPS, tiles),
        wide=4 * one, excuse=excuse,
    )  # fmt: skip


def _image(arch: int, N: int, R: int) -> Iterator[Case]:
    """The tail of ToRGB: 3 channels, channels last because the convolution before it was."""
    P = R * R
    tile = epilogue.tile(3, P, channels_last=True)
    tiles = -(-P // tile["BP"])
    chunks = -(-tiles // epilogue.STEPS)
    numbers, tail = dict(C="i32", P="i32", noise_stride="i32"), dict(d=None, noise=None, ALPHA=1.0, GAIN=1.0, CLAMP=CLAMP)
    common = dict(arch=arch, divisible=("P",), wide=0, excuse="2-byte accesses: 3 channels")
    yield Case(
        f"epilogue 3@{R} N={N} rgb", epilogue._forward, dict(u="*fp16", y="*fp16", bias="*fp32", **numbers), tail | tile,
        programs=N * tiles, bytes=N * P * 12, **common,
    )  # fmt: skip
    yield Case(
        f"epilogue gradient 3@{R} N={N} rgb", epilogue._backward,
        dict(dy="*fp16", y="*fp16", bias="*fp32", du="*fp16", sum_g="*fp32", **numbers),
        tail | tile | dict(sum_gu=None, dnoise=None, STEPS=epilogue.STEPS),
        programs=N * chunks, bytes=N * P * 18, trips=epilogue.STEPS, **common,
    )  # fmt: skip


def _to_rgb(arch: int, N: int, R: int, C: int, wide: bool = False) -> Iterator[Case]:
    """ToRGB in kernels of its own; its images of 3 channels are channels first."""
    P, size, image = R * R, 4 if wide else 2, "*fp32" if wide else "*fp16"
    layer = f"{C}@{R} N={N}" + (" fp32" if wide else "")
    tile = epilogue.tile(C, P, channels_last=not wide)
    blocks, tiles = -(-C // tile["BC"]), -(-P // tile["BP"])
    chunks = -(-tiles // epilogue.STEPS)
    summed = to_rgb_kernel.forward_tile(C, P, channels_last=not wide)
    sums = -(-C // summed["BC"])
    sizes, few = dict(I="i32", P="i32"), dict(O=3)
    one = epilogue.TILE * size // (16 * 128)
    bytes, excuse = N * P * (C + 3) * size, "a few microseconds" if P <= 16 * 16 else ""
    common = dict(arch=arch, divisible=tuple(sizes), wide=one, excuse=excuse)
    yield Case(
        f"to_rgb {layer}", to_rgb_kernel._forward, dict(x=image, w="*fp32", bias="*fp32", y=image) | sizes,
        few | summed | dict(ALPHA=1.0, GAIN=1.0, CLAMP=CLAMP, BLOCKS=sums), programs=N * -(-P // summed["BP"]), bytes=bytes,
        trips=sums, **common,
    )  # fmt: skip
    yield Case(
        f"to_rgb data gradient {layer}", to_rgb_kernel._data_gradient, dict(dy=image, w="*fp32", dx=image) | sizes,
        few | tile, programs=N * tiles * blocks, bytes=bytes, **common,
    )  # fmt: skip
    yield Case(
        f"to_rgb weight gradient {layer}", to_rgb_kernel._weight_gradient, dict(dy=image, x=image, dw="*fp32") | sizes,
        few | tile | dict(STEPS=epilogue.STEPS), programs=N * chunks * blocks, bytes=bytes + 4 * N * chunks * 3 * C,
        trips=min(epilogue.STEPS, tiles), **common,
    )  # fmt: skip
