"""Compile, read, price and judge all cases; write table.md and table.json where nothing is wrong.

    python -m bench.static                       all of them
    python -m bench.static --only 'conv .*90'    some, nothing written
    python -m bench.static --accept              write the table whatever it says: the new state is the one to keep
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
    parser.add_argument("--only", metavar="REGEX", help="cases whose name and architecture match; writes no table")
    parser.add_argument("--accept", action="store_true", help="write the table even if something is wrong")
    arguments = parser.parse_args()
    # Triton 3.9 announces another default for its next release
    warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")

    from . import table

    recorded = table.recorded(HERE / "table.json")
    rows, wrong = [], []
    for case in _cases():
        if arguments.only and not re.search(arguments.only, case.key):
            continue
        row, found = table.row(case, recorded.get(case.key))
        rows.append(row)
        wrong += found
        print(table.line(row), flush=True)
    print(*wrong, sep="\n")
    if not rows:
        print(f"no case matches {arguments.only!r}")
        return 1
    if not arguments.only and (arguments.accept or not wrong):
        table.write(rows, HERE)
    print(f"{len(rows)} cases, {len(wrong)} violations, triton {triton.__version__}")
    return 1 if wrong else 0


def _cases():
    for module in sorted(m.name for m in pkgutil.iter_modules([str(HERE)]) if m.name.startswith("cases_")):
        yield from importlib.import_module(f".{module}", __package__).cases()


if __name__ == "__main__":
    # from a clone, installed or not
    sys.path.insert(0, str(HERE.parents[1] / "kernels"))
    sys.exit(main())
