"""scale_shift_act in the generator of BigGAN at 128: before the first convolution of a block, and before the second."""

from collections.abc import Iterator

from fastdgl_kernels.modulation.epilogue import STEPS, TILE, tile
from fastdgl_kernels.normalization import kernel

from ..shapes import BIGGAN_BATCH as N
from ..shapes import batch_norms
from .case import ARCHS, Case


def cases() -> Iterator[Case]:
    """All of them, for every architecture."""
    for arch in ARCHS:
        for _, R, C, up in batch_norms():
            yield from _pointwise(arch, R, C, up)
        # in fp32 images are channels first
        for up in (1, 2):
            yield from _pointwise(arch, 64, 192, up, bits=32)


def _pointwise(arch: int, R: int, C: int, up: int, bits: int = 16) -> Iterator[Case]:
    P, size, image = R * R, bits // 8, f"*fp{bits}"
    layer = f"{C}@{R} N={N}" + (" up" if up == 2 else "") + ("" if bits == 16 else " fp32")
    t = tile(C, P, channels_last=bits == 16)
    blocks, tiles = -(-C // t["BC"]), -(-P // t["BP"])
    chunks = -(-tiles // STEPS)
    numbers = dict(groups="i32", P="i32", width="i32", scale_stride="i32", shift_stride="i32")
    divisible = tuple(name for name in numbers if name != "groups" or C % 128 == 0)
    given = dict(x=image, scale="*fp32", shift="*fp32") | numbers
    how = dict(RELU=True, UP=up, GROUP=8) | t
    # accesses of an image's tile by a thread
    one = TILE * size // (16 * 128)
    excuse = "a few microseconds" if N * P * C * size < 2**25 else ""
    yield Case(
        f"scale_shift_act {layer}", kernel._forward, given | dict(y=image), how | dict(z=None), arch,
        divisible=divisible, programs=N * tiles * blocks, bytes=N * P * C * size * (1 + up * up), wide=one * (1 + up * up), excuse=excuse,
    )  # fmt: skip
    known = dict(stack=8, excuse="ptxas spills 8 bytes for sm_100, at 96 registers of 255") if arch == 100 and up == 2 else {}
    yield Case(
        f"scale_shift_act gradient {layer}", kernel._backward,
        given | dict(dy=image, dx=image, dscale="*fp32", dshift="*fp32"), how | dict(SCALED=True, STEPS=STEPS), arch,
        divisible=divisible, programs=N * chunks * blocks,
        bytes=N * (P * C * size * (2 + up * up) + chunks * C * 8), trips=min(STEPS, tiles),
        wide=one * (2 + up * up), **dict(excuse=excuse) | known,
    )  # fmt: skip
