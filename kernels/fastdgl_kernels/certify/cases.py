"""The calls that are certified where no model is at hand: each operator in every dtype and layout."""

from collections.abc import Iterator
from dataclasses import replace

from .calls import Call, Operand

TAPS = [1.0, 3.0, 3.0, 1.0]
SHARP = [1.0, 2.0, 4.0, 8.0, 12.0, 15.0, 15.0, 12.0, 8.0, 4.0, 2.0, 1.0]


def general(interpreted: bool = False) -> list[Call]:
    """Return some seventy calls, the operators inside of others first.

    Args:
        interpreted: Kernels are interpreted, which takes long: fewer calls, and smaller images, which cross the edges of the smaller tiles.
    """
    calls = []
    # interpreted, nothing is taken by itself: a few classes show that the kernels compute what they should
    for dtype, layout in (("float32", "contiguous"), ("float16", "channels_last")) if interpreted else CLASSES:
        calls += _calls(dtype, layout, 1 if interpreted else 4)
    if interpreted:
        return calls
    # a misaligned call of each dtype, on views and strided vectors
    calls += [replace(call, misaligned=True) for call in _first_of_each_dtype(calls)]
    return calls


CLASSES = [(dtype, layout) for dtype in ("float16", "bfloat16", "float32") for layout in ("channels_last", "contiguous")]


def typical() -> list[Call]:
    """Return layers of a StyleGAN2 at 256 and of a BigGAN, to be timed where no model is at hand."""
    calls = []
    for size, I, O in ((32, 512, 512), (64, 512, 256), (128, 256, 128), (256, 128, 64)):
        calls += _layers(8, size, I, O)
    norm = dict(x=Operand((32, 384, 32, 32), "bfloat16", "channels_last"), scale=Operand((32, 384), "float32"))
    calls.append(Call("scale_shift_act", norm | dict(shift=norm["scale"]), {}, dict(up=2)))
    return calls


def _layers(N: int, size: int, I: int, O: int) -> Iterator[Call]:
    """Yield what a generator and a discriminator of config F call at one resolution, in 16 bits."""

    def image(channels: int, size: int) -> Operand:
        return Operand((N, channels, size, size), "float16", "channels_last")

    def layer(O: int, I: int, k: int) -> dict[str, Operand]:
        return dict(
            weight=Operand((O, I, k, k), "float32"), styles=Operand((N, I), "float32"), bias=Operand((O,), "float32")
        )

    noise = Operand((N, 1, size, size), "float32")
    same, f = dict(padding=1, clamp=256.0), _outer(TAPS)
    yield Call("modulated_conv2d_bias_act", dict(x=image(I, size // 2), **layer(O, I, 3), noise=noise), dict(resample_filter=f), same | dict(up=2))
    yield Call("modulated_conv2d_bias_act", dict(x=image(O, size), **layer(O, O, 3), noise=noise), {}, same)
    yield Call("modulated_conv2d_bias_act", dict(x=image(O, size), **layer(3, O, 1)), {}, dict(demodulate=False, act="linear", clamp=256.0))
    yield Call("conv2d_resample", dict(x=image(O, size), w=Operand((O, O, 3, 3), "float16")), {}, dict(padding=1))
    yield Call("conv2d_resample", dict(x=image(O, size), w=Operand((I, O, 3, 3), "float16")), dict(f=f), dict(down=2, padding=1))
    yield Call("bias_act", dict(x=image(O, size), b=Operand((O,), "float16")), {}, dict(act="lrelu", clamp=256.0))
    yield Call("upfirdn2d", dict(x=Operand((N, 3, size // 2, size // 2), "float32")), dict(f=f), dict(up=2, padding=[2, 1, 2, 1], gain=4.0))


def _calls(dtype: str, layout: str, s: int) -> Iterator[Call]:
    """Yield the calls of a dtype and layout.

    Args:
        s: How many times as large as the smallest images are.
    """

    def image(C: int, H: int, W: int) -> Operand:
        return Operand((2, C, H, W), dtype, layout)

    def other(*shape: int) -> Operand:
        return Operand(shape, dtype)

    def master(*shape: int) -> Operand:
        return Operand(shape, "float32")

    tails = {"float16": dict(act="lrelu", clamp=256.0), "bfloat16": dict(act="relu"), "float32": dict(act="swish", clamp=2.0)}
    yield Call("bias_act", dict(x=image(24, 5 * s, 7 * s - 1), b=other(24)), {}, tails[dtype])
    resampled = {"float16": dict(up=2, padding=[2, 1, 2, 1], gain=4.0), "bfloat16": dict(down=2, padding=1)}
    resampled["float32"] = dict(padding=[2, 1, 2, 1]) if layout == "contiguous" else resampled["float16"]
    yield Call("upfirdn2d", dict(x=image(8 * s, 5 * s, 4 * s + 1)), dict(f=_outer(TAPS)), resampled[dtype])
    factors = dict(scale=master(2, 8 * s), shift=master(2, 8 * s))
    yield Call("scale_shift_act", dict(x=image(8 * s, 5 * s, 6 * s), **factors), {}, dict(up=2))
    # channels in multiples of 64 are those that have a convolution of their own
    I, O = (64, 64) if dtype != "float32" else (6, 8)
    down = dict(down=2, padding=1) if layout == "channels_last" else dict(padding=1)
    yield Call("conv2d_resample", dict(x=image(I, 8 * s, 8 * s), w=other(O, I, 3, 3)), dict(f=_outer(TAPS)), down)
    filtered = dict(up=2, down=2, padding=[10, 11, 10, 11], clamp=256.0)
    yield Call("filtered_lrelu", dict(x=image(8, 6 * s, 5 * s), b=other(8)), dict(fu=SHARP, fd=SHARP), filtered)
    weights = dict(weight=master(O, I, 3, 3), styles=master(2, I))
    yield Call("modulated_conv2d", dict(x=image(I, 8 * s, 8 * s), **weights), {}, dict(padding=1))
    up = dict(padding=1, clamp=256.0) | (dict(up=2) if layout == "channels_last" else {})
    size = 8 * s * up.get("up", 1)
    tensors = dict(x=image(I, 8 * s, 8 * s), **weights, noise=master(2, 1, size, size), bias=master(O))
    yield Call("modulated_conv2d_bias_act", tensors, dict(resample_filter=_outer(TAPS)), up)
    rgb = dict(x=image(I, 8 * s, 8 * s), weight=master(3, I, 1, 1), styles=master(2, I), bias=master(3))
    yield Call("modulated_conv2d_bias_act", rgb, {}, dict(demodulate=False, act="linear", clamp=256.0))


def _first_of_each_dtype(calls: list[Call]) -> list[Call]:
    """Return the first call of each operator in each dtype."""
    first = {}
    for call in calls:
        first.setdefault((call.operator, call.dtype), call)
    return list(first.values())


def _outer(taps: list[float]) -> list[list[float]]:
    """Return the 2-D filter of sum 1 that `setup_filter` makes of 1-D taps."""
    total = sum(taps) ** 2
    return [[a * b / total for b in taps] for a in taps]
