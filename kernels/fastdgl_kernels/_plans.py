"""Plans: what an operator has checked and chosen for a call, kept for all calls like it.

A plan is looked up by everything that it depends on: shapes, dtypes, devices and layout, the other arguments, and the
circumstances, see `_dispatch.circumstances`. It holds no tensor. A call that fails its checks has no plan.
"""

from collections.abc import Sequence
from math import copysign
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from ._dispatch import circumstances

# the most plans of one operator, the oldest are dropped: images of ever new sizes would add to them without end
MOST_PLANS = 1024

# what may stand for itself in a key: a tensor as `gain` may have another value in the next call
_PLAIN = frozenset((bool, int, float, str, type(None)))

_every: "list[Plans]" = []


class Plans:
    """The plans of one operator, for any number of threads."""

    def __init__(self):
        self._plans: dict[tuple, Any] = {}
        self._adding = Lock()
        _every.append(self)

    def __len__(self) -> int:
        return len(self._plans)

    def find(self, impl: str | None, tensors: Sequence[Tensor | None], numbers: tuple) -> tuple[tuple | None, Any]:
        """Return the key of a call and its plan. The key is None for a call that has no plan, the plan where none is kept.

        Args:
            impl: The caller's wish, or None.
            tensors: All of the call's, the main input first.
            numbers: Its other arguments; lists as `hashable` makes them.
        """
        try:
            x = tensors[0]
            key = (
                circumstances(x.device, impl),
                x.stride(),
                *[t if t is None else (t.shape, t.dtype, t.device) for t in tensors],
                numbers,
                # 1, 1.0 and True are equal, and not all are accepted
                *map(type, numbers),
            )
            if 0.0 in numbers:
                # so are 0.0 and -0.0
                key += tuple(copysign(1.0, n) for n in numbers if type(n) is float)
            return (key, self._plans.get(key)) if key[0] is not None else (None, None)
        except (AttributeError, TypeError, RuntimeError):
            # no tensor, a list in a list, or sizes that whoever traces takes for unknown: checks say what they have to say
            return None, None

    def keep(self, key: tuple | None, plan: Any, impl: str | None, device: torch.device, numbers: tuple) -> Any:
        """Keep a plan that was made under `key`, and return it.

        It is not kept where making it has changed the circumstances, as reading a verdict does, nor while
        `torch.jit.trace` stands tensors in for sizes.
        """
        if key is None or key[0] != circumstances(device, impl) or torch.jit.is_tracing() or not _are_plain(numbers):
            return plan
        with self._adding:
            self._plans[key] = plan
            while len(self._plans) > MOST_PLANS:
                del self._plans[next(iter(self._plans))]
        return plan

    def clear(self) -> None:
        """Drop all plans."""
        with self._adding:
            self._plans.clear()


def forget_plans() -> None:
    """Drop the plans of all operators."""
    for plans in _every:
        plans.clear()


def hashable(argument: Any) -> Any:
    """Return an argument that may be a list of integers for `numbers`."""
    if type(argument) is int:
        return argument
    return (*argument, *map(type, argument)) if isinstance(argument, (list, tuple)) else argument


def _are_plain(numbers: tuple) -> bool:
    return all(
        type(n) in _PLAIN or type(n) is tuple and all(type(m) in _PLAIN or isinstance(m, type) for m in n) for n in numbers
    )
