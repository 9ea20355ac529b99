"""The public door of filtered_lrelu, and what it keeps for its derivatives."""

from collections.abc import Callable, Sequence
from functools import partial
from math import sqrt

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._dispatch import dispatch
from .._operators import Function, door, is_wrapped
from ..activation import bias_act
from ..activation.op import check_arguments, completed
from ..resampling import upfirdn2d
from ..resampling.geometry import Resample, parse_padding, parse_scaling
from ..resampling.kept import keep_filter
from ..resampling.op import check_filter, check_image, check_output, filter_size
from . import reference
from .reference import Spec


@door
def filtered_lrelu(
    x: Tensor,
    fu: Tensor | None = None,
    fd: Tensor | None = None,
    b: Tensor | None = None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    gain: float = sqrt(2),
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
    impl: str | None = None,
) -> Tensor:
    """Leaky ReLU at a higher sampling rate, so that the new frequencies it makes do not alias: StyleGAN3's activation.

        y = downsample(clamp(gain * leaky_relu(upsample(x + b))))

    Differentiable any number of times with respect to `x` and `b`. Only these two are kept for it: the images at the
    higher rate are made again when a derivative is asked for.

    Args:
        x: `[N, C, H, W]`.
        fu: The filter that upsamples, `[h, w]` or `[taps]`, see `setup_filter`; None for none.
        fd: The filter that downsamples; likewise.
        b: `[C]`, of the dtype of `x`; None adds nothing.
        up: Factor, or `[x, y]`. The images keep their brightness.
        down: Factor, or `[x, y]`.
        padding: For the upsampled image: a number, `[x, y]`, or `[x before, x after, y before, y after]`.
        gain: Scale, before the clamp.
        slope: For negative inputs.
        clamp: Bound on the magnitude at the higher rate, >= 0; None for no bound.
        flip_filter: False to convolve with the filters, True to correlate.
        impl: "triton" (the kernels of `bias_act` and `upfirdn2d`, in turn), "reference", or None for the one in force.

    Returns:
        `[N, C, H', W']`, of the dtype and memory format of `x`.

    Source: Karras et al., "Alias-Free Generative Adversarial Networks", NeurIPS 2021, section 3 and appendix D.
    """
    check_image(x)
    check_filter(fu, x, "fu")
    check_filter(fd, x, "fd")
    slope, gain, clamp = completed("lrelu", slope, gain, clamp)
    check_arguments(x, b, 1)
    up, down, flip = parse_scaling(up, "up"), parse_scaling(down, "down"), bool(flip_filter)
    # the inserted zeros are to be made up for
    upsample = Resample(up, (1, 1), parse_padding(padding), flip, float(up[0] * up[1]))
    downsample = Resample((1, 1), down, (0, 0, 0, 0), flip)
    size = check_output(x.shape, filter_size(fu), upsample)
    check_output((*x.shape[:2], *size[::-1]), filter_size(fd), downsample)
    kind = f"up{up[0]}x{up[1]} down{down[0]}x{down[1]}"
    run = dispatch(
        x, impl, kind=kind, enlarged=up[0] * up[1], triton=_triton, reference=reference.filtered_lrelu
    )
    run = partial(run, spec=Spec(upsample, downsample, slope, gain, clamp))
    # forward mode, tracing and a transform of the filters take PyTorch's own graph: a Function cannot pass them on
    if forward_ad._current_level >= 0 or torch.jit.is_tracing() or is_wrapped(fu) or is_wrapped(fd):
        return run(x, b, fu, fd)
    return _Remade.apply(x, b, fu, fd, run)


def _triton(x: Tensor, b: Tensor | None, fu: Tensor | None, fd: Tensor | None, spec: Spec) -> Tensor:
    up, down, *numbers = spec
    x = upfirdn2d(bias_act(x, b, impl="triton"), fu, up.up, 1, up.padding, up.flip_filter, up.gain, impl="triton")
    x = bias_act(x, None, 1, "lrelu", *numbers, impl="triton")
    return upfirdn2d(x, fd, 1, down.down, 0, down.flip_filter, impl="triton")


class _Remade(Function):
    """run(x, b, fu, fd), which keeps none of its images but x: backward runs it again, and differentiates that."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, b: Tensor | None, fu: Tensor | None, fd: Tensor | None, run: Callable[..., Tensor]) -> Tensor:
        return run(x, b, fu, fd)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, b, fu, fd, ctx.run = inputs
        ctx.save_for_backward(x, b)
        ctx.filters = keep_filter(fu), keep_filter(fd)

    @staticmethod
    def backward(ctx, dy: Tensor):
        saved, filters = ctx.saved_tensors, [kept.get() for kept in ctx.filters]
        present = [t for t in saved if t is not None]

        def run(*tensors: Tensor) -> Tensor:
            return ctx.run(*tensors, *[None] * (2 - len(tensors)), *filters)

        if torch._C._are_functorch_transforms_active():
            # torch.func differentiates what it transforms by itself
            gradients = torch.func.vjp(run, *present)[1](dy)
        else:
            gradients = _gradients(run, present, [w for t, w in zip(saved, ctx.needs_input_grad) if t is not None], dy)
        gradients = iter(gradients)
        return *(None if t is None else next(gradients) for t in saved), None, None, None


def _gradients(run: Callable[..., Tensor], tensors: list[Tensor], wanted: list[bool], dy: Tensor) -> list[Tensor | None]:
    """Return the gradients of run(*tensors), None where not wanted; they can be differentiated where autograd records."""
    again = torch.is_grad_enabled()
    inputs = [t if again else t.detach() for t in tensors]
    with torch.enable_grad():
        # views of their own: b may depend on x, or the other way round, and that path is not this node's
        inputs = [t.view_as(t) if again else t.requires_grad_() for t in inputs]
        y = run(*inputs)
    found = iter(torch.autograd.grad(y, [t for t, w in zip(inputs, wanted) if w], dy, create_graph=again))
    return [next(found) if w else None for w in wanted]
