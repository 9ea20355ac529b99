"""What is compiled and judged: one kernel, at one layer's shape, for one architecture."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """One launch of a kernel. Nothing is launched: the launch is compiled, read and priced.

    Args:
        name: As one would say it, "conv3x3 128@256".
        kernel: A `@triton.jit` function.
        signature: Triton's type of each run-time argument, "*fp16", "i32", "fp32". An argument that is None at run
            time belongs into `constexprs`, as None.
        constexprs: Value of each compile-time argument.
        arch: 80 or 90.
        divisible: Integer arguments known to be divisible by 16. Pointers always are.
        programs: Number of programs of the launch.
        bytes: That the operator has to move, each tensor once.
        flops: On the tensor cores; 0 for a kernel that only moves memory.
        trips: How often the loop with the matrix instructions runs; or, in a kernel without them, its longest loop.
        wide: Accesses of 16 bytes that a thread has to have at least, which are those of images; 0 where images
            cannot be accessed so, as those of 3 channels.
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
    wide: int = 1
    excuse: str = ""
    budget: float = 1.15
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Name and architecture."""
        return f"{self.name} sm_{self.arch}"
