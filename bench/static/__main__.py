"""Compile, read, price and judge all cases; write table.md, and table.json for the next run to compare with.

    python -m bench.static                       all of them
    python -m bench.static --only 'conv .*90'    some, nothing written
    python -m bench.static --accept              what is worse than before, or wrong, is what to compare with from now on
"""

import argparse
import importlib
import pkgutil
import re
import sys
import warnings
from pathlib import Path

import triton

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.static", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", metavar="REGEX", help="cases whose name and architecture match; nothing is written")
    parser.add_argument("--accept", action="store_true", help="keep what is wrong, too, to compare the next run with")
    arguments = parser.parse_args()
    # Triton 3.9 announces another default for its next release
    warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")

    from . import table

    recorded = table.recorded(HERE / "table.json")
    rows = {}
    for case in _cases():
        if arguments.only and not re.search(arguments.only, case.key):
            continue
        rows[case.key] = table.row(case, recorded.get(case.key))
        print(table.line(case.key, rows[case.key]), flush=True)
    if not rows:
        print(f"no case matches {arguments.only!r}")
        return 1
    if not arguments.only:
        table.write(rows, recorded, HERE, arguments.accept)
    wrong = [words for row in rows.values() for words in row["wrong"]]
    print(*wrong, sep="\n")
    print(f"{len(rows)} cases, {len(wrong)} violations, triton {triton.__version__}")
    return 1 if wrong else 0


def _cases():
    for module in sorted(m.name for m in pkgutil.iter_modules([str(HERE)]) if m.name.startswith("cases_")):
        yield from importlib.import_module(f".{module}", __package__).cases()


if __name__ == "__main__":
    # from a clone, installed or not
    sys.path.insert(0, str(HERE.parents[1] / "kernels"))
    sys.exit(main())
