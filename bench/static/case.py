"""What is compiled and judged: one kernel, at one layer's shape, for one architecture."""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import triton

# every case is compiled for the first two, some of them for the others: see `REPRESENTATIVE` in __main__.py
ARCHS = (90, 80, 86, 89, 100, 120, 75)


@dataclass(frozen=True)
class Case:
    """One launch of a kernel. Nothing is launched: the launch is compiled, read and priced.

    Args:
        name: As one would say it, "conv3x3 128@256".
        kernel: A `@triton.jit` function.
        signature: Triton's type of each run-time argument, "*fp16", "i32", "fp32". An argument that is None at run
            time belongs into `constexprs`, as None.
        constexprs: Value of each compile-time argument.
        arch: Compute capability, 90 for 9.0; one of `roofline.DEVICES`.
        divisible: Integer arguments known to be divisible by 16. Pointers always are.
        programs: Number of programs of the launch.
        bytes: That the operator has to move, each tensor once.
        flops: On the tensor cores; 0 for a kernel that only moves memory.
        trips: How often the loop with the matrix instructions runs; or, in a kernel without them, its longest loop.
        copies: Asynchronous copies of 16 bytes that a thread makes in each round of its loop before Hopper, for both operands.
        shared: The most bytes of shared memory that the rule which chose the tile counts with; 0 where there is none.
        wide: Accesses of 16 bytes that a thread has to have at least, which are those of images; 0 where images
            cannot be accessed so, as those of 3 channels.
        stack: Bytes of stack that are known; the excuse says why.
        excuse: Why the kernel may be predicted to miss its roofline; empty if it may not.
        budget: Factor by which it may miss it.
    """

    name: str
    kernel: Callable
    signature: Mapping[str, str]
    constexprs: Mapping[str, object]
    arch: int
    num_warps: int = 4
    num_stages: int = 3
    divisible: tuple[str, ...] = ()
    programs: int = 1
    bytes: int = 0
    flops: int = 0
    trips: int = 1
    copies: int = 0
    shared: int = 0
    wide: int = 1
    stack: int = 0
    excuse: str = ""
    budget: float = 1.15
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Name and architecture."""
        return f"{self.name} sm_{self.arch}"

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides what the compiler makes of the case, and of what it is compared with."""
        launch = self.signature, self.constexprs, self.arch, self.num_warps, self.num_stages, self.divisible, self.options
        judged = self.programs, self.bytes, self.flops, self.trips, self.copies, self.shared, self.wide, self.excuse, self.budget
        judged += (self.stack,) if self.stack else ()
        text = "\n".join([triton.__version__, repr(launch), repr(judged), *_sources(self.kernel, {})])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sources(kernel: Callable, found: dict) -> list[str]:
    """The source of a kernel and of all jitted functions it calls."""
    function = getattr(kernel, "fn", None)
    if function is not None and function not in found:
        found[function] = inspect.getsource(function)
        for name in function.__code__.co_names:
            _sources(function.__globals__.get(name), found)
    return list(found.values())
