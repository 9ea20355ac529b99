"""How close is close enough: as close as PyTorch comes at the same precision. And the recorded numbers to be close to."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers, the same every time."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def derivatives(f: Callable[..., Tensor], inputs: Sequence[Tensor], dy: Tensor) -> dict[str, Tensor]:
    """f's value y, its gradients, and the gradients of their squared norm, as R1 takes them.

    The incoming gradient dy is an input like the others: between two layers of a network,
    the second derivative passes through it.
    """
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    dy = dy.detach().clone().requires_grad_()
    y = f(*inputs)
    dx = torch.autograd.grad(y, inputs, dy, create_graph=True)
    norm = sum(g.to(torch.promote_types(g.dtype, torch.float32)).square().sum() for g in dx)
    ddx = torch.autograd.grad(norm, [*inputs, dy], allow_unused=True)
    results = {"y": y}
    results |= {f"gradient of input {i}": g for i, g in enumerate(dx)}
    # an operator that is linear in its inputs has second derivatives by dy only
    results |= {f"second gradient {i}": g for i, g in enumerate(ddx) if g is not None}
    return {name: t.detach().double() for name, t in results.items()}


def assert_as_accurate(fast, reference, inputs: Sequence[Tensor], factor: float = 2.0) -> None:
    """`fast` errs at most `factor` times as much as `reference` does at the inputs' precision."""
    y = reference(*inputs).detach()
    dy = normal(*y.shape, seed=99).to(y.dtype)
    truth = derivatives(reference, [x.double() for x in inputs], dy.double())
    allowed = derivatives(reference, inputs, dy)
    got = derivatives(fast, inputs, dy)
    # a derivative that is zero may be left out by either
    for name in truth.keys() & allowed.keys() & got.keys():
        error = (got[name] - truth[name]).abs().max()
        floor = truth[name].abs().max() * torch.finfo(inputs[0].dtype).eps
        bound = factor * (allowed[name] - truth[name]).abs().max() + floor
        assert error <= bound, f"{name}: error {error:.3g}, allowed {bound:.3g}"


def assert_same_derivatives(f, g, inputs: Sequence[Tensor]) -> None:
    """`f` and `g` are one function in float64: in value, gradient and second gradient."""
    y = g(*inputs)
    dy = normal(*y.shape, seed=99)
    got, expected = derivatives(f, inputs, dy), derivatives(g, inputs, dy)
    # a derivative that is zero may be left out by either
    for name in got.keys() | expected.keys():
        zeros = torch.zeros_like(got.get(name, expected.get(name)))
        assert_close(got.get(name, zeros), expected.get(name, zeros), name)


def assert_close(got: Tensor, expected: Tensor, name: str = "", tolerance: float = 1e-9) -> None:
    """The largest error is small against the largest value."""
    assert got.shape == expected.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    error, scale = (got - expected).abs().max(), expected.abs().max()
    assert error <= tolerance * scale, f"{name}: error {error:.3g}, largest value {scale:.3g}"


def golden_cases(operator: str) -> list[tuple[int, dict]]:
    """The number and the keyword arguments of each recorded case."""
    with np.load(GOLDEN / f"{operator}.npz") as file:
        return list(enumerate(json.loads(file["cases.json"].tobytes())))


def golden_id(case: tuple[int, dict]) -> str:
    """A recorded case in words: what differs from None, in order."""
    words = (f"{key}={value}" for key, value in case[1].items() if value is not None and key != "resample_filter")
    return ",".join(words).replace(" ", "")


def assert_golden(operator: str, number: int, names: Sequence[str], f: Callable[..., Tensor]) -> None:
    """Value, gradients and second gradients of `f` are the recorded ones.

    Args:
        operator: Name of the file.
        number: Of the case in it.
        names: Of the inputs that have gradients; those the case has not are left out.
        f: Called with the recorded tensors by name.
    """
    for name, (got, recorded) in golden_results(operator, number, names, f).items():
        assert_close(got, recorded, name)


def assert_golden_as_accurately(operator: str, number: int, names: Sequence[str], fast, reference) -> None:
    """In float32 `fast` errs at most twice as much as `reference` does, by the recorded numbers."""
    allowed = golden_results(operator, number, names, reference, torch.float32)
    largest = max(recorded.numel() for _, recorded in allowed.values())
    for name, (got, recorded) in golden_results(operator, number, names, fast, torch.float32).items():
        error, scale = (got - recorded).abs().max(), recorded.abs().max()
        # a sum of n numbers wanders by some sqrt(n) roundings, in the order of either
        floor = scale * torch.finfo(torch.float32).eps * max(1, largest / got.numel()) ** 0.5
        bound = 2 * (allowed[name][0] - recorded).abs().max() + floor
        assert error <= bound, f"{name}: error {error:.3g}, allowed {bound:.3g}"


def golden_results(
    operator: str, number: int, names: Sequence[str], f: Callable[..., Tensor], dtype: torch.dtype = torch.float64
) -> dict[str, tuple[Tensor, Tensor]]:
    """What `f` gives at a precision and what is recorded, for value, gradients and second gradients."""
    with np.load(GOLDEN / f"{operator}.npz") as file:
        prefix = f"{number:03d}/"
        case = {key.removeprefix(prefix): torch.from_numpy(file[key]) for key in file.files if key.startswith(prefix)}
    device = "cuda" if dtype != torch.float64 and torch.cuda.is_available() else "cpu"
    recorded = case
    # filters are recorded in float32, and stay so
    case = {name: t.to(device, dtype if t.dtype == torch.float64 else t.dtype) for name, t in case.items()}
    names = [name for name in names if name in case]
    for name in [*names, "dy"]:
        case[name].requires_grad_()
    y = f(case)
    got = {"y": y}
    dx = torch.autograd.grad(y, [case[name] for name in names], case["dy"], create_graph=True)
    got |= {f"grad_{name}": g for name, g in zip(names, dx)}
    onward = sum((g * case[f"v_{name}"]).sum() for name, g in zip(names, dx))
    # those not recorded are zero
    second = [name for name in ["dy", *names] if f"grad2_{name}" in case]
    got |= {f"grad2_{name}": g for name, g in zip(second, torch.autograd.grad(onward, [case[n] for n in second]))}
    return {name: (t.detach().cpu().double(), recorded[name].double()) for name, t in got.items()}
