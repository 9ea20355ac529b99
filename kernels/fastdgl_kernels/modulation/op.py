"""The public doors of the modulated layer: arguments are checked and completed here, and laid out for the algebra."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from .._dispatch import asked, dispatch, within
from .._layout import dense
from .._operators import door, without_autocast
from .._plans import Plans, hashable
from ..activation import activation_funcs, bias_act
from ..activation.op import completed
from ..convolution import backends
from ..convolution.algebra import Arrangement, arrange, remark
from ..convolution.op import check_output, parse_factor, whole_padding
from ..convolution.spec import Spec
from ..resampling.geometry import Pair, parse_padding
from ..resampling.op import check_filter, check_image, check_kind, filter_size, needs_grad
from . import reference, to_rgb
from .algebra import Tail, layer


@door
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
        impl: "cudnn" (PyTorch's convolution between two Triton kernels), "triton" (the same, and the convolution too
            where there is a kernel for it, see `convolution.kernel.why_not`, and for 1x1 to at most 4 channels without
            demodulation and noise, as in ToRGB layers), "reference", or None for the one in force (see
            `implementation`), by itself the faster one for the shape (see `convolution.backends`).

    Returns:
        `[N, O, H', W']`, of the dtype of `x`; channels last in 16 bits where "cudnn" runs, and
        channels first from the kernel of ToRGB.

    Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020, equations 1 and 3.
    """
    tensors = x, weight, styles, noise, resample_filter
    numbers = hashable(up), hashable(down), hashable(padding), demodulate, flip_weight, needs_grad(resample_filter)
    key, plan = _plans.find(impl, tensors, numbers)
    if plan is None:
        spec = _checked(x, weight, styles, noise, up, down, padding, resample_filter, flip_weight)
        layer = x, weight, noise, resample_filter, spec, bool(demodulate)
        plan = _chosen(_modulated_conv2d, _modulated_conv2d_by_own_kernel, reference.modulated_conv2d, *layer, impl)
        _plans.keep(key, plan, impl, x.device, numbers)
    run, how = plan
    return run(x, weight, styles, noise, resample_filter, *how)


@door
def modulated_conv2d_bias_act(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None = None,
    bias: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    act: str = "lrelu",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    impl: str | None = None,
) -> Tensor:
    """`modulated_conv2d` and `bias_act` after it: a whole layer of the StyleGAN2 generator.

        y = clamp(gain * act(modulated_conv2d(x, ...) + bias))

    One pass over memory follows the convolution, where the two operators make several.
    Differentiable any number of times with respect to `x`, `weight`, `styles`, `noise` and `bias`.

    Args:
        bias: `[O]`; may be of a wider dtype than `x`; None adds nothing.
        act, alpha, gain, clamp: See `bias_act`. "linear", "relu" and "lrelu" are fused.
        Others as for `modulated_conv2d`.
    """
    tensors = x, weight, styles, noise, bias, resample_filter
    numbers = hashable(up), hashable(down), hashable(padding), demodulate, flip_weight, act, alpha, gain, clamp, needs_grad(resample_filter)
    key, plan = _plans_with_act.find(impl, tensors, numbers)
    if plan is None:
        spec = _checked(x, weight, styles, noise, up, down, padding, resample_filter, flip_weight)
        _check_bias(x, weight, bias)
        after = act, *completed(act, alpha, gain, clamp)
        layer = x, weight, noise, resample_filter, spec, bool(demodulate)
        run, how = _chosen(
            _modulated_conv2d_bias_act, _layer_by_own_kernel, reference.modulated_conv2d_bias_act, *layer, impl
        )
        if run is _modulated_conv2d_bias_act:
            after = _tail(*after), after
        plan = _plans_with_act.keep(key, (run, (*how, *after)), impl, x.device, numbers)
    run, how = plan
    return run(x, weight, styles, noise, bias, resample_filter, *how)


_plans, _plans_with_act = Plans(), Plans()


def _modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None,
    f: Tensor | None,
    arrangement: Arrangement | None,
    demodulate: bool,
    bias: Tensor | None = None,
    tail: Tail = Tail(),
) -> Tensor:
    """Compute the layer by kernels: those of ToRGB where there is no arrangement of a convolution."""
    with without_autocast(x.device):
        d, wide = None, torch.promote_types(x.dtype, torch.float32)
        if demodulate:
            weight, styles, d = reference.demodulated(weight, styles, x.dtype)
        if arrangement is None:
            weight = weight.to(wide).flatten(1) * styles.to(wide)[:, None]              # [N, O, I]
            return to_rgb.ToRGB.apply(x, weight, bias, tail)
        if noise is not None:
            noise = noise.reshape(1, -1) if noise.ndim == 2 else noise.flatten(1)
        x, weight = arrangement.lay_out(x, weight, f)
        # in the layout that convolutions read in every direction: a cast and a copy in one
        memory_format = torch.channels_last if x.element_size() == 2 else torch.preserve_format
        weight, styles = weight.to(x.dtype, memory_format=memory_format), styles.to(wide)
        return layer(dense(x), weight, styles, d, noise, bias, f, arrangement.plan, tail)


def _modulated_conv2d_bias_act(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None,
    bias: Tensor | None,
    f: Tensor | None,
    arrangement: Arrangement | None,
    demodulate: bool,
    asked: str,
    tail: Tail | None,
    after: tuple[str, float, float, float | None],
) -> Tensor:
    if tail is not None:
        return _modulated_conv2d(x, weight, styles, noise, f, arrangement, demodulate, bias, tail)
    y = _modulated_conv2d(x, weight, styles, noise, f, arrangement, demodulate)
    return bias_act(y, None if bias is None else bias.to(y.dtype), 1, *after, impl=within(y, asked))


def _tail(act: str, alpha: float, gain: float, clamp: float | None) -> Tail | None:
    """Return what follows the convolution in its pass; None for an activation that needs one of its own."""
    alpha = {"linear": 1.0, "relu": 0.0}.get(act, alpha)
    # the backward reads the slope off the sign of the output
    return Tail(alpha, gain, clamp) if activation_funcs[act].homogeneous and alpha >= 0 and gain > 0 else None


def _modulated_conv2d_by_own_kernel(*arguments) -> Tensor:
    """Stand for `_modulated_conv2d` with an arrangement by kernels of our own."""
    return _modulated_conv2d(*arguments)


def _layer_by_own_kernel(*arguments) -> Tensor:
    """Stand for `_modulated_conv2d_bias_act` with an arrangement by kernels of our own."""
    return _modulated_conv2d_bias_act(*arguments)


def _chosen(
    run: Callable[..., Tensor],
    by_own_kernel: Callable[..., Tensor],
    definition: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    noise: Tensor | None,
    f: Tensor | None,
    spec: Spec,
    demodulate: bool,
    impl: str | None,
) -> tuple[Callable[..., Tensor], tuple]:
    """Return what computes the layer, `run` or the `definition`, and its arguments after the tensors."""
    kind = _kind(weight, noise, spec, demodulate)
    of_others = partial(remark, x, weight, f, spec)
    chosen = dispatch(
        x,
        impl,
        {"triton": (lambda: "by the kernels of ToRGB") if kind == "to_rgb" else of_others},
        partial(backends.preference, kind, x, len(weight)),
        kind,
        len(weight),
        backends.enlarged(x, weight, spec.up),
        cudnn=run,
        triton=by_own_kernel,
        reference=definition,
    )
    if chosen is definition:
        return definition, (spec, demodulate)
    own, wish = chosen is by_own_kernel, asked(impl)
    arrangement = None if own and kind == "to_rgb" else arrange(x, weight, f, spec, wish, own)
    return run, (arrangement, demodulate, *([wish] if run is _modulated_conv2d_bias_act else []))


def _kind(weight: Tensor, noise: Tensor | None, spec: Spec, demodulate: bool) -> str:
    """What the layer is to `preference`; "to_rgb" has kernels of its own."""
    pointwise = weight.shape[2:] == (1, 1) and spec.up == spec.down == 1 and not any(spec.padding)
    if pointwise and not demodulate and noise is None and len(weight) <= to_rgb.MOST:
        return "to_rgb"
    return f"modulated {backends.kind(weight, spec)}"


def _checked(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None,
    up: int,
    down: int,
    padding: int | Sequence[int],
    resample_filter: Tensor | None,
    flip_weight: bool,
) -> Spec:
    """The convolution, of arguments that fit together."""
    check_image(x)
    check_filter(resample_filter, x, "resample_filter")
    _check_weight(x, weight)
    _check_styles(x, styles)
    up, down = parse_factor(up, "up"), parse_factor(down, "down")
    padding = parse_padding(padding)
    size = check_output(x, weight, resample_filter, up, down, padding)
    _check_noise(x, noise, size)
    padding = whole_padding(filter_size(resample_filter), up, down, padding)
    return Spec(up, down, padding, flip_weight=bool(flip_weight))


def _check_bias(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if bias is None:
        return
    if bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias must have one entry per output channel: expected shape {tuple(weight.shape[:1])}, "
            f"got {tuple(bias.shape)}"
        )
    check_kind(x, bias, "bias")


def _check_weight(x: Tensor, weight: Tensor) -> None:
    if weight.ndim != 4 or weight.numel() == 0:
        raise ValueError(f"weight must be [O, I, h, w] and not empty, got shape {tuple(weight.shape)}")
    if weight.shape[1] != x.shape[1]:
        raise ValueError(
            f"weight must take the {x.shape[1]} channels of x: "
            f"expected [O, {x.shape[1]}, h, w], got shape {tuple(weight.shape)}"
        )
    check_kind(x, weight, "weight")


def _check_styles(x: Tensor, styles: Tensor) -> None:
    if styles.shape != x.shape[:2]:
        raise ValueError(
            f"styles must have one entry per sample and channel of x: "
            f"expected shape {tuple(x.shape[:2])}, got {tuple(styles.shape)}"
        )
    check_kind(x, styles, "styles")


def _check_noise(x: Tensor, noise: Tensor | None, size: Pair) -> None:
    if noise is None:
        return
    N, (W, H) = x.shape[0], size
    if list(noise.shape) not in ([N, 1, H, W], [1, 1, H, W], [H, W]):
        raise ValueError(
            f"noise must have shape {(N, 1, H, W)}, {(1, 1, H, W)} or {(H, W)}, got {tuple(noise.shape)}"
        )
    check_kind(x, noise, "noise")
