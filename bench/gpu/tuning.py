"""Which tile would be fastest, and whose convolution. Proposes, and changes no table."""

from collections import defaultdict
from functools import partial
from math import prod

import torch
from fastdgl_kernels._dispatch import DTYPES

from .case import Case, call, named
from .checks import LIMITS, relative_error
from .errors import told
from .timing import Stopwatch, rotation, times


def tuned(case: Case, device: torch.device, seed: int, cache_bytes: int, stopwatch: Stopwatch) -> dict:
    """Every candidate's time, and what is chosen today under "today"; a candidate that computes something else is an error."""
    sets = rotation(case, device, seed, cache_bytes)
    expected = call(case.run, sets[0])
    runs, found, table = {"today": case.run}, {}, ""
    # where each may err twice as much as PyTorch does, two may differ by four times as much
    limit = LIMITS[case.dtype] * (4 if case.fused else 1)
    for choice, run in case.candidates():
        key, table = choice.key, choice.table
        try:
            got = call(run, sets[0])
            wrong = [name for name in expected if not relative_error(got[name], expected[name]) <= limit]
        # too large for the GPU, most often
        except Exception as error:
            found[key] = {"error": told(error)}
            continue
        if wrong:
            found[key] = {"error": f"wrong: {', '.join(wrong)}"}
        else:
            runs[key] = run
    timed = times({key: [partial(run, **named(run, tensors)) for tensors in sets] for key, run in runs.items()}, stopwatch)
    return {"table": table, "candidates": timed | found}


def proposal(results: dict[str, dict]) -> dict[str, dict]:
    """By table of tiles, the best candidate of each layer, and the one that is best for all: of the smallest product of times.

    Args:
        results: What `tuned` found, by case.
    """
    proposed: dict[str, dict] = defaultdict(lambda: {"layers": {}, "for all": None})
    columns: dict[str, list[dict[str, float]]] = defaultdict(list)
    for key, result in results.items():
        if "candidates" not in result or _names_backends(result):
            continue
        us = {name: r["us"] for name, r in result["candidates"].items() if "us" in r}
        best = min(us, key=us.get)
        columns[result["table"]].append(us)
        proposed[result["table"]]["layers"][key] = {"best": best, "of today": us[best] / us["today"]}
    for table, column in columns.items():
        # of those that ran on every layer
        common = set.intersection(*(set(us) for us in column))
        proposed[table]["for all"] = min(sorted(common), key=lambda name: prod(us[name] / us["today"] for us in column))
    return dict(proposed)


def backends(results: dict[str, dict]) -> dict[str, dict]:
    """By entry of the table of backends (fastdgl_kernels/convolution/backends.py), the faster one, and its part of the other's time."""
    proposed = {}
    for result in results.values():
        us = {name: r["us"] for name, r in result.get("candidates", {}).items() if name in DTYPES and "us" in r}
        # against one that cannot run there is no race
        if len(us) == 2:
            best, other = sorted(us, key=us.get)
            proposed[result["table"]] = {"name": best, "of the other": us[best] / us[other]}
    return proposed


def _names_backends(result: dict) -> bool:
    """Whether its candidates are implementations, not tiles."""
    return not DTYPES.keys().isdisjoint(result["candidates"])
