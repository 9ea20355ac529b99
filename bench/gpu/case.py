"""What is checked and timed: a kernel or an operator, on one layer. Listed in cases.py; nothing here knows how."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, wraps

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


class Random:
    """Normal numbers on a device, others for each seed."""

    def __init__(self, device: torch.device, seed: int):
        self.device = device
        self._generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> Tensor:
        """Drawn in place: images fill a large part of the memory."""
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        x = torch.empty(shape, dtype=dtype, device=self.device, memory_format=memory_format)
        return x.normal_(generator=self._generator)


@dataclass(frozen=True)
class Case:
    """One launch on one layer. Its functions are called with those of the tensors that they name as parameters.

    Args:
        operator: "bias_act".
        order: "forward", "gradient", "second order", ... of the operator.
        layer: "lrelu 128@256 N=32 float16", all that tells it from the operator's other cases.
        dtype: Of the images.
        tensors: All that the functions are given, freshly drawn.
        run: What is proved; its results by name.
        reference: The same in plain PyTorch, in whichever dtype its tensors have.
        flops: On the tensor cores.
        rivals: By name, what its time is compared with. "nvidia" needs NVIDIA's code; "compiled" takes long to be ready.
        fused: Several roundings in one: it may err twice as much as PyTorch does at the same precision.
        candidates: What else could run: an entry of a table, and the function with it.
        entry: What the table of backends calls the layer, of a case that is a whole layer.
    """

    operator: str
    order: str
    layer: str
    dtype: torch.dtype
    tensors: Callable[[Random], Tensors]
    run: Callable[..., Tensors]
    reference: Callable[..., Tensors]
    flops: int = 0
    rivals: Mapping[str, Callable[..., object]] = field(default_factory=dict)
    fused: bool = False
    candidates: Callable[[], Iterable[tuple["Choice", Callable[..., Tensors]]]] | None = None
    entry: str = ""

    @property
    def key(self) -> str:
        """Of one case among all."""
        return f"{self.operator} {self.order} {self.layer}"


@dataclass(frozen=True)
class Choice:
    """An entry of a table of tiles, or of backends.

    Args:
        table: The name of the entry, or of the operator that asks for it.
        value: Of plain numbers, or the name of an implementation.
    """

    table: str
    value: tuple[int, ...] | str

    @property
    def key(self) -> str:
        """The value in words."""
        return self.value if isinstance(self.value, str) else str(list(self.value))


def compiled(f: Callable[..., object]) -> Callable[..., object]:
    """f by torch.compile, which starts when it is first called."""
    ready = cache(lambda: torch.compile(f, dynamic=False))

    @wraps(f)
    def run(**tensors: Tensor) -> object:
        return ready()(**tensors)

    return run


def call(f: Callable[..., object], tensors: Tensors) -> object:
    """f of those tensors that it names."""
    return f(**named(f, tensors))


def moved_bytes(case: Case, tensors: Tensors, results: Tensors) -> int:
    """What the case has to move: each tensor that goes in or comes out, once."""
    moved = [*named(case.run, tensors).values(), *results.values()]
    return sum(t.numel() * t.element_size() for t in moved)


def named(f: Callable[..., object], tensors: Tensors) -> Tensors:
    """Those of the tensors that are parameters of f."""
    return {name: tensors[name] for name in inspect.signature(f).parameters if name in tensors}
