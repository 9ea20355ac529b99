"""What every foreign format is read into and written from: plain values and state dicts, in our names."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..sentences import printable
from .unpickling import Array, ForeignFileError

State = dict[str, Tensor]


@dataclass(frozen=True)
class Networks:
    """The networks of one file.

    arguments: `{"G": ..., "D": ...}`, what builds them; without "D" where the file has none.
    states: By name: G, G_ema, and D where the file has one. Where the file holds no G, it is G_ema's.
    notes: What the file holds and these do not, and what these hold and the file does not, a sentence each.
    """

    family: str
    arguments: Mapping[str, Mapping[str, Any]]
    states: Mapping[str, State]
    notes: list[str] = field(default_factory=list)


def checked_state(data: Any, what: str) -> State:
    """`data` as a state dict in fp32.

    Raises:
        ForeignFileError: It is none.
    """
    if not isinstance(data, dict):
        raise ForeignFileError(f"{what} is no state dict")
    state = {}
    for key, value in data.items():
        value = torch.from_numpy(value.value) if isinstance(value, Array) else value
        if not isinstance(value, Tensor):
            raise ForeignFileError(f"{what}: {key!r} is no tensor")
        state[str(key)] = value.as_subclass(Tensor).float()
    return state


def with_both_generators(states: Mapping[str, State]) -> tuple[dict[str, State], list[str]]:
    """`states` with G and G_ema, where one may stand for the other; and the sentence that says so.

    Raises:
        ForeignFileError: Neither is there.
    """
    missing = [name for name in ("G", "G_ema") if name not in states]
    if len(missing) == 2:
        raise ForeignFileError("holds no generator, neither G nor G_ema")
    if not missing:
        return dict(states), []
    other = "G_ema" if missing == ["G"] else "G"
    return {**states, missing[0]: states[other]}, [f"{missing[0]} is not in the file, and is the same as its {other}"]


def notes_on_rest(names: Iterable[Any]) -> list[str]:
    """The sentence on what else a file holds, if it holds something."""
    left_out = ", ".join(map(str, names))
    return [printable(f"left out, since fastdgl has no use for it: {left_out}")] if left_out else []


def size(state: Mapping[str, Tensor], key: str, dim: int, what: str) -> int:
    """The length of `state[key]` along `dim`.

    Raises:
        ForeignFileError: There is no such tensor, or it has fewer dimensions.
    """
    if key not in state:
        raise ForeignFileError(f"{what}: has no {key}, so it is no network that fastdgl knows")
    if state[key].ndim <= dim:
        raise ForeignFileError(f"{what}: {key} is {list(state[key].shape)}, which is no network that fastdgl knows")
    return state[key].shape[dim]


def count(state: Mapping[str, Tensor], pattern: str, first: int = 0) -> int:
    """How many of `pattern` with `first`, `first` + 1, ... in it are there without a gap."""
    i = first
    while pattern.format(i) in state:
        i += 1
    return i - first


def channel_arguments(channels: Mapping[int, int], what: str) -> dict[str, int]:
    """channel_base and channel_max of a network with these widths by resolution.

        channels[R] = min(channel_base // R, channel_max)

    Raises:
        ForeignFileError: There are none.
    """
    found = {"channel_base": max(R * C for R, C in channels.items()), "channel_max": max(channels.values())}
    if any(C != min(found["channel_base"] // R, found["channel_max"]) for R, C in channels.items()):
        widths = ", ".join(f"{C} at {R}x{R}" for R, C in channels.items())
        raise ForeignFileError(f"{what}: its channels are {widths}; fastdgl builds networks of min(base / resolution, max) channels")
    return found
