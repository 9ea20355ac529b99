"""The public door of conv2d_resample: arguments are checked and completed here."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from .._dispatch import asked, dispatch
from .._operators import door
from ..resampling import geometry
from ..resampling.geometry import Padding, Pair, parse_padding, parse_scaling
from ..resampling.op import check_filter, check_image, filter_size
from . import backends, reference
from .algebra import arranged, owned, remark
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
    check_image(x)
    check_filter(f, x)
    _check_weight(x, w, groups)
    up, down = parse_factor(up, "up"), parse_factor(down, "down")
    padding = parse_padding(padding)
    check_output(x, w, f, up, down, padding)
    padding = whole_padding(filter_size(f), up, down, padding)
    spec = Spec(up, down, padding, groups, bool(flip_weight), bool(flip_filter))
    run_as = partial(_conv2d_resample, asked=asked(impl))
    kind = backends.kind(w, spec)
    run = dispatch(
        x,
        impl,
        {"triton": partial(remark, x, w, f, spec)},
        partial(backends.preference, kind, x, len(w)),
        kind,
        len(w),
        backends.enlarged(x, w, up),
        cudnn=run_as,
        triton=partial(run_as, own=True),
        reference=reference.conv2d_resample,
    )
    return run(x, w, f, spec)


def _conv2d_resample(
    x: Tensor, w: Tensor, f: Tensor | None, spec: Spec, *, asked: str, own: bool = False
) -> Tensor:
    x, w, plan = arranged(x, w, spec, asked)
    if own:
        plan, w = owned(plan, x, w, f)
    return plan.run(x, w, f)


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
