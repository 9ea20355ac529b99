"""How close is close enough: as close as PyTorch comes at the same precision. And the recorded numbers to be close to."""

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Results = Mapping[str, Tensor] | Sequence[Tensor]
GOLDEN = Path(__file__).parent / "golden"
# `nudge` moves numbers by so many units in the last place: more than a sum in another order does
ROUNDINGS = 16


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


def assert_errs_as_little(got: Results, reference: Results, truth: Results, terms: int = 0) -> None:
    """In float32 `got` errs at most twice as much as `reference` does.

    Args:
        got: Results by name, or in order.
        reference: The same, of plain PyTorch at the same precision.
        truth: The same in float64.
        terms: Of the longest sum that the results go through; by default, as many as the largest result has numbers for one of theirs.
    """
    got, reference, truth = (dict(results if isinstance(results, Mapping) else enumerate(results)) for results in (got, reference, truth))
    assert got.keys() == reference.keys() == truth.keys()
    largest = max(t.numel() for t in truth.values())
    for name, exact in truth.items():
        assert got[name].shape == exact.shape, f"{name}: shape {tuple(got[name].shape)}, expected {tuple(exact.shape)}"
        error, allowed = ((results[name].double() - exact.double()).abs().max() for results in (got, reference))
        # bias, activation, gain and clamp round each number once; a sum of n numbers wanders by some sqrt(n) roundings, in the order of either
        floor = exact.abs().max() * 4 * torch.finfo(torch.float32).eps * max(1, terms or largest / exact.numel()) ** 0.5
        assert error <= 2 * allowed + floor, f"{name}: error {error:.3g}, allowed {2 * allowed + floor:.3g}"


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


def nudge(tensors: Iterable[Tensor], seed: int = 0, precision: torch.dtype | None = None) -> None:
    """Move each number of `tensors` up or down, in place, by at most ROUNDINGS units in the last place.

    What a computation makes of that bounds what it makes of sums in another order, on any CPU: it magnifies both alike, and where
    a number lies so near a kink (of ReLU, of the hinge loss) that rounding may cross it, the nudge crosses it too.

    Args:
        tensors: In float32 or float64; others stay.
        precision: Whose unit in the last place; the tensor's own by default.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for t in tensors:
            if t.is_floating_point():
                step = ROUNDINGS * torch.finfo(precision or t.dtype).eps
                t.mul_(1 + step * (2 * torch.rand(t.shape, generator=generator, dtype=t.dtype) - 1))


def assert_same_to_rounding(got: Results, truth: Results, nudged: Sequence[Results], remainders: bool = False) -> None:
    """`got` is as near to `truth` as rounding lets two ways of computing it be.

    Args:
        got: Results by name, or in order.
        truth: The same, computed in another way.
        nudged: The same, computed as `truth` was from what `nudge` has moved, with a seed each.
        remainders: Some results are what is left of terms as large as the largest result, and as exact as those are.
    """
    got, truth, *nudged = (dict(results if isinstance(results, Mapping) else enumerate(results)) for results in (got, truth, *nudged))
    assert nudged and got.keys() == truth.keys()
    norms = {name: float(torch.linalg.vector_norm(expected.double())) for name, expected in truth.items()}
    for name, expected in truth.items():
        error, *spread = (float(torch.linalg.vector_norm((results[name] - expected).double())) for results in (got, *nudged))
        eps = torch.finfo(expected.dtype).eps if expected.is_floating_point() else 0
        bound = max(spread) + eps * (ROUNDINGS * norms[name] + remainders * max(norms.values()))
        assert error <= bound, f"{name}: differs by {error:.3g}, rounding allows {bound:.3g}; norm {norms[name]:.3g}"


def nudged_gradients(network: torch.nn.Module, objective: Callable[[torch.nn.Module], Tensor], seeds: Sequence[int | None]) -> list[dict[str, Tensor]]:
    """The gradients of `objective(network)` by parameter, with the parameters nudged by each seed, or for None as they are."""
    results = []
    for seed in seeds:
        moved = copy.deepcopy(network).requires_grad_(True)
        if seed is not None:
            nudge(moved.parameters(), seed)
        names, parameters = zip(*moved.named_parameters())
        results.append(dict(zip(names, torch.autograd.grad(objective(moved), parameters))))
    return results


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
    got, allowed = (golden_results(operator, number, names, f, torch.float32) for f in (fast, reference))
    assert_errs_as_little(*({name: pair[i] for name, pair in results.items()} for results, i in ((got, 0), (allowed, 0), (got, 1))))


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
