"""docs/claim.md and its curves: what the numbers in the results are, and what they say of the claim (estimates.py)."""

import datetime
import json
import platform
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cpuinfo
import torch

from fastdgl.atomic_files import atomically

from .arms import ARMS, FAMILIES, ROOT
from .estimates import COMPARED, WINDOWS, Estimate, paired, seeds_needed, spread_of_differences, verdict

DOCS = ROOT / "docs"
TITLES = {"stylegan2": "StyleGAN2", "biggan": "BigGAN"}
# evaluations whose mean is reported beside the last one
LAST = 5
COLOURS = {"A0": "#777777", "A1": "#d62728", "A2": "#1f77b4", "A3": "#2ca02c"}


def facts() -> dict:
    """Where and with what a result was computed."""
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {"date": datetime.date.today().isoformat(), "machine": cpuinfo.get_cpu_info().get("brand_raw", platform.machine()),
            "torch": torch.__version__, "python": platform.python_version(), "commit": commit.stdout.strip()}


def write(results: Path) -> None:
    """The page from FAMILY.json of each family that has been run."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in (results / f"{family}.json" for family in FAMILIES) if path.exists()]
    for result in found:
        with atomically(DOCS / f"claim_{result['family']}.svg") as unfinished:
            unfinished.write_text(curves(result), encoding="utf-8")
    with atomically(DOCS / "claim.md") as unfinished:
        unfinished.write_text("\n".join(page(found)) + "\n", encoding="utf-8")


def page(results: Sequence[dict]) -> Iterator[str]:
    yield (ROOT / "bench" / "dgl_claim" / "claim.md").read_text(encoding="utf-8").rstrip()
    for result in results:
        yield from section(result)


def section(result: dict) -> Iterator[str]:
    """One family's table, verdict, and curves."""
    seeds = result["seeds"]
    yield f"\n## {TITLES[result['family']]}\n"
    yield f"**{conclusion(result)}**\n"
    yield (f"{len(seeds)} seeds; mean ± standard deviation over them. {result['machine']}, torch {result['torch']}, {result['date']}; "
           f"raw numbers: [{result['family']}.json](../bench/results/dgl_claim/{result['family']}.json).\n")
    yield "| | learns from besides its own D | kimg | cost of an image | FID at the end | FID, last five | KID | precision | recall |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    teacher = result["teacher"]
    yield row("teacher", "", f"{teacher['kimg']:.0f}", "", [teacher], [[teacher]])
    students = [seed["student"] for seed in seeds]
    yield row("stage I", "nothing", f"{students[0]['kimg']:.0f}", "", students, [[student] for student in students])
    plain = seeds[0]["arms"]["A0"]["flops_per_image"]
    for arm in ARMS:
        runs = [seed["arms"][arm.name] for seed in seeds]
        evaluations = [run["evaluations"] for run in runs]
        yield row(arm.name, arm.about, f"+{runs[0]['kimg']:.1f}", f"{runs[0]['flops_per_image'] / plain:.2f}", [e[-1] for e in evaluations],
                  [e[-LAST:] for e in evaluations])
    yield "\nHow much lower or higher the first one's FID is than the second's, paired by seed, with the 95 % interval and the verdict:\n"
    yield f"| | {' | '.join(WINDOWS)} |"
    yield f"| --- |{' --- |' * len(WINDOWS)}"
    for first, second in COMPARED:
        yield f"| {first} against {second} | {' | '.join(cell(paired(result, first, second, last)) for last in WINDOWS.values())} |"
    spreads = [spread_of_differences(result, last) for last in WINDOWS.values()]
    yield (f"\nPaired differences of log FID spread by {', '.join(f'{spread:.3f}' for spread in spreads)} (standard deviation: at the end, last five, all; "
           f"{(len(seeds) - 1) * 3} degrees of freedom). To find an FID that is 5 % lower in four of five experiments, at the 5 % level, takes "
           f"{', '.join(str(seeds_needed(spread)) for spread in spreads)} seeds by these spreads.")
    yield f"\n![FID over the images shown](claim_{result['family']}.svg)"


def row(name: str, about: str, kimg: str, cost: str, final: Sequence[dict], last: Sequence[Sequence[dict]]) -> str:
    fids = [statistics.fmean(e["fid"] for e in evaluations) for evaluations in last]
    cells = [name, about, kimg, cost, spread([e["fid"] for e in final], 2), spread(fids, 2), spread([e["kid"] for e in final], 2),
             spread([e["precision"] for e in final], 3), spread([e["recall"] for e in final], 3)]
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation, as people write them."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def final_fids(result: dict, arm: str) -> list[float]:
    return [seed["arms"][arm]["evaluations"][-1]["fid"] for seed in result["seeds"]]


def conclusion(result: dict) -> str:
    """Return what the results say of the claim: A1 against A0, and against A3, in each window."""
    of_plain, of_random = ({when: paired(result, "A1", other, last) for when, last in WINDOWS.items()} for other in ("A0", "A3"))
    found = verdict([estimate for estimate in of_plain.values() if estimate])
    return (f"{found[0].upper()}{found[1:]}. FID with the frozen teacher (A1) against FID without (A0): {in_words(of_plain)}; "
            f"against FID with a random second D (A3): {in_words(of_random)}.")


def in_words(estimates: Mapping[str, Estimate | None]) -> str:
    """Return `+3 % (95 % interval -17 to +28 %) last five` and so on."""
    return ", ".join(f"{quoted(estimate)} {when}" for when, estimate in estimates.items() if estimate)


def quoted(estimate: Estimate) -> str:
    """Return `+3 % (-17 to +28 %)`, with the minus signs that people write."""
    def percent(ratio: float) -> str:
        return f"{round(100 * ratio) or 0:+d}".replace("-", "−").replace("+0", "0")

    return f"{percent(estimate.ratio)} % ({percent(estimate.low)} to {percent(estimate.high)} %)"


def cell(estimate: Estimate | None) -> str:
    """Return an estimate with its verdict; a dash where the two arms were not evaluated equally often."""
    return "–" if estimate is None else f"{quoted(estimate)}, {estimate.verdict}"


def curves(result: dict) -> str:
    """FID over the images of the second stage: a thin line a seed, a thick one for their mean, as an SVG of 720 x 360."""
    width, height, left, right, top, bottom = 720, 360, 56, 16, 16, 40
    arms = [arm for arm in ARMS if arm.name in COLOURS]
    lines = {arm.name: [[(e["kimg"] - seed["student"]["kimg"], e["fid"]) for e in [seed["student"], *seed["arms"][arm.name]["evaluations"]]]
                        for seed in result["seeds"]] for arm in arms}
    points = [point for arm in lines.values() for line in arm for point in line]
    last, low, high = max(x for x, _ in points), min(y for _, y in points), max(y for _, y in points)

    def place(x: float, y: float) -> str:
        return (f"{left + (width - left - right) * x / last:.1f},"
                f"{top + (height - top - bottom) * (high - y) / (high - low):.1f}")

    def polyline(line: Sequence[tuple[float, float]], colour: str, weight: float, opacity: float) -> str:
        return (f'<polyline points="{" ".join(place(*point) for point in line)}" fill="none" stroke="{colour}" '
                f'stroke-width="{weight}" stroke-opacity="{opacity}"/>')

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
             f'<rect width="{width}" height="{height}" fill="white"/>']
    for i in range(5):
        fid = low + (high - low) * i / 4
        x, y = place(0, fid).split(",")
        parts += [f'<line x1="{x}" y1="{y}" x2="{width - right}" y2="{y}" stroke="#dddddd"/>',
                  f'<text x="{left - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{fid:.1f}</text>']
    for i in range(5):
        kimg = last * i / 4
        x = place(kimg, low).split(",")[0]
        parts += [f'<text x="{x}" y="{height - bottom + 16}" text-anchor="middle">{kimg:.1f}</text>']
    parts += [f'<text x="{width / 2}" y="{height - 6}" text-anchor="middle">thousand images after stage I</text>',
              f'<text x="14" y="{height / 2}" text-anchor="middle" transform="rotate(-90 14 {height / 2})">FID</text>']
    for i, arm in enumerate(arms):
        colour = COLOURS[arm.name]
        parts += [polyline(line, colour, 1, 0.35) for line in lines[arm.name]]
        mean = [(statistics.fmean(x for x, _ in at), statistics.fmean(y for _, y in at)) for at in zip(*lines[arm.name])]
        parts += [polyline(mean, colour, 2.5, 1),
                  f'<text x="{width - right - 8}" y="{top + 16 + 16 * i}" text-anchor="end" fill="{colour}">{arm.name}: {arm.about}</text>']
    return "\n".join([*parts, "</svg>"]) + "\n"
