"""The public door of modulated_conv2d: arguments are checked and completed here."""

from collections.abc import Sequence

from torch import Tensor

from .._dispatch import dispatch
from ..convolution.op import check_output, parse_factor, whole_padding
from ..resampling.geometry import Pair, parse_padding
from ..resampling.op import check_filter, check_image, filter_size
from . import reference


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    fused_modconv: bool = True,
    impl: str | None = None,
) -> Tensor:
    """Convolve each image with weights that its style has scaled: the layer of the StyleGAN2 generator.

        w'[n, o, i] = weight[o, i] * styles[n, i]
        y[n, o]     = sum_i w'[n, o, i] (*) x[n, i] / sqrt(sum w'[n, o]^2 + 1e-8) + noise

    Differentiable any number of times with respect to `x`, `weight`, `styles` and `noise`.

    Args:
        x: `[N, I, H, W]`.
        weight: `[O, I, h, w]`; may be of a wider dtype than `x`, as the fp32 master of a 16-bit layer is.
        styles: `[N, I]`; likewise.
        noise: `[N, 1, H', W']`, `[1, 1, H', W']` or `[H', W']`, added to the output; None for none.
        up: Factor, see `conv2d_resample`.
        down: Factor.
        padding: For the upsampled image: a number, `[x, y]`, or `[x before, x after, y before, y after]`.
        resample_filter: Low-pass filter for `up` and `down`, see `setup_filter`; None for no filter.
        demodulate: Divide by the norm of the scaled weights. ToRGB layers do not.
        flip_weight: True to correlate with `weight`, as PyTorch's convolution does, False to convolve.
        fused_modconv: Changes nothing: there is one way to compute it. Taken because callers pass it.
        impl: "reference", or None for the one in force (see `implementation`).

    Returns:
        `[N, O, H', W']`, of the dtype of `x`.

    Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020, equations 1 and 3.
    """
    check_image(x)
    check_filter(resample_filter, x, "resample_filter")
    _check_weight(x, weight)
    _check_styles(x, styles)
    up, down = parse_factor(up, "up"), parse_factor(down, "down")
    padding = parse_padding(padding)
    size = check_output(x, weight, resample_filter, up, down, padding)
    _check_noise(x, noise, size)
    run = dispatch(x, impl, reference=reference.modulated_conv2d)
    padding = whole_padding(filter_size(resample_filter), up, down, padding)
    return run(x, weight, styles, noise, up, down, padding, resample_filter, bool(demodulate), bool(flip_weight))


def _check_weight(x: Tensor, weight: Tensor) -> None:
    if weight.ndim != 4 or weight.numel() == 0:
        raise ValueError(f"weight must be [O, I, h, w] and not empty, got shape {tuple(weight.shape)}")
    if weight.shape[1] != x.shape[1]:
        raise ValueError(
            f"weight must take the {x.shape[1]} channels of x: "
            f"expected [O, {x.shape[1]}, h, w], got shape {tuple(weight.shape)}"
        )
    _check_kind(x, weight, "weight")


def _check_styles(x: Tensor, styles: Tensor) -> None:
    if styles.shape != x.shape[:2]:
        raise ValueError(
            f"styles must have one entry per sample and channel of x: "
            f"expected shape {tuple(x.shape[:2])}, got {tuple(styles.shape)}"
        )
    _check_kind(x, styles, "styles")


def _check_noise(x: Tensor, noise: Tensor | None, size: Pair) -> None:
    if noise is None:
        return
    N, (W, H) = x.shape[0], size
    if tuple(noise.shape) not in {(N, 1, H, W), (1, 1, H, W), (H, W)}:
        raise ValueError(
            f"noise must have shape {(N, 1, H, W)}, {(1, 1, H, W)} or {(H, W)}, got {tuple(noise.shape)}"
        )
    _check_kind(x, noise, "noise")


def _check_kind(x: Tensor, t: Tensor, name: str) -> None:
    if not t.is_floating_point():
        raise TypeError(f"{name} must be of a floating point dtype, got {t.dtype}")
    if t.device != x.device:
        raise ValueError(f"{name} must be on the device of x: expected {x.device}, got {t.device}")
