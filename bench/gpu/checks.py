"""Whether a kernel is right: against float64, with poisoned outputs, and twice."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .case import Case, Random, Tensors, call

# how far a result may be from float64, relative to it
LIMITS = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 2e-6}


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that PyTorch hands out is NaN inside, so that what a kernel leaves unwritten is seen."""
    settings = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(settings[0], warn_only=settings[1])
        torch.utils.deterministic.fill_uninitialized_memory = filling


def check(case: Case, device: torch.device, seed: int) -> dict:
    """What is wrong with the case, and how far each of its results is off.

    Returns:
        "wrong": what speaks against it, in words; empty if nothing does. "errors": by result, its error and the one allowed.

    Raises:
        RuntimeError: Unwritten memory cannot be told on this device.
    """
    tensors = case.tensors(Random(device, seed))
    given = {name: t.clone() for name, t in tensors.items()}
    with poisoned():
        if not torch.empty(4096, device=device).isnan().all():
            raise RuntimeError(f"torch.empty is not NaN on {device}: what a kernel leaves unwritten would pass unseen")
        got, again = call(case.run, tensors), call(case.run, tensors)
    changed = [name for name, t in tensors.items() if not torch.equal(t, given[name])]
    exact = call(case.reference, {name: t.double() for name, t in tensors.items()})
    plain = call(case.reference, tensors) if case.fused else {}
    errors = {name: _judged(case, name, got, exact, plain) for name in exact}
    wrong = [f"{name} errs by {e['error']:.3g}, allowed {e['allowed']:.3g}" for name, e in errors.items() if not e["error"] <= e["allowed"]]
    wrong += [f"{name} differs when computed again" for name in got if not torch.equal(got[name], again[name])]
    wrong += [f"{name} was given and is written to" for name in changed]
    return {"wrong": wrong, "errors": errors}


def _judged(case: Case, name: str, got: Tensors, exact: Tensors, plain: Tensors) -> dict:
    limit = LIMITS[case.dtype]
    if not case.fused:
        # roundings of single elements: none of them may be far off either
        return {"error": max(relative_error(got[name], exact[name], p) for p in (2, torch.inf)), "allowed": limit}
    own = relative_error(plain[name], exact[name])
    return {"error": relative_error(got[name], exact[name]), "allowed": max(limit, 2 * own), "plain": own}


def relative_error(got: Tensor, exact: Tensor, p: float = 2) -> float:
    """||got - exact|| / ||exact||, NaN or infinite where `got` is; the absolute error where `exact` is zero."""
    if got.shape != exact.shape:
        raise ValueError(f"a result has shape {tuple(got.shape)}, the reference {tuple(exact.shape)}")
    exact = exact.double()
    difference = torch.linalg.vector_norm(got.double() - exact, p).item()
    return difference / (torch.linalg.vector_norm(exact, p).item() or 1.0)
