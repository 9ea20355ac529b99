"""The static gate: kernels compiled for GPUs that are not here, in a process of its own, for here they are interpreted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# one of each kernel, each on one of the two architectures
REPRESENTATIVE = (
    r"^(epilogue 512@64|epilogue gradient 128@256 N=32|scale gradient 512@32|conv 256@128 N=32"
    r"|to_rgb weight gradient 128@256 N=32|scale_shift_act gradient 192@64 N=32 up"
    r"|conv data gradient 64@512|conv weight gradient 512@64|conv up 256@128>128@256 N=32|conv and filter up) .*sm_90$"
    r"|^(epilogue 512@16 N=32 fp32|conv data gradient 64@512) .*sm_80$"
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
    from_registers=0, serialized=False, loop_ldsm=0, accelerated=4, compile_s=1.0,
)  # fmt: skip


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(), None),
        (dict(stack=8), "8 bytes of stack"),
        (dict(spills=3), "3 loads and stores of spilled registers"),
        (dict(shared=240000), "more than the H100 has"),
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
        "conv", None, {}, {}, 90, num_warps=8, programs=4096, bytes=5 * 10**8, flops=6 * 10**11, trips=36, wide=4
    )
    found = violations(case, Facts(**{**GOOD, **change}), GOOD)
    assert found == [] if words is None else any(words in one for one in found)


def test_what_is_wrong_is_told_and_is_not_what_the_next_run_compares_with(tmp_path):
    from bench.static import table

    numbers = dict(occupancy=1, waves=1.0, memory_us=1.0, matrix_us=0.0, issue_us=0.5, predicted_us=1.0, ratio=1.0)
    row = GOOD | numbers | dict(bound="memory", excuse="")
    rows = {"good": row | dict(wrong=[]), "bad": row | dict(registers=200, wrong=["bad: 8 bytes of stack"])}
    for accept, kept in ((False, 128), (True, 200)):
        table.write(rows, {"bad": row}, tmp_path, accept)
        assert table.recorded(tmp_path / "table.json")["bad"]["registers"] == kept
        assert "**wrong:** bad: 8 bytes of stack" in (tmp_path / "table.md").read_text()
