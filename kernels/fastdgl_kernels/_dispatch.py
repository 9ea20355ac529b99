"""Which implementation of an operator runs. Decided here and nowhere else."""

import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import MappingProxyType

import torch
from torch import Tensor

from ._fallback import failure
from ._tuning import architecture

NAMES = ("auto", "fastest", "reference", "triton", "cudnn")

# architectures on which a GPU has shown the kernels to be right; on others "auto" leaves them alone
CONFIRMED: frozenset[str] = frozenset()

# of GPUs that are not NVIDIA's, the architectures ("gfx942") that a certification has opened; others run PyTorch
OPENED: frozenset[str] = frozenset()

# the kernels launch by what Triton has had since
OLDEST_TRITON = (3, 6)

# what NVIDIA's operators call them
SPELLINGS = {"cuda": "auto", "ref": "reference"}

# of the tensors each takes, fp64 being for proofs; the reference takes all
_SINGLE = (torch.float16, torch.bfloat16, torch.float32)
DTYPES = {"triton": _SINGLE, "cudnn": (*_SINGLE, torch.float64)}

_chosen: ContextVar[str | None] = ContextVar("fastdgl_kernels implementation", default=None)
_explaining: ContextVar[bool] = ContextVar("fastdgl_kernels explaining", default=False)


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
    **implementations: Callable,
) -> Callable:
    """Pick the implementation of an operator for `x`.

    Asked in this order: the argument `impl`, the surrounding `implementation(...)`, the environment
    variable FASTDGL_IMPL, "auto". A name asked for and not to be had is an error, never a substitute.
    "auto" and "fastest" take the first that is able, without a word: all of them compute the same function. "auto"
    passes over what no GPU of the kind has confirmed, and what would be interpreted. Nothing is tried or timed.

    Backward never asks again: it runs on threads of its own, where the surrounding choice does not hold.

    Args:
        x: The operator's main input: what can run depends on its device and dtype.
        impl: The caller's wish, or None.
        remarks: What `explain` is to say besides of an implementation that can run, by its name.
        preference: Gives the name of the implementation that is the fastest for `x`, and where that is written; None
            where it is the first for all.
        implementations: The operator's own, by name, the fastest first, "reference" last, which carries its name.
    """
    name, source = _wanted(impl)
    operator = implementations["reference"].__name__
    if name not in ("auto", "fastest", *implementations):
        raise ValueError(f"{source}={name!r}: {operator} has no such implementation, it has {_listed(implementations)}")
    obstacle = {"auto": why_not_by_itself, "fastest": why_not}.get(name)
    taken, preferred, explaining = name, None, _explaining.get()
    if obstacle and failure(operator, x.device):
        taken, obstacle = "reference", None
    elif obstacle:
        able = [n for n in implementations if obstacle(n, x) is None]
        # where only one can run beside the reference, nobody need say which is faster
        if preference and (len(able) > 2 or explaining):
            preferred = preference()
        taken = preferred[0] if preferred and preferred[0] in able else able[0]
    if explaining:
        order = sorted(implementations, key=lambda n: n != preferred[0]) if preferred else implementations
        raise _Explanation(_explanation(x, operator, name, source, taken, order, preferred, remarks))
    if reason := why_not(taken, x):
        raise RuntimeError(f"{source}={name!r} cannot run {operator} on x of shape {tuple(x.shape)}: {reason}")
    return implementations[taken]


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
    return asked if x.is_cuda else "auto"


def kernels_in_force(device: torch.device) -> bool:
    """Whether operators not told otherwise run as kernels on the device, where there is one for their input."""
    name, _ = _wanted(None)
    obstacle = why_not_by_itself if name == "auto" else why_not
    return name != "reference" and obstacle("triton", torch.empty(0, device=device)) is None


def why_not(name: str, x: Tensor) -> str | None:
    """The reason the implementation cannot take `x`, or None if it can."""
    if name == "reference":
        return None
    if x.dtype not in DTYPES[name]:
        return f"its dtype is {x.dtype}, the kernels take {', '.join(map(str, DTYPES[name]))}"
    # "cudnn" is PyTorch's convolution with Triton for what surrounds it
    return why_not_triton(x.device)


def why_not_by_itself(name: str, x: Tensor) -> str | None:
    """The reason "auto" does not take the implementation for `x`, or None if it may."""
    reason = why_not(name, x)
    if reason is not None or name == "reference":
        return reason
    if not x.is_cuda:
        return f"it is on {x.device}, where Triton is interpreted and slow: to be had by name only"
    if architecture(x.device) not in CONFIRMED:
        return f"no GPU of its kind ({architecture(x.device)}) has confirmed it yet: to be had by name, or as 'fastest'"
    return None


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


def _explanation(
    x: Tensor,
    operator: str,
    name: str,
    source: str,
    taken: str,
    names: Iterable[str],
    preferred: tuple[str, str] | None,
    remarks: Mapping[str, Callable[[], str]],
) -> str:
    reasons = {n: why_not_by_itself(n, x) if name == "auto" else why_not(n, x) for n in names}
    takes_first = name in ("auto", "fastest")
    failed = failure(operator, x.device)
    if failed and takes_first:
        reasons |= {n: reasons[n] or failed for n in names if n != "reference"}
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


def _canonical(name: str, source: str) -> str:
    canonical = SPELLINGS.get(name, name)
    if canonical not in NAMES:
        raise ValueError(f"{source}={name!r}: expected one of {_listed(NAMES)}")
    return canonical


def _listed(names) -> str:
    return ", ".join(repr(name) for name in names)
