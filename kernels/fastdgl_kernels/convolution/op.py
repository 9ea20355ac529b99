"""The public door of conv2d_resample: arguments are checked and completed here."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from .._dispatch import asked, dispatch
from .._operators import door
from .._plans import Plans, hashable
from ..resampling import geometry
from ..resampling.geometry import Padding, Pair, parse_padding, parse_scaling
from ..resampling.op import check_filter, check_image, filter_size, needs_grad
from . import backends, reference
from .algebra import Arrangement, arrange, remark
from .spec import Spec


@door
def conv2d_resample(
    x: Tensor,
    w: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
    impl: str | None = None,
) -> Tensor:
    """Convolve images, and filter them on the way up before it, or on the way down after it.

    With an odd kernel of size k and `padding=k // 2`, the images come out exactly `up` times,
    or 1 / `down` of, their size. Differentiable any number of times with respect to `x` and `w`.

    Args:
        x: `[N, I, H, W]`.
        w: `[O, I / groups, h, w]`, of the dtype of `x`.
        f: Low-pass filter for the resampling, see `setup_filter`; None for no filter.
        up: Factor; the brightness is kept.
        down: Factor.
        padding: For the upsampled image: a number, `[x, y]`, or `[x before, x after, y before, y after]`.
        groups: Number of groups of channels, as in `torch.nn.functional.conv2d`.
        flip_weight: True to correlate with `w`, as PyTorch's convolution does, False to convolve.
        flip_filter: False to convolve with `f`, True to correlate.
        impl: "cudnn" (PyTorch's convolution, differentiated twice without convolving by kernels as large as the
            image), "triton" (the same, by a convolution of our own where there is a kernel for it, see
            `convolution.kernel.why_not`), "reference", or None for the one in force (see `implementation`), by itself
            the faster one for the shape (see `convolution.backends`).

    Returns:
        `[N, O, H', W']`, of the dtype of `x`.

    Source: Karras et al., "Training Generative Adversarial Networks with Limited Data", NeurIPS 2020.
    """
    tensors = x, w, f
    numbers = hashable(up), hashable(down), hashable(padding), groups, flip_weight, flip_filter, needs_grad(f)
    key, plan = _plans.find(impl, tensors, numbers)
    if plan is None:
        plan = _plan(x, w, f, up, down, padding, groups, flip_weight, flip_filter, impl)
        _plans.keep(key, plan, impl, x.device, numbers)
    run, how = plan
    return run(x, w, f, how)


_plans = Plans()


def _plan(
    x: Tensor, w: Tensor, f: Tensor | None, up: int, down: int, padding: int | Sequence[int], groups: int,
    flip_weight: bool, flip_filter: bool, impl: str | None,
) -> tuple[Callable[..., Tensor], "Spec | Arrangement"]:  # fmt: skip
    """Return what computes `conv2d_resample`, and its arguments as it takes them, which are checked here."""
    check_image(x)
    check_filter(f, x)
    _check_weight(x, w, groups)
    up, down = parse_factor(up, "up"), parse_factor(down, "down")
    padding = parse_padding(padding)
    check_output(x, w, f, up, down, padding)
    padding = whole_padding(filter_size(f), up, down, padding)
    spec = Spec(up, down, padding, groups, bool(flip_weight), bool(flip_filter))
    kind = backends.kind(w, spec)
    run = dispatch(
        x,
        impl,
        {"triton": partial(remark, x, w, f, spec)},
        partial(backends.preference, kind, x, len(w)),
        kind,
        len(w),
        backends.enlarged(x, w, up),
        cudnn=_conv2d_resample,
        triton=_by_own_kernel,
        reference=reference.conv2d_resample,
    )
    if run is reference.conv2d_resample:
        return run, spec
    return _conv2d_resample, arrange(x, w, f, spec, asked(impl), own=run is _by_own_kernel)


def _conv2d_resample(x: Tensor, w: Tensor, f: Tensor | None, arrangement: Arrangement) -> Tensor:
    x, w = arrangement.lay_out(x, w, f)
    return arrangement.plan.run(x, w, f)


def _by_own_kernel(x: Tensor, w: Tensor, f: Tensor | None, arrangement: Arrangement) -> Tensor:
    """The same: by which kernel, the arrangement says."""
    return _conv2d_resample(x, w, f, arrangement)


def parse_factor(factor: int, name: str) -> int:
    """A factor that is the same along x and y."""
    x, y = parse_scaling(factor, name)
    if x != y:
        raise ValueError(f"{name} must be one factor for both axes, got {factor!r}")
    return x


def whole_padding(taps: Pair, up: int, down: int, padding: Padding) -> Padding:
    """`padding`, and what the filters need."""
    if up > 1:
        padding = geometry.around_up(taps, (up, up), padding)
    if down > 1:
        padding = geometry.around_down(taps, (down, down), padding)
    return padding


def output_size(size: Pair, kernel: Pair, taps: Pair, up: int, down: int, padding: Padding) -> Pair:
    """Width and height of what comes of images of `size`; not positive where nothing does."""
    filters = (up > 1) + (down > 1)
    # filters and kernel one after another reach as far as one of this size
    reach = (kernel[0] + filters * (taps[0] - 1), kernel[1] + filters * (taps[1] - 1))
    padding = whole_padding(taps, up, down, padding)
    return geometry.Resample((up, up), (down, down), padding).output_size(size, reach)


def check_output(x: Tensor, w: Tensor, f: Tensor | None, up: int, down: int, padding: Padding) -> Pair:
    """Refuse what leaves no output; else its width and height."""
    kernel = (w.shape[3], w.shape[2])
    width, height = output_size((x.shape[3], x.shape[2]), kernel, filter_size(f), up, down, padding)
    if width < 1 or height < 1:
        raise ValueError(
            f"the output would be empty: x of shape {tuple(x.shape)}, with up={up}, down={down} and "
            f"padding={padding}, is smaller than the kernel of {kernel[0]} x {kernel[1]}"
        )
    return width, height


def _check_weight(x: Tensor, w: Tensor, groups: int) -> None:
    if w.ndim != 4 or w.numel() == 0:
        raise ValueError(f"w must be [O, I / groups, h, w] and not empty, got shape {tuple(w.shape)}")
    if w.dtype != x.dtype:
        raise TypeError(f"w must have the dtype of x: expected {x.dtype}, got {w.dtype}")
    if w.device != x.device:
        raise ValueError(f"w must be on the device of x: expected {x.device}, got {w.device}")
    if groups < 1 or w.shape[0] % groups:
        raise ValueError(f"groups={groups} does not divide the {w.shape[0]} output channels of w")
    if x.shape[1] != w.shape[1] * groups:
        raise ValueError(
            f"x must have {w.shape[1] * groups} channels, groups={groups} times the {w.shape[1]} of w, "
            f"got shape {tuple(x.shape)}"
        )
