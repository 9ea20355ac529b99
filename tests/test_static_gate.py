"""The static gate: kernels compiled for GPUs that are not here, in a process of its own, for here they are interpreted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# one of each kernel, each on one of the two architectures; and of those that other architectures compile otherwise
REPRESENTATIVE = (
    r"^(epilogue 512@64|epilogue gradient 128@256 N=32|scale gradient 512@32|conv 256@128 N=32"
    r"|to_rgb weight gradient 128@256 N=32|scale_shift_act gradient 192@64 N=32 up"
    r"|conv data gradient 64@512|conv weight gradient 512@64|conv up 256@128>128@256 N=32|conv and filter up) .*sm_90$"
    r"|^(epilogue 512@16 N=32 fp32|conv data gradient 64@512|conv weight gradient 64@512) .*sm_80$"
    r"|^(conv weight gradient 64@512 N=8 sm_(86|100|120)|conv 64@512 N=8 sm_89)$"
    r"|^(bias_act gradient lrelu 128@256 N=32 sm_75|epilogue 128@256 N=32 sm_120)$"
)

SPILLING = '''
import triton
import triton.language as tl

@triton.jit
def greedy(x, y, BLOCK: tl.constexpr):
    """Keeps BLOCK numbers alive from one use to the next, in more registers than a thread has."""
    i = tl.arange(0, BLOCK)
    held = tl.load(x + i)
    total = tl.sum(held, axis=0)
    tl.store(y + i, held * total)
'''

PLANTED = '''
import json
from bench.static.assembly import compiled
from bench.static.case import Case
from bench.static.gate import violations
from spilling import greedy

def judged(block):
    case = Case("greedy", greedy, dict(x="*fp32", y="*fp32"), dict(BLOCK=block), 90, num_warps=1)
    return violations(case, compiled(case))

print(json.dumps([judged(1024), judged(16384)]))
'''


def run(*arguments, path=()):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [ROOT, ROOT / "kernels", *path]))
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_representative_kernels_pass_the_gate():
    result = run("-m", "bench.static", "--only", REPRESENTATIVE)
    assert result.returncode == 0, result.stdout + result.stderr
    assert ", 0 violations" in result.stdout
    assert "FP_FUSION" not in result.stderr
    # of each GPU, what runs on it
    for words in ("sm_75 (T4", "every kernel but the convolutions", "sm_86 (RTX 3090, 99 KB", "sm_120 (RTX 5090", "gfx942"):
        assert words in result.stdout


def test_a_planted_spill_fails_the_gate(tmp_path):
    (tmp_path / "spilling.py").write_text(SPILLING)
    result = run("-c", PLANTED, path=[tmp_path])
    assert result.returncode == 0, result.stderr
    modest, greedy = json.loads(result.stdout)
    assert modest == []
    assert any("loads and stores of spilled registers" in words for words in greedy)


def test_no_case_is_not_a_pass():
    result = run("-m", "bench.static", "--only", "no such kernel")
    assert result.returncode != 0 and "no case matches" in result.stdout


GOOD = dict(
    registers=128, stack=0, spills=0, shared=98328, instructions=900, loop=100, wide=22, narrow=4, matrix=8,
    copies=12, loop_loads=0, from_registers=0, serialized=False, loop_ldsm=0, accelerated=4, compile_s=1.0,
)  # fmt: skip


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(), None),
        (dict(stack=8), "8 bytes of stack"),
        (dict(spills=3), "3 loads and stores of spilled registers"),
        (dict(shared=240000), "more than the 232448 a program may have on H100"),
        (dict(shared=98400), "where the choice of tiles counts with 98328"),
        (dict(from_registers=1), "operand in registers"),
        (dict(serialized=True), "serialized"),
        (dict(accelerated=0), "no load by the tensor memory accelerator"),
        (dict(loop_ldsm=2), "2 LDSM"),
        (dict(matrix=0), "no matrix instruction"),
        (dict(wide=1), "1 accesses of 16 bytes, expected at least 4"),
        (dict(loop=9000), "of its roofline, bound by issue"),
        (dict(registers=137), "registers rose from 128 to 137"),
        (dict(narrow=5), "narrow rose from 4 to 5"),
    ],
    ids=lambda value: next(iter(value), "good") if isinstance(value, dict) else "",
)
def test_each_fault_is_called_by_its_name(change, words):
    from bench.static.assembly import Facts
    from bench.static.case import Case
    from bench.static.gate import violations

    # a layer of 256 channels at 128 x 128, 32 samples
    case = Case(
        "conv", None, {}, {}, 90, num_warps=8, programs=4096, bytes=5 * 10**8, flops=6 * 10**11, trips=36, wide=4,
        shared=98328,
    )  # fmt: skip
    found = violations(case, Facts(**{**GOOD, **change}), GOOD)
    assert found == [] if words is None else any(words in one for one in found)


@pytest.mark.parametrize("arch, trips, change, words", [
    (80, 36, {}, None),
    (86, 36, dict(copies=8), "8 asynchronous copies (LDGSTS) and 0 other loads in the main loop, expected 12 and 0"),
    (89, 36, dict(copies=0, loop_loads=12), "an operand is not pipelined"),
    (80, 36, dict(loop_loads=4), "an operand is not pipelined"),
    (80, 4, dict(copies=0), None),
    (86, 36, dict(shared=101377), "101377 bytes of shared memory, more than the 101376 a program may have on RTX 3090"),
    (120, 36, dict(copies=0, loop_ldsm=24), None),
    (120, 36, dict(copies=0, accelerated=0), "no load by the tensor memory accelerator"),
    (100, 36, dict(copies=0), None),
    (100, 36, dict(stack=8, spills=2), "2 loads and stores of spilled registers"),
    (100, 36, dict(copies=0, loop_ldsm=1), "1 LDSM"),
], ids=str)  # fmt: skip
def test_each_architecture_is_asked_for_what_it_has(arch, trips, change, words):
    from bench.static.assembly import Facts
    from bench.static.case import Case
    from bench.static.gate import violations

    case = Case("conv", None, {}, {}, arch, programs=4096, flops=6 * 10**11, trips=trips, copies=12, excuse="times are not judged")
    found = violations(case, Facts(**{**GOOD, **change}))
    assert found == [] if words is None else any(words in one for one in found)


def test_a_case_is_compiled_again_when_its_kernel_or_tile_has_changed():
    code = """
from dataclasses import replace
from bench.static import cases_convolution, case
one, *_ = cases_convolution.cases()
assert one.fingerprint == replace(one).fingerprint
others = [replace(one, num_stages=2), replace(one, arch=80), replace(one, constexprs={**one.constexprs, "BI": 32})]
before, source = one.fingerprint, case.inspect.getsource
assert all(other.fingerprint != before for other in others)
for changed in ("_convolution", "_pixels", "_images"):
    case.inspect.getsource = lambda f: source(f) + ("#" if f.__name__ == changed else "")
    assert one.fingerprint != before, changed
"""
    result = run("-c", code)
    assert result.returncode == 0, result.stderr


def test_what_is_wrong_is_told_and_is_not_what_the_next_run_compares_with(tmp_path):
    from bench.static import table

    numbers = dict(occupancy=1, waves=1.0, memory_us=1.0, matrix_us=0.0, issue_us=0.5, predicted_us=1.0, ratio=1.0)
    row = GOOD | numbers | dict(bound="memory", excuse="")
    good, bad = "good sm_90", "bad sm_86"
    rows = {good: row | dict(wrong=[]), bad: row | dict(registers=200, wrong=["bad: 8 bytes of stack"])}
    for accept, kept in ((False, 128), (True, 200)):
        table.write(rows, {bad: row}, tmp_path, accept)
        assert table.recorded(tmp_path / "table.json")[bad]["registers"] == kept
        text = (tmp_path / "table.md").read_text()
        assert "**wrong:** bad: 8 bytes of stack" in text
        # shared memory, and what is left of the device's
        assert f"| {bad} | 200 | 0 | 98328 | {99 * 1024 - 98328} |" in text and f"| 98328 | {227 * 1024 - 98328} |" in text
