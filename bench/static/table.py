"""The table of all cases, for people and for the next run to compare with."""

import json
from pathlib import Path

import triton
from fastdgl_kernels._tuning import LIMITS

from .assembly import compiled
from .case import Case
from .gate import violations
from .other_gpus import sentences
from .roofline import predicted

HEAD = """# Static table of the kernels

Written by `python -m bench.static`. **Not measured on a GPU**: machine code as triton {version} compiles it, and times as
bytes, FLOPs, waves and issue slots would have them (`roofline.py`). "shared" is the memory of a program in bytes, "left"
what the device's limit for one program exceeds it by. "ratio" is predicted time over the larger of the
memory and matrix bounds; "bound" is what the prediction is bound by. A case that misses 1.15 says why in the last column.

For sm_90 and sm_80 every case is here; for the others one of each kernel, at the largest tiles, whose times nobody judges.

{gpus}

| case | registers | spills | shared | left | occupancy | loop | wide / narrow | waves | memory us | matrix us | issue us | predicted us | ratio | bound | why not 1.15 |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""

COLUMNS = "registers", "spills", "shared", "left", "occupancy", "loop", "accesses", "waves", "memory_us", "matrix_us", "issue_us"


def row(case: Case, recorded: dict | None) -> dict:
    """What the table holds of a case, what is wrong with it included."""
    facts = compiled(case)
    wrong = violations(case, facts, recorded)
    judged = {"excuse": case.excuse, "fingerprint": case.fingerprint, "wrong": wrong}
    return facts.as_dict() | predicted(case, facts).as_dict() | judged


def line(key: str, row: dict) -> str:
    """A row in Markdown."""
    limit = LIMITS[int(key.rpartition("_")[2])].shared
    cells = {**row, "case": key, "accesses": f"{row['wide']} / {row['narrow']}", "left": limit - row["shared"]}
    # an excuse is only worth telling where it was needed
    words = "**wrong:** " + "; ".join(row["wrong"]) if row["wrong"] else row["excuse"] if row["ratio"] > 1.15 or row["stack"] else ""
    shown = [cells[name] for name in ("case", *COLUMNS, "predicted_us", "ratio", "bound")]
    return f"| {' | '.join(map(str, shown))} | {words} |"


def write(rows: dict[str, dict], recorded: dict[str, dict], folder: Path, accept: bool) -> None:
    """table.md, of what there is, and table.json, to compare the next run with: what is wrong does not get into it."""
    gpus = "\n".join(f"* {sentence}" for sentence in sentences())
    text = HEAD.format(version=triton.__version__, gpus=gpus) + "\n".join(line(key, row) for key, row in rows.items()) + "\n"
    _replace(folder / "table.md", text)
    kept = {key: row if accept or not row["wrong"] else recorded.get(key) for key, row in rows.items()}
    # seconds of compilation differ from run to run
    kept = {key: {k: v for k, v in row.items() if k not in ("compile_s", "wrong")} for key, row in kept.items() if row}
    _replace(folder / "table.json", json.dumps({"triton": triton.__version__, "cases": kept}, indent=1) + "\n")


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    written = path.with_suffix(".written")
    written.write_text(text)
    written.replace(path)


def recorded(path: Path) -> dict[str, dict]:
    """The rows of the last table, by case; none if another compiler made it."""
    if not path.exists():
        return {}
    table = json.loads(path.read_text())
    return table["cases"] if table["triton"] == triton.__version__ else {}
