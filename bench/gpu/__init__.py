"""The proof with a GPU: every kernel checked against float64, timed against its ceilings and rivals, and judged.

    python -m bench.gpu --minutes 9 --out results/gpu

Not run on a GPU yet.
"""
