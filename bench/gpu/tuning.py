"""Which tile would be fastest. Proposes, and changes no table."""

from collections import defaultdict
from functools import partial
from math import prod

import torch

from .case import Case, call, named
from .checks import LIMITS, relative_error
from .errors import told
from .timing import Stopwatch, rotation, times


def tuned(case: Case, device: torch.device, seed: int, cache_bytes: int, stopwatch: Stopwatch) -> dict:
    """Every candidate's time, and what is chosen today under "today"; a candidate that computes something else is an error."""
    sets = rotation(case, device, seed, cache_bytes)
    expected = call(case.run, sets[0])
    runs, found, table = {"today": case.run}, {}, ""
    for choice, run in case.candidates():
        key, table = str(list(choice.value)), choice.table
        try:
            got = call(run, sets[0])
            wrong = [name for name in expected if not relative_error(got[name], expected[name]) <= LIMITS[case.dtype]]
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
    """By table, the best candidate of each layer, and the one that is best for all: of the smallest product of times.

    Args:
        results: What `tuned` found, by case.
    """
    proposed: dict[str, dict] = defaultdict(lambda: {"layers": {}, "for all": None})
    columns: dict[str, list[dict[str, float]]] = defaultdict(list)
    for key, result in results.items():
        if "candidates" not in result:
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
