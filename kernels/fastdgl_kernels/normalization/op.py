"""The public door of scale_shift_act: arguments are checked and completed here."""

from torch import Tensor

from .._dispatch import dispatch
from .._operators import door
from ..resampling.op import check_image, check_kind
from . import reference

ACTS = ("linear", "relu")


@door
def scale_shift_act(
    x: Tensor, scale: Tensor, shift: Tensor, act: str = "relu", up: int = 1, impl: str | None = None
) -> Tensor:
    """Scale and shift each channel, apply an activation, repeat pixels: a normalization whose statistics are known.

        y = upsample_nearest(act(x * scale + shift), up)

    A batch norm of mean m, variance v, weight w and bias b has scale = w / sqrt(v + eps) and shift = b - m * scale;
    with w and b of each sample's class they are `[N, C]`. Differentiable any number of times with respect to `x`,
    `scale` and `shift`, so that the gradient reaches the statistics through them.

    Args:
        x: `[N, C, H, W]`.
        scale: `[C]`, or `[N, C]` for one of each sample's own; may be of a wider dtype than `x`: the arithmetic
            is in fp32, or fp64 where `x` is.
        shift: Likewise.
        act: "linear" or "relu".
        up: 1, or 2 for an output twice as high and wide, each pixel repeated 2 x 2.
        impl: "reference", or None for the one in force (see `implementation`).

    Returns:
        `[N, C, H * up, W * up]`, of the dtype and memory format of `x`.

    Source: Brock et al., "Large Scale GAN Training for High Fidelity Natural Image Synthesis", ICLR 2019, figure 15;
    de Vries et al., "Modulating early visual processing by language", NeurIPS 2017, for scale and shift by class.
    """
    check_image(x)
    _check_factor(x, scale, "scale")
    _check_factor(x, shift, "shift")
    if act not in ACTS:
        raise ValueError(f"act={act!r}: expected one of {', '.join(map(repr, ACTS))}")
    if up not in (1, 2):
        raise ValueError(f"up must be 1 or 2, got {up!r}")
    run = dispatch(x, impl, reference=reference.scale_shift_act)
    scale, shift = (t if t.ndim == 2 else t[None] for t in (scale, shift))
    return run(x, scale, shift, act, int(up))


def _check_factor(x: Tensor, t: Tensor, name: str) -> None:
    N, C = x.shape[:2]
    if tuple(t.shape) not in {(C,), (N, C)}:
        raise ValueError(
            f"{name} must have one entry per channel of x, or per sample and channel: "
            f"expected shape {(C,)} or {(N, C)}, got {tuple(t.shape)}"
        )
    check_kind(x, t, name)
