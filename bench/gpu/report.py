"""results.json and results.md: all that was found so far, and what it means."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from fastdgl.atomic_files import atomically

from .acceptance import Verdict, rate, verdicts
from .plan import PARTS
from .tuning import backends, proposal


class Report:
    """Results by part and item, on disk after each.

    Args:
        folder: Where results.json and results.md go; made if it is not there.
        facts: Of the machine and the run.
    """

    def __init__(self, folder: Path, facts: dict):
        self.folder, self.facts = folder, facts
        self.parts: dict[str, dict[str, dict]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, part: str, name: str, result: dict) -> None:
        """Keep a result, and write all of them."""
        self.parts.setdefault(part, {})[name] = result
        self.write()

    def write(self) -> None:
        judged = verdicts(self.parts)
        tuning = self.parts.get("tuning", {})
        proposed, faster = proposal(tuning), backends(tuning)
        everything = self.facts | {"verdicts": [asdict(v) for v in judged], "proposed": proposed, "backends": faster, "parts": self.parts}
        replace(self.folder / "results.json", json.dumps(everything, indent=1) + "\n")
        replace(self.folder / "results.md", markdown(self.facts, self.parts, judged, proposed, faster))

    @property
    def right(self) -> bool:
        """Whether all that was looked at is as it must be."""
        return not any(v.must == "missed" for v in verdicts(self.parts))


def replace(path: Path, text: str) -> None:
    """Write a file so that it is there whole or as it was."""
    with atomically(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def markdown(facts: dict, parts: dict[str, dict[str, dict]], judged: list[Verdict], proposed: dict, faster: dict) -> str:
    """The report for people."""
    sections = [
        "# Measured on a GPU\n",
        "Written by `python -m bench.gpu`. Times are medians, ratios are of this run alone.\n",
        *_table(("", ""), facts.items()),
        "\n## Verdicts\n",
        *_table(("what", "must", "want", "how much"), ((v.about, v.must, v.want, v.words) for v in judged)),
        *_failures(parts),
        *_kernels(parts),
        *_networks(parts.get("networks", {})),
        *_proposal(proposed),
        *_backends(faster),
    ]
    return "\n".join(sections) + "\n"


def summary(report: "Report") -> str:
    """The verdicts in a few lines, for the terminal."""
    lines = [f"{v.must:>12} {v.want:>12}  {v.about}: {v.words}" for v in verdicts(report.parts)]
    bad = sum(bool(result.get("wrong")) or "error" in result for part in report.parts.values() for result in part.values())
    skipped = sum("skipped" in result for part in report.parts.values() for result in part.values())
    lines += [f"{bad} items failed, {skipped} were skipped; all of it is in {report.folder}"]
    checks = report.parts.get("checks", {})
    if checks and all(result.get("wrong") == [] for result in checks.values()):
        lines += ["every kernel is right on this GPU; run `python -m fastdgl_kernels certify` for \"auto\" to take them"]
    return "\n".join(["        must         want", *lines])


def _failures(parts: dict[str, dict[str, dict]]) -> Iterator[str]:
    """What is wrong, what failed and what was skipped, by part."""
    for part, results in parts.items():
        rows = [(name, "; ".join(r["wrong"])) for name, r in results.items() if r.get("wrong")]
        rows += [(name, r["error"]) for name, r in results.items() if "error" in r]
        rows += [
            (f"{name}: {rival}", r["error"])
            for name, result in results.items()
            for rival, r in {**result, **result.get("rivals", {})}.items()
            if isinstance(r, dict) and "error" in r
        ]
        skipped = sum("skipped" in r for r in results.values())
        if rows or skipped:
            yield f"\n## {part}: {len(rows)} failures, {skipped} of {len(results)} skipped\n"
        if rows:
            yield from _table(("item", "what happened"), rows)


def _kernels(parts: dict[str, dict[str, dict]]) -> Iterator[str]:
    ceilings = parts.get("ceilings", {})
    copy = rate(ceilings.get("copy", {}), "bytes")
    for part in ("kernels", "compiled"):
        results = {name: r for name, r in parts.get(part, {}).items() if "us" in r}
        if not results:
            continue
        yield f"\n## {part}: {PARTS[part].about}\n"
        yield "`of a rival` is our time over its time: below 1, ours is faster.\n"
        rivals = sorted({rival for r in results.values() for rival in r["rivals"]})
        head = ("case", "us", "20 % to 80 %", "GB/s", "of copy", "TFLOP/s", "of matmul", *(f"of {rival}" for rival in rivals))
        yield from _table(head, (_row(name, r, copy, ceilings, rivals) for name, r in results.items()))
    rows = [
        (name, f"{r['us']:.0f}", _number(rate(r, "bytes"), 1e9), _number(rate(r, "flops"), 1e12))
        for name, r in ceilings.items()
        if "us" in r
    ]
    if rows:
        yield "\n## ceilings\n"
        yield from _table(("what", "us", "GB/s", "TFLOP/s"), rows)


def _row(name: str, r: dict, copy: float | None, ceilings: dict[str, dict], rivals: list[str]) -> tuple[str, ...]:
    bandwidth, products = rate(r, "bytes"), rate(r, "flops") or None
    matmul = rate(ceilings.get(r["dtype"], {}), "flops")
    others = [r["rivals"].get(rival, {}).get("us") for rival in rivals]
    return (
        name, f"{r['us']:.1f}", f"{r['low_us']:.1f} to {r['high_us']:.1f}", _number(bandwidth, 1e9), _ratio(bandwidth, copy),
        _number(products, 1e12), _ratio(products, matmul), *(_ratio(r["us"], us) for us in others),
    )  # fmt: skip


def _networks(results: dict[str, dict]) -> Iterator[str]:
    modes = list(dict.fromkeys(mode for r in results.values() for mode, t in r.items() if isinstance(t, dict)))
    if modes:
        yield "\n## networks: ms of a step\n"
        rows = ((name, *(_number(r.get(mode, {}).get("us"), 1e3) for mode in modes)) for name, r in results.items() if "skipped" not in r)
        yield from _table(("step", *modes), rows)


def _proposal(proposed: dict[str, dict]) -> Iterator[str]:
    if proposed:
        yield "\n## proposed tiles; no table was changed\n"
        ratios = {table: min(layer["of today"] for layer in p["layers"].values()) for table, p in proposed.items()}
        rows = ((table, p["for all"], len(p["layers"]), f"{ratios[table]:.2f}") for table, p in proposed.items())
        yield from _table(("table", "best for all", "layers", "best layer, of today's time"), rows)


def _backends(faster: dict[str, dict]) -> Iterator[str]:
    if faster:
        yield "\n## proposed entries of `convolution/backends.py`, for the architecture of this GPU; no table was changed\n"
        rows = ((f'`"{entry}": "{f["name"]}",`', f"{f['of the other']:.2f}") for entry, f in faster.items())
        yield from _table(("entry", "of the other's time"), rows)


def _table(head: tuple[str, ...], rows) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |"


def _number(value: float | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:.4g}"


def _ratio(value: float | None, of: float | None) -> str:
    return "" if value is None or not of else f"{value / of:.2f}"
