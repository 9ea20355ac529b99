"""Calls of public operators as plain data: recorded in one process, made again in another."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from .._operators import recorded

DTYPES = {str(dtype)[6:]: dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
# the parameters that are filters: their taps decide which kernel takes them
FILTERS = ("f", "fu", "fd", "resample_filter")
# the implementations of each operator besides the reference
IMPLEMENTATIONS = {
    "bias_act": ("triton",),
    "upfirdn2d": ("triton",),
    "scale_shift_act": ("triton",),
    "conv2d_resample": ("cudnn", "triton"),
    "filtered_lrelu": ("triton",),
    "modulated_conv2d": ("cudnn", "triton"),
    "modulated_conv2d_bias_act": ("cudnn", "triton"),
}
# an operator and those inside of it, inner ones first
CONTAINS = {
    "filtered_lrelu": ("bias_act", "upfirdn2d"),
    "conv2d_resample": ("upfirdn2d",),
    "modulated_conv2d": ("upfirdn2d", "conv2d_resample"),
    "modulated_conv2d_bias_act": ("bias_act", "upfirdn2d", "conv2d_resample", "modulated_conv2d"),
}
# samples of a call that is checked
SAMPLES = 2
# bytes: PyTorch's allocations begin at multiples of it
ALIGNMENT = 512


@dataclass(frozen=True)
class Operand:
    """A tensor argument without its numbers.

    Args:
        layout: "contiguous", "channels_last" or "strided", which stands for all others.
        grad: Whether it takes gradients.
    """

    shape: tuple[int, ...]
    dtype: str
    layout: str = "contiguous"
    grad: bool = True


@dataclass(frozen=True)
class Call:
    """An operator and its arguments.

    Args:
        operator: Its name.
        operands: By parameter.
        filters: Taps by parameter, a list or a list of lists.
        keywords: All other arguments that are given.
        misaligned: Images begin off a multiple of 16 bytes, and vectors are columns of a matrix.
    """

    operator: str
    operands: Mapping[str, Operand]
    filters: Mapping[str, list] = field(default_factory=dict)
    keywords: Mapping[str, object] = field(default_factory=dict)
    misaligned: bool = False

    @property
    def x(self) -> Operand:
        """The main input."""
        return self.operands["x"]

    @property
    def dtype(self) -> str:
        """Of the main input."""
        return self.x.dtype

    @property
    def layout(self) -> str:
        """Of the main input, as `_layout.layout` says it."""
        return "NHWC" if self.x.layout == "channels_last" else "NCHW"

    @property
    def id(self) -> str:
        """Identify the call among all."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_json(), sort_keys=True))

    def __str__(self) -> str:
        numbers = " ".join(f"{name}={value}" for name, value in self.keywords.items() if value is not None)
        shapes = " ".join("x".join(map(str, operand.shape)) for operand in self.operands.values())
        views = " misaligned" if self.misaligned else ""
        return " ".join(f"{self.operator} {numbers} {shapes} {self.dtype} {self.layout}{views}".split())

    def with_samples(self, N: int = SAMPLES) -> "Call":
        """Return the same call for N samples."""
        old = self.x.shape[0]
        if len(self.x.shape) < 2 or self.keywords.get("dim", 1) in (0, -len(self.x.shape)):
            return self

        def resized(name: str, operand: Operand) -> Operand:
            per_sample = name in ("x", "styles") or (
                (name == "noise" and len(operand.shape) == 4 or name in ("scale", "shift") and len(operand.shape) == 2)
                and operand.shape[0] == old
            )
            return replace(operand, shape=(N, *operand.shape[1:])) if per_sample else operand

        return replace(self, operands={name: resized(name, operand) for name, operand in self.operands.items()})

    def to_json(self) -> dict:
        """Return plain data that `from_json` takes."""
        return {
            "operator": self.operator,
            "operands": {name: vars(operand) | {"shape": list(operand.shape)} for name, operand in self.operands.items()},
            "filters": dict(self.filters),
            "keywords": dict(self.keywords),
            "misaligned": self.misaligned,
        }

    @staticmethod
    def from_json(data: Mapping) -> "Call":
        """Return the call that `to_json` has described."""
        operands = {name: Operand(**{**o, "shape": tuple(o["shape"])}) for name, o in data["operands"].items()}
        return Call(data["operator"], operands, data["filters"], data["keywords"], data["misaligned"])

    def tensors(self, device: torch.device, seed: int = 0) -> dict[str, Tensor]:
        """Return the operands with normal numbers, the same every time, none taking gradients yet."""
        generator = torch.Generator().manual_seed(seed)
        return {name: self._tensor(operand, device, generator) for name, operand in self.operands.items()}

    def arguments(self, device: torch.device) -> dict:
        """Return the filters on the device, and the keywords."""
        taps = {name: torch.tensor(t, dtype=torch.float32, device=device) for name, t in self.filters.items()}
        return {**taps, **self.keywords}

    def _tensor(self, operand: Operand, device: torch.device, generator: torch.Generator) -> Tensor:
        dtype = DTYPES[operand.dtype]
        values = torch.randn(operand.shape, generator=generator, dtype=torch.float64)
        if operand.layout == "strided" or (self.misaligned and len(operand.shape) < 3):
            # every third of a wider tensor
            wide = torch.full((*operand.shape, 3), float("nan"), dtype=dtype, device=device)
            wide[..., 1] = values.to(device, dtype)
            return wide[..., 1]
        memory_format = torch.channels_last if operand.layout == "channels_last" else torch.contiguous_format
        values = values.to(device, dtype).contiguous(memory_format=memory_format)
        if not self.misaligned:
            return values
        shifted = torch.full((values.numel() + 1,), float("nan"), dtype=dtype, device=device)
        return shifted.as_strided(values.shape, values.stride(), 1).copy_(values)


@contextmanager
def recording() -> Iterator[dict[Call, None]]:
    """Note the public operators called inside, each distinct call once, in the order they come.

    A call that names its `impl` is not noted: "auto" does not decide over it. Tensors may be fake, as in `warm_up`.
    """
    calls: dict[Call, None] = {}

    def note(name: str, arguments: Mapping[str, object]) -> None:
        call = _described(name, arguments)
        if call is not None:
            calls[call] = None

    with recorded(note):
        yield calls


def _described(name: str, arguments: Mapping[str, object]) -> Call | None:
    """Return the call, or None for one that cannot be made again elsewhere."""
    operands, filters, keywords = {}, {}, {}
    for parameter, value in arguments.items():
        if parameter == "impl":
            if value is not None:
                return None
        elif value is None:
            continue
        elif parameter in FILTERS:
            if not isinstance(value, Tensor) or isinstance(value, FakeTensor) or value.is_meta:
                return None
            # even where nothing is to be computed
            with _disable_current_modes():
                filters[parameter] = value.detach().float().cpu().tolist()
        elif isinstance(value, Tensor):
            if str(value.dtype)[6:] not in DTYPES or 0 in value.shape:
                return None
            operands[parameter] = Operand(
                tuple(map(int, value.shape)), str(value.dtype)[6:], _layout(value), value.requires_grad
            )
        else:
            keywords[parameter] = list(value) if isinstance(value, (list, tuple)) else value
    return Call(name, operands, filters, keywords) if "x" in operands else None


def _layout(t: Tensor) -> str:
    if t.is_contiguous():
        return "contiguous"
    return "channels_last" if t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last) else "strided"
