"""Check every kernel on the GPU that is here, time it, and judge; results.json and results.md are written as it goes.

    python -m bench.gpu --minutes 9 --out results/gpu
    python -m bench.gpu --minutes 9 --out results/gpu --nvidia ../stylegan3     and compare with NVIDIA's code, built from there
    python -m bench.gpu --minutes 9 --out results/tiles --parts tuning          and propose tiles

Needs PyTorch, Triton and NumPy.
"""

import argparse
import secrets
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main() -> int:
    from . import isolation, machine, nvidia, plan
    from .report import Report, summary

    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=9, help="what is not done by then is skipped (default: 9)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results.json and results.md go")
    parser.add_argument("--nvidia", type=Path, metavar="PATH", help="a checkout of stylegan3 or stylegan2-ada-pytorch")
    parser.add_argument("--parts", nargs="+", choices=plan.PARTS, default=list(plan.PARTS), help="only these (default: all)")
    arguments = parser.parse_args()
    if reason := machine.why_not():
        print(f"bench.gpu measures on a GPU, and {reason}. Without one, python -m bench.static predicts.", file=sys.stderr)
        return 2
    if arguments.nvidia is not None:
        try:
            nvidia.use(arguments.nvidia)
        except ValueError as error:
            parser.error(str(error))
    start, seed = time.monotonic(), secrets.randbelow(2**31)
    end = start + 60 * arguments.minutes
    report = Report(arguments.out, machine.facts() | {"seed": seed, "minutes": arguments.minutes})
    report.write()
    for part, until in plan.schedule(arguments.parts, start, end):
        names = plan.names(part, arguments.nvidia is not None)
        print(f"{part}: {plan.PARTS[part].about} {len(names)} items", flush=True)
        for name, result in isolation.results(
            plan.opened, (part, seed, arguments.nvidia), names,
            until=until, end=end, limit_s=plan.PARTS[part].limit_s, workers=plan.PARTS[part].workers,
        ):  # fmt: skip
            report.add(part, name, result)
            if result.get("wrong") or "error" in result:
                print(f"  {name}: {'; '.join(result.get('wrong') or [result['error']])}", flush=True)
    print(summary(report))
    return 0 if report.right else 1


if __name__ == "__main__":
    # from a clone, installed or not; the processes it starts find the same
    sys.path[:0] = [str(ROOT / "kernels"), str(ROOT / "tests")]
    sys.exit(main())
