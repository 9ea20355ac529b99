"""Which implementation of an operator runs. Decided here and nowhere else."""

import importlib.util
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._fallback import failed_operators, failure
from ._layout import layer, layout
from ._operators import is_transformed
from ._place import COMMAND
from ._tuning import architecture

if TYPE_CHECKING:
    from .certify.verdict import Verdict

NAMES = ("auto", "fastest", "reference", "triton", "cudnn")
# of a tensor: "auto" takes kernels for no larger one, since none was certified
MOST_ELEMENTS = 2**31 - 1

# of GPUs that are not NVIDIA's, the architectures ("gfx942") that a certification has opened; others run PyTorch
OPENED: frozenset[str] = frozenset()

# the kernels launch by what Triton has had since
OLDEST_TRITON = (3, 6)

# what NVIDIA's operators call them
SPELLINGS = {"cuda": "auto", "ref": "reference"}

# as `os.environ` keeps it
_ENCODED = os.environ.encodekey("FASTDGL_IMPL") if hasattr(os.environ, "encodekey") else b"FASTDGL_IMPL"

# of the tensors each takes, fp64 being for proofs; the reference takes all
_SINGLE = (torch.float16, torch.bfloat16, torch.float32)
DTYPES = {"triton": _SINGLE, "cudnn": (*_SINGLE, torch.float64)}

_chosen: ContextVar[str | None] = ContextVar("fastdgl_kernels implementation", default=None)
_explaining: ContextVar[bool] = ContextVar("fastdgl_kernels explaining", default=False)
_asking: ContextVar[bool] = ContextVar("fastdgl_kernels asking for the layer", default=False)

# by device: its verdict, or None and why there is none
_verdicts: dict[torch.device, "tuple[Verdict | None, str]"] = {}
# whether this process has said that it runs the reference for want of a verdict
_said: set[str] = set()


@contextmanager
def implementation(name: str) -> Iterator[None]:
    """Run the operators called inside the `with` by one implementation.

        with implementation("reference"):
            y = bias_act(x, b)

    It holds for this thread or task only, and for calls that do not name an `impl` of their own.

    Args:
        name: "reference", "triton", "cudnn"; "auto" for the fastest that is known to be right where it runs;
            "fastest" for the fastest that can run at all.
    """
    token = _chosen.set(_canonical(name, "implementation"))
    try:
        yield
    finally:
        _chosen.reset(token)


def dispatch(
    x: Tensor,
    impl: str | None,
    remarks: Mapping[str, Callable[[], str]] = MappingProxyType({}),
    preference: Callable[[], tuple[str, str]] | None = None,
    kind: str = "",
    channels: int | None = None,
    enlarged: int = 1,
    **implementations: Callable,
) -> Callable:
    """Pick the implementation of an operator for `x`.

    Asked in this order: the argument `impl`, the surrounding `implementation(...)`, the environment variable
    FASTDGL_IMPL, "auto". A name that is asked for and not available is an error, never a substitute. "auto" takes what
    the verdict of the device says is right, and of that the fastest; the reference where there is no verdict.
    "fastest" asks for no verdict. Nothing is tried or timed here.

    Backward never asks again: it runs on threads of its own, where the surrounding choice does not hold.

    Args:
        x: The operator's main input: what can run depends on its device, dtype and layout.
        impl: The caller's wish, or None.
        remarks: What `explain` says besides of an implementation that can run, by its name.
        preference: Gives the name of the implementation that is the fastest for `x` where no time was measured, and
            where that is written; None where it is the first for all.
        kind: What distinguishes the call's times from those of other calls with the same shape of `x`.
        channels: Of the output; None for those of `x`.
        enlarged: How many times as large as `x` the largest tensor inside is, at most.
        implementations: The operator's own, by name, the fastest first, "reference" last, which carries its name.
    """
    name, source = _wanted(impl)
    operator = implementations["reference"].__name__
    if name not in ("auto", "fastest", *implementations):
        raise ValueError(f"{source}={name!r}: {operator} has no such implementation, it has {_listed(implementations)}")
    spelled, explaining = (x, kind, channels), _explaining.get()
    if _asking.get():
        default = preference()[0] if preference else next(iter(implementations))
        raise _Layer(_layer_name(*spelled), default)
    taken, preferred, reasons = name, None, None
    if name in ("auto", "fastest"):
        reasons = {n: _obstacle(name, n, x, operator, enlarged) for n in implementations}
        if failed := failure(operator, x.device):
            reasons |= {n: reasons[n] or failed for n in implementations if n != "reference"}
        able = [n for n, reason in reasons.items() if reason is None]
        preferred = _timed(operator, *spelled) if name == "auto" else None
        # where only one can run beside the reference, nobody need say which is faster
        if preferred is None and preference and (len(able) > 2 or explaining):
            preferred = preference()
        taken = preferred[0] if preferred and preferred[0] in able else able[0]
        if name == "auto" and taken == "reference" and not explaining:
            _say_once(x)
    if explaining:
        order = sorted(implementations, key=lambda n: n != preferred[0]) if preferred else implementations
        reasons = {n: reasons[n] if reasons else why_not(n, x) for n in order}
        raise _Explanation(_explanation(x, operator, name, source, taken, reasons, preferred, remarks))
    if reason := why_not(taken, x):
        raise RuntimeError(f"{source}={name!r} cannot run {operator} on x of shape {tuple(x.shape)}: {reason}")
    return implementations[taken]


def circumstances(device: torch.device, impl: str | None) -> tuple | None:
    """Return all that decides what an operator runs as, besides its tensors and arguments.

    None where the choice itself is asked for, see `explain`.

    Args:
        device: Of the operator's main input.
        impl: The caller's wish, or None.
    """
    if _explaining.get() or _asking.get():
        return None
    if impl is None:
        impl = _chosen.get()
        if impl is None:
            impl = _environment()
    return (
        impl,
        is_gpu(device),
        why_not_triton(device),
        _verdicts.get(device),
        failed_operators(),
        is_transformed(),
    )


def explain(operator: Callable, *arguments, **keywords) -> str:
    """Which implementation an operator would take for these arguments, and why. Nothing is computed.

        print(explain(bias_act, x, b, act="lrelu"))

    Args:
        operator: `bias_act`, `upfirdn2d`, `modulated_conv2d`, ...
        arguments, keywords: What the operator would be called with.
    """
    token = _explaining.set(True)
    try:
        operator(*arguments, **keywords)
    except _Explanation as explanation:
        return str(explanation)
    finally:
        _explaining.reset(token)
    return f"{getattr(operator, '__name__', operator)} has one implementation and no choice to explain"


def asked(impl: str | None) -> str:
    """Return what an operator asks for inside of itself: "auto" where "auto" chose it, else "fastest".

    The operator asks when it is called, and passes the answer on: backward runs on threads of its own.
    """
    return "auto" if _wanted(impl)[0] == "auto" else "fastest"


def within(x: Tensor, asked: str) -> str:
    """Return the `impl` of an operator inside of another one that runs as kernels on `x`.

    Where kernels are interpreted, it is the reference, which is not slow.

    Args:
        asked: By the outer operator, see `asked`.
    """
    return asked if is_gpu(x.device) else "auto"


def kernels_in_force(device: torch.device) -> bool:
    """Return whether operators run as kernels on the device, where there is one for their input and nobody names another."""
    name, _ = _wanted(None)
    if name == "auto":
        found = verdict_of(device)[0] if why_not_triton(device) is None and is_gpu(device) else None
        return found is not None and bool(found.right())
    return name != "reference" and why_not_triton(device) is None


def use(device: torch.device, verdict: "Verdict | None", reason: str = "") -> None:
    """Let "auto" follow a verdict on a device in this process, whatever the cache on disk holds.

    Args:
        verdict: None for none: the reference runs.
        reason: Why there is none, a clause for `explain`; nothing else is said then.
    """
    _verdicts[_indexed(device)] = (verdict, reason)
    if reason:
        _said.add("reference")


def forget() -> None:
    """Read verdicts from disk again when they are next asked for."""
    _verdicts.clear()
    _said.clear()


def verdict_of(device: torch.device) -> "tuple[Verdict | None, str]":
    """Return the verdict of a device, or None and one clause that says why there is none. Read once, in a few ms."""
    device = _indexed(device)
    found = _verdicts.get(device)
    if found is None:
        from .certify import verdict

        found = _verdicts[device] = verdict.read(verdict.machine(device))
    return found


def layer_of(operator: Callable, *arguments, **keywords) -> tuple[str, str | None]:
    """Return how a verdict spells a call, and the implementation to take where no time was measured. Nothing is computed."""
    token = _asking.set(True)
    try:
        operator(*arguments, **keywords)
    except _Layer as found:
        return found.args
    finally:
        _asking.reset(token)
    raise ValueError(f"{getattr(operator, '__name__', operator)} has no choice")


def why_not(name: str, x: Tensor) -> str | None:
    """The reason the implementation cannot take `x`, or None if it can."""
    if name == "reference":
        return None
    if x.dtype not in DTYPES[name]:
        return f"its dtype is {x.dtype}, the kernels take {', '.join(map(str, DTYPES[name]))}"
    if is_transformed():
        return "torch.func or forward mode is in force, which kernels cannot follow: expected 'auto' or 'reference' in it"
    # "cudnn" is PyTorch's convolution with Triton for what surrounds it
    return why_not_triton(x.device)


def why_not_by_itself(name: str, x: Tensor, operator: str, enlarged: int = 1) -> str | None:
    """Return the reason "auto" does not take the implementation for `x`, or None if it may."""
    reason = why_not(name, x)
    if reason is not None or name == "reference":
        return reason
    if not is_gpu(x.device):
        return f"it is on {x.device}, where Triton is interpreted and slow: available by name only"
    verdict, missing = verdict_of(x.device)
    if verdict is None:
        return f"{missing}; available by name, or as 'fastest'"
    if x.numel() * enlarged > MOST_ELEMENTS:
        return f"it takes tensors of more than {MOST_ELEMENTS} elements, which were not certified"
    return verdict.why_not(operator, str(x.dtype)[6:], layout(x), name)


def is_gpu(device: torch.device) -> bool:
    """Return whether kernels are compiled for the device, and not interpreted."""
    return device.type == "cuda"


def _obstacle(name: str, implementation: str, x: Tensor, operator: str, enlarged: int) -> str | None:
    if name == "fastest":
        return why_not(implementation, x)
    return why_not_by_itself(implementation, x, operator, enlarged)


def _layer_name(x: Tensor, kind: str, channels: int | None) -> str:
    return f"{kind} {layer(x, x.shape[1] if channels is None and x.ndim > 1 else channels or 1)}".strip()


def _timed(operator: str, x: Tensor, kind: str, channels: int | None) -> tuple[str, str] | None:
    """Return the implementation that the device's verdict found the fastest for a call, and where that is written."""
    if not is_gpu(x.device) or why_not_triton(x.device) is not None:
        return None
    verdict, _ = verdict_of(x.device)
    if verdict is None or not verdict.timings:
        return None
    found = verdict.timing(operator, _layer_name(x, kind, channels))
    if found is None:
        return None
    ratio = found.us["reference"] / found.us[found.fastest] if found.us[found.fastest] else 1.0
    return found.fastest, f"as timed on {verdict.day}: {ratio:.2f} times as fast as the reference"


def _say_once(x: Tensor) -> None:
    """Warn, once in a process, that the reference runs for want of a verdict."""
    if "reference" in _said or not is_gpu(x.device) or why_not_triton(x.device) is not None:
        return
    # a process that was told which verdict to use has said what there is to say
    verdict, reason = verdict_of(x.device)
    if verdict is None and reason:
        _said.add("reference")
        warnings.warn(
            f"{__package__} runs plain PyTorch on {x.device}: {reason}; run `{COMMAND}` once to prove and use its kernels",
            # past the operator and its door
            stacklevel=5,
        )


def _indexed(device: torch.device) -> torch.device:
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def why_not_triton(device: torch.device) -> str | None:
    """The reason no Triton kernel can run on the device, or None if one can."""
    version = _installed()
    if version is None:
        return "triton is not installed"
    if version < OLDEST_TRITON:
        return f"triton is {_spelled(version)}, the kernels need {_spelled(OLDEST_TRITON)} or newer"
    if device.type == "cuda":
        return _why_not_gpu(device)
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return f"it is on {device}, and Triton needs a GPU (or a CPU and TRITON_INTERPRET=1, for tests)"


def _why_not_gpu(device: torch.device) -> str | None:
    if torch.version.hip is not None:
        arch = architecture(device)
        return None if arch in OPENED else f"its GPU ({arch}) is not NVIDIA's, and nobody has certified the kernels on it"
    capability = _capability(device)
    if capability < (7, 0):
        return f"its GPU has compute capability {capability[0]}.{capability[1]}, Triton needs 7.0"
    return None


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@cache
def _installed() -> tuple[int, ...] | None:
    """Return the version of Triton, read off its source: importing an old one may fail. None where there is none."""
    try:
        spec = importlib.util.find_spec("triton")
    except ValueError:
        # a module without a spec stands in for it
        return None
    if spec is None or spec.origin is None:
        return None
    with open(spec.origin, encoding="utf-8", errors="replace") as file:
        version = re.search(r"""^__version__\s*=\s*["'](\d+)\.(\d+)""", file.read(), re.MULTILINE)
    # of a build that does not say, the kernels are what fails
    return tuple(map(int, version.groups())) if version else OLDEST_TRITON


def _spelled(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


class _Explanation(Exception):
    """Carries the text from where the choice is made to who asked for it."""


class _Layer(Exception):
    """Carries a layer's name and default from where the choice is made to who asked for it."""


def _explanation(
    x: Tensor,
    operator: str,
    name: str,
    source: str,
    taken: str,
    reasons: Mapping[str, str | None],
    preferred: tuple[str, str] | None,
    remarks: Mapping[str, Callable[[], str]],
) -> str:
    takes_first = name in ("auto", "fastest")
    failed = failure(operator, x.device)
    wish = f'"{name}" takes the first that is able' if takes_first else f"{source}={name!r} leaves no choice"
    wish += f": {preferred[0]!r} first, {preferred[1]}" if preferred else ""
    verb = "runs" if reasons[taken] is None else "cannot run"
    lines = [f"{operator} {verb} as {taken!r} on x of shape {tuple(x.shape)}, {x.dtype}, {x.device}; {wish}"]
    said = {n: "; " + remark() for n, remark in remarks.items() if why_not(n, x) is None}
    if failed and not takes_first and taken != "reference":
        said[taken] = said.get(taken, "") + f"; PyTorch computes in its place, {failed}"
    lines += [f"  {n}: {'able' if reason is None else reason}{said.get(n, '')}" for n, reason in reasons.items()]
    return "\n".join(lines)


def _wanted(impl: str | None) -> tuple[str, str]:
    """The name asked for, and where it was asked."""
    if impl is not None:
        return _canonical(impl, "impl"), "impl"
    if (name := _chosen.get()) is not None:
        return name, "implementation"
    return _canonical(os.environ.get("FASTDGL_IMPL") or "auto", "FASTDGL_IMPL"), "FASTDGL_IMPL"


def _environment() -> str | bytes | None:
    """Return what FASTDGL_IMPL is now. `os.environ.get` takes six times as long, which counts once a call."""
    try:
        return os.environ._data.get(_ENCODED)
    except AttributeError:
        return os.environ.get("FASTDGL_IMPL")


def _canonical(name: str, source: str) -> str:
    canonical = SPELLINGS.get(name, name)
    if canonical not in NAMES:
        raise ValueError(f"{source}={name!r}: expected one of {_listed(NAMES)}")
    return canonical


def _listed(names) -> str:
    return ", ".join(repr(name) for name in names)
