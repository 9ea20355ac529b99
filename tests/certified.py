"""Verdicts for tests, and devices that are taken for GPUs."""

from collections.abc import Iterable
from itertools import product

import torch
from fastdgl_kernels import _dispatch
from fastdgl_kernels.certify import verdict as verdicts
from fastdgl_kernels.certify.calls import IMPLEMENTATIONS
from fastdgl_kernels.certify.verdict import PENDING, RIGHT, WRONG, Result, Timing, Verdict

MACHINE = {"gpu": "a pretended GPU", "capability": "9.0"}
DATE = "2026-11-30T12:00:00+00:00"
DTYPES = ("float16", "bfloat16", "float32")


def certified(
    machine: dict = MACHINE,
    *,
    wrong: Iterable[str] = (),
    pending: Iterable[str] = (),
    timings: Iterable[Timing] = (),
    halted: str = "",
    date: str = DATE,
) -> Verdict:
    """Return a verdict by which all kernels are right but those of the operators named."""
    outcomes = dict.fromkeys(wrong, WRONG) | dict.fromkeys(pending, PENDING)
    results = [
        Result("0" * 16, operator, dtype, layout, name, outcomes.get(operator, RIGHT), f"of {operator}" if operator in outcomes else "")
        for operator, names in IMPLEMENTATIONS.items()
        for name, dtype, layout in product(names, DTYPES, ("NCHW", "NHWC"))
    ]
    return Verdict(machine, date, results, timings, halted)


def pretend_gpu(monkeypatch, name: str = "a pretended GPU", capability: str = "9.0") -> dict:
    """Take the CPU, where kernels are interpreted, for a GPU, and return what its verdict is kept under."""
    machine = {"gpu": name, "capability": capability, "sources": "of a test"}
    why_not = _dispatch.why_not_triton
    # networks on "meta", whose shapes alone are wanted, stay what they are
    monkeypatch.setattr(_dispatch, "is_gpu", lambda device: device.type == "cpu")
    monkeypatch.setattr(_dispatch, "why_not_triton", lambda device: None if device.type == "cpu" else why_not(device))
    monkeypatch.setattr(verdicts, "machine", lambda device: dict(machine))
    monkeypatch.setattr(_dispatch, "_verdicts", {})
    monkeypatch.setattr(_dispatch, "_said", set())
    return machine


CPU = torch.device("cpu")
