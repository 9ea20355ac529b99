"""Whether an implementation is right on a call: compared with float64 on the same device, twice, in guarded memory."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import sqrt

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .calls import ALIGNMENT, DTYPES, Call

# an operator: called with the call's arguments and `impl`
Operator = Callable[..., Tensor]

# activations whose first or second derivative jumps where their input is 0
BENT = ("relu", "lrelu", "elu", "selu")
# bytes that are held at once to look at their guards later
HELD = 2**30
# NaN in every floating point dtype
POISON = 0xFF


def faults(operator: Operator, call: Call, implementation: str, device: torch.device) -> list[str]:
    """Return what speaks against an implementation on a call, in words; empty if nothing does.

    Value, gradients taken once, gradients to be differentiated, and second gradients are compared with the reference in
    float64. They may err twice as much as the reference does in the call's own dtype, and a few roundings more. What is
    computed a second time must be the same to the bit, the inputs and the memory around every allocation untouched.
    """
    with deterministic():
        tensors = settled(operator, call, call.tensors(device))
        directions = Directions(device)
        exact = derivatives(operator, call, "reference", {name: t.double() for name, t in tensors.items()}, directions)
        own = derivatives(operator, call, "reference", tensors, directions)
        with Guards() as guards:
            inputs = {name: guards.copy(t) for name, t in tensors.items()}
            got = derivatives(operator, call, implementation, inputs, directions)
            again = derivatives(operator, call, implementation, inputs, directions)
        found = [f"{name} {words}" for name in exact if (words := misfit(name, got, exact, own, call))]
        found += [f"{name} differs when computed again" for name in got if not same(got[name], again.get(name))]
        found += [f"{name} was given and is written to" for name, t in tensors.items() if not same(inputs[name], t)]
        if not guards.intact:
            found.append("memory next to an allocation is written to")
    return found


def derivatives(
    operator: Operator, call: Call, implementation: str, tensors: Mapping[str, Tensor], directions: "Directions"
) -> dict[str, Tensor]:
    """Return y, its gradients as a training step takes them, as R1 takes them, and their own gradients."""
    leaves = {name: t.detach().requires_grad_(call.operands[name].grad) for name, t in tensors.items()}
    device = next(iter(tensors.values())).device
    y = operator(**leaves, **call.arguments(device), impl=implementation)
    results = {"y": y.detach()}
    names = [name for name, t in leaves.items() if t.requires_grad]
    if not names or not y.requires_grad:
        return results
    inputs, dy = [leaves[name] for name in names], directions.like(y, 0)
    once = torch.autograd.grad(y, inputs, dy, retain_graph=True, allow_unused=True)
    results |= {f"gradient of {name}": g for name, g in zip(names, once) if g is not None}
    dy = dy.requires_grad_()
    twice = torch.autograd.grad(y, inputs, dy, create_graph=True, allow_unused=True)
    kept = [(name, g) for name, g in zip(names, twice) if g is not None]
    results |= {f"differentiable gradient of {name}": g.detach() for name, g in kept}
    bent = [(g, directions.like(g, 1 + i)) for i, (_, g) in enumerate(kept) if g.requires_grad]
    if not bent:
        return results
    second = torch.autograd.grad([g for g, _ in bent], [*inputs, dy], [v for _, v in bent], allow_unused=True)
    results |= {f"second gradient of {name}": g for name, g in zip([*names, "dy"], second) if g is not None}
    return results


class Directions:
    """What is multiplied with outputs and gradients: normal numbers, the same for every dtype of one shape."""

    def __init__(self, device: torch.device):
        self._device = device
        self._known: dict[tuple, Tensor] = {}

    def like(self, t: Tensor, seed: int) -> Tensor:
        """Return numbers of the shape and dtype of `t`, which float32 and all narrower dtypes round alike."""
        key = (tuple(t.shape), seed)
        if key not in self._known:
            generator = torch.Generator().manual_seed(1000 + seed)
            # 7 bits: no dtype rounds them
            numbers = torch.randn(t.shape, generator=generator).bfloat16()
            self._known[key] = numbers.to(self._device)
        return self._known[key].to(t.dtype)


def misfit(name: str, got: Mapping[str, Tensor], exact: Mapping[str, Tensor], own: Mapping[str, Tensor], call: Call) -> str:
    """Return how one result differs from the exact one by more than rounding, in words; empty if it does not."""
    right = exact[name]
    dtype = DTYPES[call.dtype]
    finite = torch.finfo(dtype).max / 4
    # a derivative that is zero may be left out
    y = got.get(name, torch.zeros_like(right))
    if y.shape != right.shape:
        return f"has shape {tuple(y.shape)}, expected {tuple(right.shape)}"
    if right.abs().max() > finite:
        return ""
    plain = own.get(name, torch.zeros_like(right))
    # a sum of n numbers wanders by some sqrt(n) roundings, in the order of either
    n = max(max(t.numel() for t in exact.values()) / max(right.numel(), 1), 1.0)
    rounding = torch.finfo(dtype).eps + sqrt(n) * torch.finfo(torch.float32).eps
    for p, words, roundings in ((2, "on the whole", 2), (torch.inf, "at most", 16)):
        error, allowed = relative_error(y, right, p), 2 * relative_error(plain, right, p)
        allowed = (allowed if allowed == allowed else 0.0) + roundings * rounding + unsettled(call) * rounding
        # not `error > allowed`: NaN is wrong
        if not error <= allowed:
            return f"errs by {error:.2g} {words}, allowed {allowed:.2g}"
    return ""


def relative_error(y: Tensor, exact: Tensor, p: float) -> float:
    """Return ||y - exact|| / ||exact||; NaN or infinite where y is; the absolute error where `exact` is zero."""
    difference = torch.linalg.vector_norm((y.double() - exact.double()).flatten(), p).item()
    return difference / (torch.linalg.vector_norm(exact.double().flatten(), p).item() or 1.0)


def same(a: Tensor, b: Tensor | None) -> bool:
    """Return whether two tensors hold the same bits."""
    return b is not None and a.shape == b.shape and torch.equal(_bits(a), _bits(b))


def _bits(t: Tensor) -> Tensor:
    return t.detach().contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])


@contextmanager
def deterministic() -> Iterator[None]:
    """Inside, PyTorch's own convolutions repeat to the bit and round nothing to 10 bits; backward stays on this thread."""
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with (
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
            torch.autograd.set_multithreading_enabled(False),
        ):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32


class Guards(TorchFunctionMode):
    """Inside, tensors that Python code allocates hold NaN at first, and lie between guards that nobody may write to."""

    def __init__(self):
        super().__init__()
        self.intact = True
        self._held: list[tuple[Tensor, int]] = []
        self._bytes = 0

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        t = function(*arguments, **(keywords or {}))
        if function in _ZEROS:
            return self._guarded(t).zero_()
        return self._guarded(t) if function in _EMPTY else t

    def __exit__(self, *error):
        super().__exit__(*error)
        self._look()

    def copy(self, t: Tensor) -> Tensor:
        """Return a copy between guards, with the strides of `t` and its distance from a multiple of 512 bytes."""
        offset = t.storage_offset() * t.element_size() % ALIGNMENT // t.element_size()
        return self._allocated(t, offset).copy_(t)

    def _guarded(self, t: Tensor) -> Tensor:
        if t.is_meta or t.numel() == 0 or t.layout != torch.strided:
            return t
        return self._allocated(t, 0)

    def _allocated(self, like: Tensor, offset: int) -> Tensor:
        span = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, like.stride()))
        size = (offset + span) * like.element_size()
        flat = torch.full((ALIGNMENT + size + ALIGNMENT,), POISON, dtype=torch.uint8, device=like.device)
        first = ALIGNMENT // like.element_size() + offset
        t = torch.empty(0, dtype=like.dtype, device=like.device)
        t.set_(flat.untyped_storage(), first, like.shape, like.stride())
        self._held.append((flat, size))
        self._bytes += size
        if self._bytes > HELD:
            self._look()
        return t

    def _look(self) -> None:
        """Look at the guards so far, and let their memory go."""
        held, self._held, self._bytes = self._held, [], 0
        for flat, size in held:
            ends = torch.cat([flat[:ALIGNMENT], flat[ALIGNMENT + size :]])
            self.intact = self.intact and bool((ends == POISON).all())


_EMPTY = {torch.empty, torch.empty_like, torch.empty_strided, Tensor.new_empty, Tensor.new_empty_strided}
_ZEROS = {torch.zeros, torch.zeros_like, Tensor.new_zeros}


def unsettled(call: Call) -> float:
    """Return how many more roundings a call may err by since its derivatives jump where rounding decides: 0 for most."""
    act = call.keywords.get("act", {"filtered_lrelu": "lrelu", "modulated_conv2d_bias_act": "lrelu"}.get(call.operator))
    jumps = act in BENT or call.keywords.get("clamp") is not None
    bias = {"filtered_lrelu": "b", "modulated_conv2d_bias_act": "bias"}.get(call.operator)
    return 64.0 if bias and jumps and bias not in call.operands else 0.0


def settled(operator: Operator, call: Call, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with numbers moved away from where derivatives jump, so that no rounding decides on which side they are."""
    settle = {
        "bias_act": _settle_bias_act,
        "scale_shift_act": _settle_scale_shift_act,
        "modulated_conv2d": _settle_weight,
        "modulated_conv2d_bias_act": _settle_layer,
        "filtered_lrelu": _settle_filtered,
        "conv2d_resample": _settle_weight,
    }.get(call.operator)
    if settle is not None:
        settle(operator, call, tensors)
    return tensors


def _settle_bias_act(operator: Operator, call: Call, tensors: dict[str, Tensor]) -> None:
    x, b = tensors["x"], tensors.get("b")
    dim, clamp = call.keywords.get("dim", 1), call.keywords.get("clamp")
    along = 0.0 if b is None else b.double().reshape([-1 if i == dim % x.ndim else 1 for i in range(x.ndim)])
    u = x.double() + along
    x.copy_(torch.where(u.abs() < 0.1, u.sign() * 0.25 + u - along, x.double()))
    if clamp is None:
        return
    double = {name: t.double() for name, t in tensors.items()}
    y = operator(**double, **call.arguments(x.device), impl="reference").abs()
    x.copy_(torch.where((y - clamp).abs() < 0.05 * clamp + 1e-3, 0.3 - along, x.double()))


def _settle_scale_shift_act(operator: Operator, call: Call, tensors: dict[str, Tensor]) -> None:
    x, scale, shift = tensors["x"], tensors["scale"], tensors["shift"]
    scale.copy_(scale.double() + scale.double().sign() * 0.5)
    s, t = scale.double()[..., None, None], shift.double()[..., None, None]
    u = x.double() * s + t
    x.copy_(torch.where(u.abs() < 0.1, (u.sign() - t) / s, x.double()))


def _settle_weight(operator: Operator, call: Call, tensors: dict[str, Tensor]) -> None:
    """Scale the weights so that outputs are about as large as inputs."""
    for w in (tensors[name] for name in ("w", "weight") if name in tensors):
        w.copy_(w.double() / sqrt(w[0].numel()))


def _settle_layer(operator: Operator, call: Call, tensors: dict[str, Tensor]) -> None:
    """Give each channel a bias that leaves its values on one side of zero, and of the clamp."""
    _settle_weight(operator, call, tensors)
    bias = tensors.get("bias")
    if bias is None:
        return
    arguments = call.arguments(bias.device)
    act, clamp = arguments.get("act", "lrelu"), arguments.get("clamp")
    plain = {name: t.double() for name, t in tensors.items() if name != "bias"}
    linear = arguments | dict(act="linear", gain=1.0, alpha=None, clamp=None)
    largest = operator(**plain, **linear, impl="reference").abs().max().item()
    # of y at u = 1 and -1, as far as that is a line
    gain = abs(arguments.get("gain") or (1.0 if act in ("linear", "sigmoid", "tanh", "elu", "selu", "softplus") else sqrt(2)))
    below = {"linear": 1.0, "lrelu": arguments.get("alpha") or 0.2}.get(act, 0.0)
    sides = []
    for slope in (gain, gain * below):
        middle = 1.5 * largest
        if clamp is not None and slope and slope * (middle - largest) * 0.9 < clamp < slope * (middle + largest) * 1.1:
            middle = 1.2 * (clamp / slope + largest)
        sides.append(middle)
    signs = torch.arange(len(bias), device=bias.device) % 2 == 0
    bias.copy_(torch.where(signs, sides[0], -sides[1]))


def _settle_filtered(operator: Operator, call: Call, tensors: dict[str, Tensor]) -> None:
    b = tensors.get("b")
    if b is not None:
        signs = torch.arange(len(b), device=b.device) % 2 == 0
        b.copy_(torch.where(signs, 8.0, -8.0))
