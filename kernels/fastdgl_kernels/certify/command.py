"""`python -m fastdgl_kernels certify`: prove the kernels on a GPU by hand, look at its verdict, or remove it."""

import argparse
import sys
from collections.abc import Sequence
from math import exp, log

import torch

from .. import _dispatch
from .._place import COMMAND
from . import verdict as verdicts
from .calls import IMPLEMENTATIONS
from .certification import BUDGET, CertificationError, certify
from .verdict import PENDING, WRONG, Verdict, VerdictError


def main(arguments: Sequence[str]) -> int:
    """Run the command. Return 0 if there is a verdict by which some kernel may run, or it was removed; else 1."""
    options = _parser().parse_args(arguments)
    try:
        device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        print(f"--device {options.device}: expected a device such as cuda, cuda:1 or cpu", file=sys.stderr)
        return 1
    try:
        if options.show or options.forget:
            machine = verdicts.machine(device)
            if options.forget:
                print("the verdict is removed" if verdicts.forget(machine) else "there was no verdict")
                return 0
            found, reason = verdicts.read(machine)
            print(f"no verdict for {device}: {reason}" if found is None else described(found))
            return 0 if found is not None and found.right() else 1
        found = certify(
            device, budget=options.budget, force=options.force, operators=options.operators, report=lambda line: print(line, flush=True)
        )
    except (CertificationError, VerdictError) as error:
        print(f"no verdict: {error}", file=sys.stderr)
        return 1
    print(described(found))
    return 0 if found.right() else 1


def described(verdict: Verdict) -> str:
    """Return a verdict as a table: by operator, what is right, what is wrong and why, and how fast."""
    machine = verdict.machine
    lines = [f"verdict of {verdict.date} for {machine.get('gpu')}, torch {machine.get('torch')}, triton {machine.get('triton')}"]
    if verdict.halted:
        lines.append(verdict.halted)
    for operator, names in IMPLEMENTATIONS.items():
        for name in names:
            of = [r for r in verdict.results if (r.operator, r.implementation) == (operator, name)]
            if not of:
                continue
            right = sorted({f"{dtype} {layout}" for o, dtype, layout, n in verdict.right() if (o, n) == (operator, name)})
            words = f"right: {', '.join(right) or 'nowhere'}"
            wrong = {r.words: None for r in of if r.outcome == WRONG}
            words += "".join(f"; wrong: {reason}" for reason in wrong)
            pending = sum(r.outcome == PENDING for r in of)
            words += f"; {pending} of {len(of)} checks are left for the next time" if pending else ""
            lines.append(f"  {operator:26} {name:7} {words}")
        timed = [t for t in verdict.timings if t.operator == operator]
        if timed:
            ratio = speed(timed)
            lines.append(f"  {operator:26} {ratio:.2f} times as fast as the reference over {len(timed)} timed layers")
    return "\n".join(lines)


def speed(timings) -> float:
    """Return how many times as fast as the reference the fastest implementations are: the geometric mean over layers."""
    ratios = [t.us["reference"] / t.us[t.fastest] for t in timings if "reference" in t.us and t.us[t.fastest]]
    return exp(sum(map(log, ratios)) / len(ratios)) if ratios and min(ratios) > 0 else 1.0


def summary(device: torch.device) -> str:
    """Return in one line what "auto" goes by on a device: the verdict, its date and its ratio; or why there is none."""
    if not _dispatch.is_gpu(device):
        return f"no verdict is needed on {device}, where the reference runs"
    found, reason = _dispatch.verdict_of(device)
    if found is None:
        return f"{reason}: the reference runs; run `{COMMAND}` to prove and use the kernels"
    classes = {(r.operator, r.implementation, r.dtype, r.layout) for r in found.results}
    ratio = f", {speed(found.timings):.2f} times as fast as the reference over {len(found.timings)} timed layers" if found.timings else ""
    left = "" if found.complete else "; some checks are left for the next time"
    return found.halted or f"verdict of {found.date}: {len(found.right())} of {len(classes)} kinds of calls run as kernels{ratio}{left}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.partition(": ")[2])
    parser.add_argument("--device", help='"cuda", "cuda:1", ...; by default the current GPU')
    parser.add_argument("--budget", type=_seconds, default=BUDGET, help=f"seconds after which no further check starts (default {BUDGET:g})")
    parser.add_argument("--operators", nargs="+", choices=list(IMPLEMENTATIONS), metavar="NAME", help="check these alone")
    parser.add_argument("--force", action="store_true", help="begin again, without an earlier verdict")
    parser.add_argument("--show", action="store_true", help="print the verdict of this machine, and check nothing")
    parser.add_argument("--forget", action="store_true", help="remove the verdict of this machine, and check nothing")
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 86400:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds, above 0 and below 86400")
    return seconds
