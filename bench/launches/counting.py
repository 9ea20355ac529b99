"""Count the kernels that PyTorch and Triton launch, the bytes that they move, and their FLOPs."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import torch
from fastdgl_kernels._launch import launches_to
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten

# no kernel: memory, numbers about tensors, and views that PyTorch does not call views
FREE = {
    aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten._unsafe_view, aten.detach,
    aten.lift_fresh, aten.promote_types, aten.is_same_size, aten._local_scalar_dense,
}  # fmt: skip

# PyTorch's kernels over lists of tensors: elements of a chunk, chunks of a launch, and tensors of a launch by the number of lists
CHUNK, CHUNKS, TENSORS = 65536, 320, {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}


@dataclass(frozen=True)
class Launch:
    """One kernel.

    Args:
        name: Of the operation or the Triton kernel.
        bytes: Of the tensors that it reads and writes, each once.
        flops: Of matrix products and convolutions; a product and a sum are two.
        dtype: What it multiplies.
    """

    name: str
    bytes: int
    flops: int
    dtype: torch.dtype


class Count(TorchDispatchMode):
    """Records, inside the `with`, a `Launch` for each kernel in `launches`.

    An operation of PyTorch is one kernel, but for: views and allocations, none; a backward of a convolution, one for each
    gradient asked for; operations over lists of tensors, as their chunks fit into launches.
    """

    def __init__(self):
        super().__init__()
        self.launches: list[Launch] = []

    def __enter__(self):
        self._triton = launches_to(self._take)
        self._triton.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._triton.__exit__(*error)

    def __torch_dispatch__(self, operation: Callable, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        output = _as_cudnn_lays_out(operation, args, operation(*args, **kwargs))
        packet = operation.overloadpacket
        if not (operation.is_view or packet in FREE or operation.namespace != "aten"):
            self._count(packet, args, kwargs, output)
        return output

    def _count(self, packet: Callable, args: tuple, kwargs: dict, output) -> None:
        name = str(packet).removeprefix("aten.")
        inputs, outputs = list(_tensors((args, kwargs))), list(_tensors(output))
        # what is written in place is among the inputs, and counts for both
        moved = sum(map(size, inputs)) + sum(map(size, outputs if outputs else _tensors(args[:1])))
        flops = flop_registry[packet](*args, **kwargs, out_val=output) if packet in flop_registry else 0
        launches = 1
        if packet is aten.convolution_backward:
            launches = sum(args[10])
        elif name.startswith(("_foreach_", "_fused_")):
            launches = launches_of_lists([a for a in args if isinstance(a, (list, tuple)) and a and isinstance(a[0], Tensor)])
        dtype = next((t.dtype for t in inputs if t.is_floating_point()), torch.float32)
        for _ in range(launches):
            self.launches.append(Launch(name, moved // launches, flops // launches, dtype))

    def note(self, name: str, *tensors: Tensor | None, flops: int = 0) -> None:
        """Record a kernel that is not PyTorch's."""
        tensors = [t for t in tensors if t is not None]
        self.launches.append(Launch(name, sum(map(size, tensors)), flops, tensors[0].dtype))

    def _take(self, kernel, arguments: tuple, num_warps: int, num_stages: int) -> None:
        names = [p if isinstance(p, str) else p.name for p in getattr(kernel, "arg_names", None) or kernel.params]
        self.note(kernel.fn.__name__.removeprefix("_"), *[a for a in arguments if isinstance(a, Tensor)],
                  flops=triton_flops(kernel.fn.__module__, kernel.fn.__name__, dict(zip(names, arguments))))

    @property
    def by_name(self) -> Counter:
        """Launches by their names."""
        return Counter(launch.name for launch in self.launches)


def size(t: Tensor) -> int:
    """Return the bytes that are read of a tensor: what is expanded is read once."""
    return t.element_size() * prod(n for n, stride in zip(t.shape, t.stride()) if stride)


def launches_of_lists(lists: list[list[Tensor]]) -> int:
    """Return the launches of PyTorch's kernel over lists of tensors of the same sizes: chunks and tensors of a launch are limited."""
    most, launches, tensors, chunks = TENSORS[min(len(lists), 5)], 0, 0, 0
    for t in lists[0]:
        tensors += 1
        left = -(-t.numel() // CHUNK)
        while left:
            taken = min(left, CHUNKS - chunks)
            left, chunks = left - taken, chunks + taken
            if chunks == CHUNKS or tensors == most and not left:
                # a tensor that goes on is the first of the next launch
                launches, tensors, chunks = launches + 1, int(left > 0), 0
    return launches + (chunks > 0)


def triton_flops(module: str, kernel: str, arguments: dict) -> int:
    """Return the FLOPs of a kernel of ours that multiplies matrices, else 0."""
    a = arguments
    if module.endswith("convolution.kernel"):
        if kernel == "_weight_gradient":
            pixels = a["dy"].numel() // a["O"]
            return 2 * pixels * a["O"] * a["I"] * a["TAPS"] ** 2
        # each element of what is convolved meets the weights of one output channel, or of one input channel
        image, channels = ("x", "I") if kernel == "_transposed" else ("y", "O")
        weights = a["w"].numel() // (len(a["x"]) if a.get("weights_per_sample") else 1)
        return 2 * a[image].numel() * weights // a[channels]
    if module.endswith("to_rgb_kernel"):
        image = a["dx"] if kernel == "_data_gradient" else a["x"]
        return 2 * image.numel() * a["O"]
    return 0


def _tensors(values) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)


def _as_cudnn_lays_out(operation: Callable, args: tuple, output):
    """Return the output of a convolution as cuDNN lays it out: channels last where an operand is; "meta" does not follow it."""
    if operation is aten.convolution.default:
        return _laid_out(output, args[:2])
    if operation is aten.convolution_backward.default:
        return tuple(t if t is None else _laid_out(t, args[1:3]) for t in output)
    return output


def _laid_out(t: Tensor, operands: tuple) -> Tensor:
    if t.ndim == 4 and t.is_meta and any(o.stride(1) == 1 and not o.is_contiguous() for o in operands):
        return torch.empty_like(t, memory_format=torch.channels_last)
    return t


@contextmanager
def counted() -> Iterator[Count]:
    """Count what is launched inside, gradients included: they are taken on this thread."""
    with torch.autograd.set_multithreading_enabled(False), Count() as count:
        yield count
