"""Compiling without a GPU, and reading what came of it: registers, spills, widths, matrix instructions, loops."""

import os
import re
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import triton
from fastdgl_kernels._launch import options
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .case import Case

BIN = Path(triton.__file__).parent / "backends/nvidia/bin"

INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)")
LABEL = re.compile(r"(\.L_x_\d+):")
# wgmma, tcgen05, mma.sync
MATRIX = ("HGMMA", "UTCHMMA", "HMMA")
BRANCH = re.compile(r"BRA.*`\((\.L_x_\d+)\)")


@dataclass(frozen=True)
class Facts:
    """What the machine code of a case says.

    Args:
        registers: Per thread.
        stack: Bytes per thread; anything above 0 is a spill, or an array that was indexed at run time.
        spills: Loads and stores of local memory.
        shared: Bytes per program.
        instructions: Of the whole kernel, each counted once.
        loop: Of the longest innermost loop; with matrix instructions in it, if any loop has them.
        wide: Global loads and stores of 16 bytes, or by the tensor memory accelerator.
        narrow: Other global loads and stores.
        matrix: Matrix instructions in the loop; of the whole kernel where the loop has been unrolled.
        copies: Asynchronous copies of 16 bytes into shared memory (cp.async) in the loop, or of the whole kernel likewise.
        loop_loads: Other global loads in the loop.
        from_registers: wgmma whose first operand is in registers ("RS"): known to be miscompiled by Triton up to 3.6 (its issue 9433).
        serialized: Whether every wgmma of the loop waits for the one before it.
        loop_ldsm: Loads from shared memory into registers for matrix instructions, in the loop.
        accelerated: Loads by the tensor memory accelerator.
        compile_s: Seconds.
    """

    registers: int
    stack: int
    spills: int
    shared: int
    instructions: int
    loop: int
    wide: int
    narrow: int
    matrix: int
    copies: int
    loop_loads: int
    from_registers: int
    serialized: bool
    loop_ldsm: int
    accelerated: int
    compile_s: float

    def as_dict(self) -> dict:
        return asdict(self)


def compiled(case: Case) -> Facts:
    """Compile the case for its architecture and read its machine code."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET=1 is set: kernels were made for the interpreter and cannot be compiled")
    start = time.perf_counter()
    binary = triton.compile(
        _source(case),
        target=GPUTarget("cuda", case.arch, 32),
        options={**options(case.num_warps, case.num_stages), **case.options},
    )
    seconds = time.perf_counter() - start
    usage, code = _disassembled(binary.asm["cubin"])
    return _facts(usage, code, binary.asm["ttgir"], binary.metadata.shared, seconds)


def _source(case: Case) -> ASTSource:
    names = [p.name for p in case.kernel.params]
    missing = [n for n in names if n not in case.signature and n not in case.constexprs]
    if missing:
        raise ValueError(f"{case.name}: neither type nor value of {', '.join(missing)}")
    signature = {n: "constexpr" if n in case.constexprs else case.signature[n] for n in names}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(names)
        if signature[n].startswith("*") or n in case.divisible and n not in case.constexprs
    }
    constexprs = {n: case.constexprs[n] for n in names if n in case.constexprs}
    return ASTSource(case.kernel, signature=signature, constexprs=constexprs, attrs=attributes)


def _disassembled(cubin: bytes) -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        return _run("cuobjdump", "-res-usage", path), _run("nvdisasm", "-c", path)


def _run(tool: str, *arguments) -> str:
    run = subprocess.run([BIN / tool, *arguments], capture_output=True, text=True, check=True)
    return run.stdout + run.stderr


def _facts(usage: str, code: str, ttgir: str, shared: int, seconds: float) -> Facts:
    lines = code.splitlines()
    counts = _instructions(lines)
    loop = _loop(lines)
    in_loop = _instructions(loop)
    wgmma = _starting(in_loop, "HGMMA")
    waits = sum("gsb0, 0x0" in line for line in loop)
    accesses = _of(counts, "LDG", "STG", "LDGSTS", "LD", "ST")
    accelerated = _starting(counts, "UTMALDG")
    wide = sum(n for name, n in accesses.items() if ".128" in name)
    return Facts(
        registers=int(re.search(r"REG:(\d+)", usage)[1]),
        stack=int(re.search(r"STACK:(\d+)", usage)[1]),
        spills=sum(_of(counts, "LDL", "STL").values()),
        shared=shared,
        instructions=sum(counts.values()),
        loop=sum(in_loop.values()),
        wide=wide + accelerated,
        narrow=sum(accesses.values()) - wide,
        matrix=next((n for found in (in_loop, counts) for name in MATRIX if (n := _starting(found, name))), 0),
        copies=_copies(in_loop) or _copies(counts),
        loop_loads=sum(_of(in_loop, "LDG", "LD").values()),
        from_registers=_from_registers(ttgir),
        serialized=wgmma > 1 and waits >= wgmma,
        loop_ldsm=_starting(in_loop, "LDSM"),
        accelerated=accelerated,
        compile_s=round(seconds, 1),
    )


def _from_registers(ttgir: str) -> int:
    # ... : !ttg.memdesc<...> * !ttg.memdesc<...> -> tensor<...>; a tensor on the left is in registers
    dots = [line for line in ttgir.splitlines() if "ttng.warp_group_dot " in line]
    return sum(not re.search(r":\s*!ttg\.memdesc", line) for line in dots)


def _instructions(lines: list[str]) -> Counter:
    matches = (INSTRUCTION.match(line) for line in lines)
    return Counter(match[1] for match in matches if match)


def _loop(lines: list[str]) -> list[str]:
    """The lines of the longest innermost loop, of those with matrix instructions if there are any."""
    labels = {match[1]: i for i, line in enumerate(lines) if (match := LABEL.match(line.strip()))}
    loops = []
    for end, line in enumerate(lines):
        match = BRANCH.search(line)
        # a branch to itself is the trap at the end of each kernel
        if match and labels.get(match[1], end) < end - 1:
            loops.append((labels[match[1]], end))
    innermost = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    bodies = [lines[start : end + 1] for start, end in innermost]
    with_matrix = [body for body in bodies if any(name in line for line in body for name in MATRIX)]
    return max(with_matrix or bodies, key=len, default=[])


def _copies(counts: Counter) -> int:
    return sum(n for name, n in _of(counts, "LDGSTS").items() if ".128" in name)


def _of(counts: Counter, *names: str) -> Counter:
    return Counter({name: n for name, n in counts.items() if name.partition(".")[0] in names})


def _starting(counts: Counter, prefix: str) -> int:
    return sum(n for name, n in counts.items() if name.startswith(prefix))
