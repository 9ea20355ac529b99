"""Counts as tables in Markdown."""

from collections.abc import Mapping

from ..shapes import NETWORKS
from .counting import Count
from .prices import GPU, seconds
from .steps import INTERVALS

Found = Mapping[str, Mapping[str, Count]]


def text(resolution: int, found: Found, gpu: GPU, tf32: bool) -> str:
    """Return the table of a resolution: a row for each step, and one for an iteration.

    Args:
        found: Counts by implementation, then by step.
    """
    columns = [f"{name}: {unit}" for name in found for unit in ("launches", "GB", "TFLOP", "ms")]
    lines = [
        f"\n**{resolution} x {resolution}, {NETWORKS[resolution]} images**; ms by the roofline of the {gpu.name}{' with TF32' if tf32 else ''}\n",
        "| " + " | ".join(["step", *columns]) + " |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for step in INTERVALS:
        lines.append(_row(step, [_numbers(steps[step], gpu, tf32) for steps in found.values()]))
    totals = []
    for steps in found.values():
        shares = [[n / INTERVALS[step] for n in _numbers(count, gpu, tf32)] for step, count in steps.items()]
        totals.append([sum(numbers) for numbers in zip(*shares)])
    lines.append(_row("an iteration", totals))
    return "\n".join(lines)


def names(found: Found) -> str:
    """Return the launches of each step by name, the most frequent first."""
    return "\n".join(
        f"\n{name}, {step}: " + ", ".join(f"{n} {launch}" for launch, n in count.by_name.most_common())
        for name, steps in found.items()
        for step, count in steps.items()
    )


def _numbers(count: Count, gpu: GPU, tf32: bool) -> list[float]:
    launches = count.launches
    moved, flops = sum(launch.bytes for launch in launches), sum(launch.flops for launch in launches)
    return [len(launches), moved / 1e9, flops / 1e12, seconds(launches, gpu, tf32) * 1e3]


def _row(name: str, cells: list[list[float]]) -> str:
    numbers = (f"{launches:,.0f} | {moved:.1f} | {flops:.2f} | {ms:.1f}" for launches, moved, flops, ms in cells)
    return f"| {name} | " + " | ".join(numbers) + " |"
