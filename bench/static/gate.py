"""What is wrong with a kernel, told from its machine code."""

from fastdgl_kernels._tuning import LIMITS

from .assembly import Facts
from .case import Case
from .roofline import DEVICES, predicted

# on the others, times are printed and not judged: their kernels were not tuned
JUDGED = (80, 90)


def violations(case: Case, facts: Facts, recorded: dict | None = None) -> list[str]:
    """All that speaks against the kernel, in words; empty if nothing does.

    Args:
        recorded: Its facts when they were last found good, by the same compiler; None to compare with nothing.
    """
    found = [
        *_spills(case, facts),
        *_memory(case, facts),
        *(_matrix(case, facts) if case.flops else []),
        *_prediction(case, facts),
        *(_worse_than(recorded, facts) if recorded else []),
    ]
    return [f"{case.key}: {words}" for words in found]


def _spills(case: Case, facts: Facts):
    if facts.stack > case.stack:
        yield f"{facts.stack} bytes of stack"
    if facts.spills and not case.stack:
        yield f"{facts.spills} loads and stores of spilled registers"


def _memory(case: Case, facts: Facts):
    limit = LIMITS[case.arch].shared
    if facts.shared > limit:
        yield f"{facts.shared} bytes of shared memory, more than the {limit} a program may have on {DEVICES[case.arch].name}"
    if case.shared and facts.shared > case.shared:
        yield f"{facts.shared} bytes of shared memory, where the choice of tiles counts with {case.shared}"
    if facts.wide < case.wide:
        yield f"{facts.wide} accesses of 16 bytes, expected at least {case.wide}; {facts.narrow} narrower ones"


def _matrix(case: Case, facts: Facts):
    if not facts.matrix:
        yield "no matrix instruction in the main loop"
    if not LIMITS[case.arch].has_tma:
        # of few rounds, copies that are under way at once gain little
        if case.trips > 4 and (facts.copies < case.copies or facts.loop_loads):
            yield (
                f"{facts.copies} asynchronous copies (LDGSTS) and {facts.loop_loads} other loads in the main loop, "
                f"expected {case.copies} and 0: an operand is not pipelined"
            )
        return
    if not LIMITS[case.arch].reads_shared:
        if not facts.accelerated:
            yield "no load by the tensor memory accelerator"
        return
    if facts.from_registers:
        yield f"{facts.from_registers} wgmma with an operand in registers"
    if facts.serialized:
        yield "wgmma are serialized: each waits for the one before it"
    if not facts.accelerated:
        yield "no load by the tensor memory accelerator"
    if facts.loop_ldsm:
        yield f"{facts.loop_ldsm} LDSM in the main loop"


def _prediction(case: Case, facts: Facts):
    if case.excuse or case.arch not in JUDGED:
        return
    p = predicted(case, facts)
    if p.roofline_us and p.ratio > case.budget:
        yield f"predicted {p.predicted_us:.0f} us, {p.ratio:.2f} of its roofline, bound by {p.bound}"
    if case.bytes and not case.flops and p.issue_us > 0.85 * p.memory_us:
        yield f"issue slots take {p.issue_us:.0f} us of {p.memory_us:.0f} us of memory traffic"


def _worse_than(recorded: dict, facts: Facts):
    # a few registers come and go with the compiler's mood
    allowed = {
        "registers": recorded["registers"] + 8,
        "shared": recorded["shared"],
        "loop": recorded["loop"] * 1.1,
        "instructions": recorded["instructions"] * 1.1,
        "narrow": recorded["narrow"],
    }
    for name, bound in allowed.items():
        if getattr(facts, name) > bound:
            yield f"{name} rose from {recorded[name]} to {getattr(facts, name)}"
