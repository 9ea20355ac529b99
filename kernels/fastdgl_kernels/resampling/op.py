"""The public doors of resampling: arguments are checked and completed here. And the derivative over the kernels."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._dispatch import dispatch
from .._layout import format_of
from .._operators import Function, check_tensor, door
from .._plans import Plans, hashable
from .._tuning import kept
from . import geometry, reference
from .geometry import Pair, Resample, parse_padding, parse_scaling
from .kept import keep_filter


def setup_filter(
    f: Tensor | Sequence | float | None,
    device: torch.device | str = torch.device("cpu"),
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> Tensor:
    """The FIR filter that `upfirdn2d` takes, from its taps.

    Args:
        f: `[taps]`, `[h, w]`, a number, or None for the filter that changes nothing.
        device: Where the filter shall live.
        normalize: Divide by the sum, so that a constant image keeps its value.
        flip_filter: Turn the filter round.
        gain: Scale of the images filtered with it.
        separable: Keep 1-D taps 1-D, to be applied along x and along y; by default from 8 taps on,
            where two passes are less work than one with the outer product.

    Returns:
        `[taps]` or `[h, w]`, float32, a new tensor.
    """
    # numbers stay numbers where the default device holds none (meta)
    where = f.device if isinstance(f, Tensor) else "cpu"
    f = torch.as_tensor(1.0 if f is None else f, dtype=torch.float32, device=where).detach()
    if f.ndim > 2 or f.numel() == 0:
        raise ValueError(f"f must be a number, [taps] or [h, w], and not empty, got shape {tuple(f.shape)}")
    if separable and f.ndim == 2:
        raise ValueError(f"a separable filter is given as its 1-D taps, got shape {tuple(f.shape)}")
    f = f.reshape(1) if f.ndim == 0 else f
    if separable is None:
        separable = f.ndim == 1 and f.numel() >= 8
    if f.ndim == 1 and not separable:
        f = torch.outer(f, f)
    if normalize:
        f = f / f.sum()
    if flip_filter:
        f = f.flip(list(range(f.ndim)))
    # 1-D taps are applied twice
    return (f * gain ** (f.ndim / 2)).to(device)


@door
def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str | None = None,
) -> Tensor:
    """Pad, upsample, filter and downsample a batch of images.

    1. Insert `up - 1` zeros after each sample, the last included.
    2. Pad with zeros by `padding`; negative padding crops.
    3. Convolve with `f`, only where it lies wholly inside.
    4. Keep every `down`-th sample, the first included; multiply by `gain`.

    The output has (size * up + padding before + padding after - taps) // down + 1 samples along each axis.
    Differentiable any number of times with respect to `x`.

    Args:
        x: `[N, C, H, W]`.
        f: `[h, w]`, or `[taps]` to be applied along x and along y, see `setup_filter`; of any floating
            point dtype: the arithmetic is in fp32, or fp64 where `x` is. None for no filter.
        up: Factor, or `[x, y]`.
        down: Factor, or `[x, y]`.
        padding: For the upsampled image: a number, `[x, y]`, or `[x before, x after, y before, y after]`.
        flip_filter: False to convolve, True to correlate.
        gain: Factor on the result, once also for 1-D taps.
        impl: "triton", "reference", or None for the one in force (see `implementation`).

    Returns:
        `[N, C, H', W']`, of the dtype and memory format of `x`.

    Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020.
    """
    tensors, numbers = (x, f), (hashable(up), hashable(down), hashable(padding), flip_filter, gain, needs_grad(f))
    key, plan = _plans.find(impl, tensors, numbers)
    if plan is None:
        plan = _plans.keep(key, _plan(x, f, up, down, padding, flip_filter, gain, impl), impl, x.device, numbers)
    run, resample = plan
    return run(x, f, resample)


_plans = Plans()


def _plan(
    x: Tensor, f: Tensor | None, up: int | Sequence[int], down: int | Sequence[int], padding: int | Sequence[int],
    flip_filter: bool, gain: float, impl: str | None,
) -> tuple[Callable[..., Tensor], Resample]:  # fmt: skip
    """Return what computes `upfirdn2d`, and its arguments as it takes them, which are checked here."""
    check_image(x)
    check_filter(f, x)
    resample = Resample(
        parse_scaling(up, "up"), parse_scaling(down, "down"), parse_padding(padding), bool(flip_filter), float(gain)
    )
    check_output(x.shape, filter_size(f), resample)
    (ux, uy), (dx, dy) = resample.up, resample.down
    kind = f"up{ux}x{uy} down{dx}x{dy}"
    return dispatch(x, impl, kind=kind, enlarged=ux * uy, triton=_triton, reference=reference.upfirdn2d), resample


def _triton(x: Tensor, f: Tensor | None, resample: Resample) -> Tensor:
    if torch.is_grad_enabled():
        return _Upfirdn2d.apply(x, f, resample)
    from . import kernel

    return kernel.upfirdn2d(x, f, resample)


class _Upfirdn2d(Function):
    """A linear map, whose derivative is its adjoint, which is a resampling again."""

    @staticmethod
    def forward(ctx, x, f, resample):
        from . import kernel

        ctx.filter, ctx.resample = keep_filter(f), resample
        ctx.shape, ctx.stride = x.shape, x.stride()
        return kernel.upfirdn2d(x, f, resample)

    @staticmethod
    def backward(ctx, dy):
        f = ctx.filter.get()
        adjoint = ctx.resample.adjoint((ctx.shape[3], ctx.shape[2]), filter_size(f))
        # it may come without strides, as from a sum
        dy = dy.contiguous(memory_format=_format(ctx.shape, ctx.stride))
        if torch.is_grad_enabled():
            return _Upfirdn2d.apply(dy, f, adjoint), None, None
        from . import kernel

        return kernel.upfirdn2d(dy, f, adjoint), None, None


@kept
def _format(shape: torch.Size, stride: tuple[int, ...]) -> torch.memory_format:
    """Return the memory format of the gradient of images of a shape and strides: `memory_format` of the images."""
    layout = format_of(shape, stride)
    if layout is None:
        layout = torch.channels_last if stride[1] == 1 else torch.contiguous_format
    return layout


def filter2d(
    x: Tensor,
    f: Tensor | None,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str | None = None,
) -> Tensor:
    """Filter images and keep their size; `padding` comes on top. Arguments as for `upfirdn2d`."""
    check_filter(f, x)
    padding = geometry.same(filter_size(f), parse_padding(padding))
    return upfirdn2d(x, f, padding=padding, flip_filter=flip_filter, gain=gain, impl=impl)


def upsample2d(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str | None = None,
) -> Tensor:
    """Images `up` times as large, as bright as before; `padding` comes on top. Arguments as for `upfirdn2d`."""
    check_filter(f, x)
    up = parse_scaling(up, "up")
    padding = geometry.around_up(filter_size(f), up, parse_padding(padding))
    # the inserted zeros are to be made up for
    return upfirdn2d(x, f, up=up, padding=padding, flip_filter=flip_filter, gain=gain * up[0] * up[1], impl=impl)


def downsample2d(
    x: Tensor,
    f: Tensor | None,
    down: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str | None = None,
) -> Tensor:
    """Images 1 / `down` of their size; `padding` comes on top. Arguments as for `upfirdn2d`."""
    check_filter(f, x)
    down = parse_scaling(down, "down")
    padding = geometry.around_down(filter_size(f), down, parse_padding(padding))
    return upfirdn2d(x, f, down=down, padding=padding, flip_filter=flip_filter, gain=gain, impl=impl)


def filter_size(f: Tensor | None) -> Pair:
    """Taps along x and along y."""
    return (1, 1) if f is None else (f.shape[-1], f.shape[0])


def check_image(x: Tensor) -> None:
    """Refuse what is not a batch of images."""
    check_tensor(x, "x")
    if x.ndim != 4:
        raise ValueError(f"x must be [N, C, H, W], got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x must be of a floating point dtype, got {x.dtype}")
    if 0 in x.shape[1:]:
        raise ValueError(f"x must have channels, height and width, got shape {tuple(x.shape)}")


def check_filter(f: Tensor | None, x: Tensor, name: str = "f") -> None:
    """Refuse what is not a filter for `x`."""
    if f is None:
        return
    if not isinstance(f, Tensor) or not f.is_floating_point():
        raise TypeError(f"{name} must be a floating point tensor, as setup_filter makes it, got {_kind(f)}")
    if f.ndim not in (1, 2) or f.numel() == 0:
        raise ValueError(f"{name} must be [taps] or [h, w] and not empty, got shape {tuple(f.shape)}")
    if f.requires_grad:
        raise ValueError(f"{name} must not require a gradient: there is none with respect to a filter")
    if f.device != x.device:
        raise ValueError(f"{name} must be on the device of x: expected {x.device}, got {f.device}")


def needs_grad(f) -> bool:
    """Return whether a filter takes gradients, for which `check_filter` rejects it; plans go by it."""
    return f is not None and getattr(f, "requires_grad", False)


def check_kind(x: Tensor, t: Tensor, name: str) -> None:
    """Refuse what cannot be calculated with together with `x`; its dtype may be another floating point one."""
    check_tensor(t, name)
    if not t.is_floating_point():
        raise TypeError(f"{name} must be of a floating point dtype, got {t.dtype}")
    if t.device != x.device:
        raise ValueError(f"{name} must be on the device of x: expected {x.device}, got {t.device}")


def _kind(f) -> str:
    return f"one of {f.dtype}" if isinstance(f, Tensor) else type(f).__name__


def check_output(shape: Sequence[int], taps: Pair, resample: Resample) -> Pair:
    """Width and height of what comes of images `[N, C, H, W]` of `shape`; refused where nothing does."""
    width, height = resample.output_size((shape[3], shape[2]), taps)
    if width < 1 or height < 1:
        raise ValueError(
            f"the output would be empty: x of shape {tuple(shape)}, with up={resample.up} and "
            f"padding={resample.padding}, is smaller than the filter of {taps[0]} x {taps[1]} taps"
        )
    return width, height
