"""Which convolution a layer gets by itself: PyTorch's (cuDNN) between kernels of ours, or one of our own.

Chosen ahead of time, never while training: by the table of the GPU's architecture, and by a rule where it has no entry.
"""

from typing import NamedTuple

from torch import Tensor

from .. import _layout
from .._tuning import architecture
from .spec import Spec

# An entry is of a layer, as `layer` spells it, or of all layers of a kind that have none of their own. Nothing here has
# been measured on a GPU: the matrix products are PyTorch's until ours are shown to be faster; ToRGB is ours, for it is
# bound by memory and our kernels read the features once. A run of `python -m bench.gpu` proposes the entries of layers.
TABLE = {
    "sm_80": {
        "same": "cudnn",
        "down": "cudnn",
        "modulated same": "cudnn",
        "modulated up": "cudnn",
        "to_rgb": "triton",
    },
    "sm_90": {
        "same": "cudnn",
        "down": "cudnn",
        "modulated same": "cudnn",
        "modulated up": "cudnn",
        "to_rgb": "triton",
    },
}


class Preference(NamedTuple):
    """The implementation to take where several are able, and where that is written, in words."""

    name: str
    source: str


def preference(kind: str, x: Tensor, O: int) -> Preference:
    """Which of "cudnn" and "triton" is to take a layer.

    Args:
        kind: See `kind`, with "modulated " before it where styles scale the input; or "to_rgb".
        x: `[N, I, H, W]`, the input.
        O: Channels of the output.
    """
    arch, spelled = architecture(x.device), layer(kind, x, O)
    entries = TABLE.get(arch, {})
    for entry in (spelled, kind):
        if entry in entries:
            return Preference(entries[entry], f"by the entry {entry!r} of the table for {arch}")
    name = "triton" if kind == "to_rgb" else "cudnn"
    return Preference(name, f"by rule, for the table has no {spelled!r} for {arch}")


def kind(w: Tensor, spec: Spec) -> str:
    """What is convolved by a kernel of ours, should it fit the shape: "same", "up", "down"; or "other"."""
    if w.shape[2:] != (3, 3) or spec.groups != 1:
        return "other"
    return {(1, 1): "same", (2, 1): "up", (1, 2): "down"}.get((spec.up, spec.down), "other")


def enlarged(x: Tensor, w: Tensor, up: int) -> int:
    """Return how many times as large as x the largest tensor inside of a layer is, at most."""
    O, I = len(w), x.shape[1]
    # between a transposed convolution and its filter, images are a few pixels larger
    return 2 * up * up * max(1, -(-O // I))


def layer(kind: str, x: Tensor, O: int) -> str:
    """How the table spells a layer: "modulated same 512>512 @64 N=32 float16 NHWC".

    Powers of two stand for the longer side of x, and for its batch, up to the next power.
    """
    return f"{kind} {_layout.layer(x, O)}"
