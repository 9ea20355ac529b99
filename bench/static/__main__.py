"""Compile, read, price and judge the cases; write table.md, and table.json for the next run to compare with.

    python -m bench.static                       all that the table has
    python -m bench.static --changed             those only whose kernel, tile or compiler is not that of the table
    python -m bench.static --missing             those only that the table has not
    python -m bench.static --everywhere          every case for every architecture: hours
    python -m bench.static --only 'conv .*90'    some, nothing written
    python -m bench.static --accept              what is worse than before, or wrong, is what to compare with from now on
"""

import argparse
import importlib
import pkgutil
import re
import sys
from pathlib import Path

import triton

HERE = Path(__file__).parent

# compiled in full: what the kernels are tuned for
FULL = (90, 80)

# compiled for the other architectures: one of each kernel, at the largest tiles
REPRESENTATIVE = re.compile(
    r"conv 512@32 N=32|conv data gradient 512@32 N=32|conv weight gradient 512@32 N=32|conv 64@512 N=8"
    r"|conv weight gradient 64@512 N=8|conv up 256@128>128@256 N=32|conv and filter up 64@512>32@1024 N=8"
    r"|bias_act lrelu 128@256 N=32|bias_act gradient lrelu 128@256 N=32|filter 128@256 N=32 after up-convolution, and tail"
    r"|filter 128@256 N=32 (up|down)|filter of 12 64@256 N=32 up|images up 3@256 N=32 fp32|epilogue 128@256 N=32"
    r"|epilogue gradient 128@256 N=32|scale gradient 128@256 N=32|to_rgb 128@256 N=32|to_rgb weight gradient 128@256 N=32"
    r"|scale_shift_act gradient 192@64 N=32 up"
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.static", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", metavar="REGEX", help="cases whose name and architecture match; nothing is written")
    parser.add_argument("--changed", action="store_true", help="compile only what differs from the table's")
    parser.add_argument("--missing", action="store_true", help="compile only what the table has not")
    parser.add_argument("--everywhere", action="store_true", help="compile every case for every architecture")
    parser.add_argument("--accept", action="store_true", help="keep what is wrong, too, to compare the next run with")
    arguments = parser.parse_args()

    from . import other_gpus, table

    recorded = table.recorded(HERE / "table.json")
    rows, found = {}, 0
    for case in _cases(arguments.everywhere):
        if arguments.only and not re.search(arguments.only, case.key):
            continue
        found += 1
        before = recorded.get(case.key)
        same = arguments.missing or arguments.changed and before and before.get("fingerprint") == case.fingerprint
        if before and same:
            rows[case.key] = before | {"wrong": []}
            continue
        rows[case.key] = table.row(case, before)
        print(table.line(case.key, rows[case.key]), flush=True)
        if not arguments.only:
            # what is done is kept if the run is stopped; cases that are still to come stay as they were
            table.write({key: row | {"wrong": []} for key, row in recorded.items()} | rows, recorded, HERE, arguments.accept)
    if not found:
        print(f"no case matches {arguments.only!r}")
        return 1
    if not arguments.only:
        table.write(rows, recorded, HERE, arguments.accept)
    wrong = [words for row in rows.values() for words in row["wrong"]]
    print(*other_gpus.sentences(), *wrong, sep="\n")
    print(f"{len(rows)} cases, {len(wrong)} violations, triton {triton.__version__}")
    return 1 if wrong else 0


def _cases(everywhere: bool):
    for module in sorted(m.name for m in pkgutil.iter_modules([str(HERE)]) if m.name.startswith("cases_")):
        for case in importlib.import_module(f".{module}", __package__).cases():
            if everywhere or case.arch in FULL or REPRESENTATIVE.fullmatch(case.name):
                yield case


if __name__ == "__main__":
    # from a clone, installed or not
    sys.path.insert(0, str(HERE.parents[1] / "kernels"))
    sys.exit(main())
