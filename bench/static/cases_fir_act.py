"""bias_act and upfirdn2d in StyleGAN2, config F, at 256 and 1024: every layer that has them, forward and backward."""

from collections.abc import Iterator

from fastdgl_kernels._tuning import tuned
from fastdgl_kernels.activation import kernel as act
from fastdgl_kernels.resampling import kernel as fir

from ..shapes import Filter, filters, layers, long_filters
from .case import ARCHS, Case

POINTERS = {16: "*fp16", 32: "*fp32"}


def cases() -> Iterator[Case]:
    """All of them, for every architecture."""
    for arch in ARCHS:
        for N, R, C in layers():
            yield from _bias_act(arch, N, R, C, channels_last=True)
            yield from _network_filters(arch, N, R, C)
        # the low resolutions compute in fp32, channels first; so do the images
        for N, R, C in layers(half=False):
            yield from _bias_act(arch, N, R, C, channels_last=False, bits=32)
        for act_name in ("swish", "softplus"):
            yield from _bias_act(arch, 32, 128, 256, channels_last=True, name=act_name)
        for C, R in ((64, 256), (512, 32)):
            yield from _filters_of_12_taps(arch, 32, R, C)
        yield from _filters_of_12_taps(arch, 32, 256, 3, channels_last=False)
        for bits in (32, 16):
            yield from _channels_first(arch, bits)
        yield from _any(arch, 32, 256)


def _bias_act(
    arch: int, N: int, R: int, C: int, channels_last: bool, bits: int = 16, name: str = "lrelu"
) -> Iterator[Case]:
    P, size, image = R * R, bits // 8, POINTERS[bits]
    layer = f"{name} {C}@{R} N={N}" + ("" if bits == 16 else " fp32")
    excuse = "a few microseconds" if N * P * C * size < 2**25 else ""
    excuse = excuse or ("a logarithm and two exponentials, in no layer of the networks" if name == "softplus" else "")
    m = act.Matrix(N * P, C, C, "cols") if channels_last else act.Matrix(N * C, P, C, "rows")
    numbers = dict(rows="i32", cols="i32", C="i32")
    floats = dict(alpha="fp32", gain="fp32", clamp="fp32")

    elements, warps = tuned("bias_act", f"sm_{arch}")
    rows, cols = m.tile(elements)
    # accesses of a tile by a thread
    one = elements * size // (16 * 32 * warps)
    yield Case(
        f"bias_act {layer}", act.bias_act_kernel, dict(x=image, b=image, y=image) | numbers | floats,
        dict(ACT=name, CLAMP=True, BIAS=m.bias, ROWS=rows, COLS=cols), arch, warps, divisible=tuple(numbers),
        programs=-(-m.rows // rows) * -(-m.cols // cols), bytes=2 * N * P * C * size, wide=2 * one, excuse=excuse,
    )  # fmt: skip

    elements, warps = tuned("bias_act_grad", f"sm_{arch}")
    rows, cols = m.tile(elements)
    steps, lanes, blocks = m.walk(rows, cols, tuned("bias_act_grad_programs", f"sm_{arch}"))
    reads = "x" if name == "swish" else "y"
    # what is read off y needs no bias
    given = dict(r=image) | (dict(b=image) if reads == "x" else {})
    yield Case(
        f"bias_act gradient {layer}", act.bias_act_grad_kernel,
        dict(dy=image, dx=image, db="*fp32", unscale="fp32") | given | numbers | floats,
        dict(ddx=None, ORDER=0, ACT=name, CLAMP=True, READS=reads, BIAS=m.bias, SUM=True)
        | dict(STEPS=steps, ROWS=rows, COLS=cols)
        | ({} if reads == "x" else dict(b=None)),
        arch, warps, divisible=tuple(numbers), programs=lanes * blocks,
        bytes=3 * N * P * C * size + 4 * lanes * (C if channels_last else N * C), trips=steps,
        wide=3 * elements * size // (16 * 32 * warps), excuse=excuse,
    )  # fmt: skip


def _network_filters(arch: int, N: int, R: int, C: int) -> Iterator[Case]:
    """What surrounds the changes of resolution, channels last."""
    layer = f"{C}@{R} N={N}"
    for filter in filters(R):
        # cut to powers of two, tiles hang over at the edges; beyond 32 x 32 that is little
        excuse = "33 x 33 outputs in whole tiles" if filter.output % 2 and R <= 32 else ""
        yield _separable(f"filter {layer} {filter.name}", arch, N, C, filter, excuse=excuse)
        if filter.name == "after up-convolution":
            yield _separable(f"filter {layer} {filter.name}, and tail", arch, N, C, filter, tail=True)


def _channels_first(arch: int, bits: int) -> Iterator[Case]:
    """Images, which the generator adds up; and layers in fp32."""
    excuse = "2-byte accesses: channels first" if bits == 16 else ""
    low = [(N, R, C) for N, R, C in layers(half=False) if R >= 8] if bits == 32 else [(8, 64, 512)]
    for N, R, C in [(32, 256, 3), (8, 1024, 3), *low]:
        layer = f"{C}@{R} N={N} channels first" + ("" if bits == 16 else " fp32")
        for filter in filters(R):
            name = f"filter {layer} {filter.name}"
            lines = f"{filter.output} x {filter.output} outputs in whole lines of 32"
            ragged = lines if filter.output % 2 and R <= 64 else ""
            yield _separable(name, arch, N, C, filter, bits=bits, channels_last=False, excuse=ragged or excuse)


def _filters_of_12_taps(arch: int, N: int, R: int, C: int, channels_last: bool = True) -> Iterator[Case]:
    for bits in (16, 32):
        layer = f"{C}@{R} N={N}" + ("" if channels_last else " channels first") + ("" if bits == 16 else " fp32")
        excuse = "12 taps: bound by issue slots, not tuned"
        for filter in long_filters(R):
            name = f"filter of 12 {layer} {filter.name}".strip()
            yield _separable(name, arch, N, C, filter, bits=bits, channels_last=channels_last, excuse=excuse)


def _separable(
    name: str, arch: int, N: int, C: int, filter: Filter,
    tail: bool = False, bits: int = 16, channels_last: bool = True, excuse: str = "",
) -> Case:  # fmt: skip
    R, OR, up, down, taps, pad = filter.size, filter.output, filter.up, filter.down, filter.taps, filter.padding[0]
    size, image = bits // 8, POINTERS[bits]
    tile = fir.separable_tile(f"sm_{arch}", size, C, (OR, OR), up, down, taps, channels_last)
    few = dict(demod="*fp32", noise="*fp32", bias=image) if tail else {}
    numbers = dict(noise_stride="i32", H="i32", W="i32", groups="i32", OH="i32", OW="i32")
    floats = dict(scale="fp32", alpha="fp32", gain="fp32", clamp="fp32")
    kept = -(-taps // up) - down
    warm_up = 0 if kept <= 4 else -(-kept * up // (tile.rows * down))
    bytes = N * C * size * (R * R + OR * OR) + (4 * N * OR * OR if tail else 0)
    return Case(
        name, fir.separable_kernel, dict(x=image, fx="*fp32", fy="*fp32", y=image) | few | numbers | floats,
        dict(UP=up, DOWN=down, PAD_X=pad, PAD_Y=pad, TAPS_X=taps, TAPS_Y=taps, FLIP=False, TAIL=tail, CLAMP=tail,
             GROUP=8 if channels_last else 1, CHANNELS_LAST=channels_last,
             SLOTS=tile.slots, ROWS=tile.rows, STEPS=tile.steps, COLS=tile.cols, CHANNELS=tile.channels)
        | ({} if tail else dict(demod=None, noise=None, bias=None)),
        arch, tile.warps, programs=N * tile.programs(C, OR, OR), bytes=bytes, trips=tile.steps + warm_up,
        # the rows of a step, and what comes of them; shifted by a column, channels first cannot be accessed so
        wide=(tile.rows * tile.slots + tile.rows * down // up * taps // up) if channels_last else 0,
        excuse=excuse or ("a few microseconds" if bytes < 2**26 else ""),
    )  # fmt: skip


def _any(arch: int, N: int, R: int) -> Iterator[Case]:
    """The kernel that takes everything, on images of 3 channels in fp32: filters that are no product, augmentation."""
    excuse = "shifted 4-byte accesses: images, channels first"
    sizes = ["C", "H", "W", "OH", "OW", "x_n", "x_c", "x_h", "y_n", "y_c", "y_h"]
    pads = ["pad_x", "lead_x", "shift_x", "pad_y", "lead_y", "shift_y"]
    for name, up, down, FW, FH, H, W, OH, OW in (
        ("images up", (2, 2), (1, 1), 4, 4, R // 2, R // 2, R, R),
        ("images down", (1, 1), (2, 2), 4, 4, R, R, R // 2, R // 2),
        ("images 12 taps along x, up", (2, 1), (1, 1), 12, 1, R, R, R, 2 * R),
        ("images 12 taps along y, up", (1, 2), (1, 1), 1, 12, R, 2 * R, 2 * R, 2 * R),
    ):
        vector = min(OW, 128)
        lanes = tuned("upfirdn2d", f"sm_{arch}")[0] // vector
        unroll = max(-(-FW // up[0]), -(-FH // up[1]))
        yield Case(
            f"{name} 3@{R} N={N} fp32", fir.upfirdn2d_kernel,
            dict(x="*fp32", f="*fp32", y="*fp32", scale="fp32") | {n: "i32" for n in sizes + pads},
            dict(x_w=1, y_w=1, UP_X=up[0], UP_Y=up[1], DOWN_X=down[0], DOWN_Y=down[1], TAPS_X=FW, TAPS_Y=FH, FLIP=False,
                 CHANNELS_LAST=False, WIDE=False, UNROLL=unroll if unroll <= 6 else 1, LANES=lanes, VECTOR=vector),
            arch, divisible=tuple(sizes[1:]), programs=N * 3 * -(-OH // lanes) * -(-OW // vector),
            bytes=N * 3 * 4 * (H * W + OH * OW), wide=0, excuse=excuse,
        )  # fmt: skip
