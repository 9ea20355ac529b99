"""What every foreign format is read into and written from: plain values and state dicts, in our names."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..sentences import printable
from .unpickling import Array, ForeignFileError

State = dict[str, Tensor]
# of images; a file may leave the noise of a layer out, which is as large
MAX_RESOLUTION = 4096
# modules around a network: DataParallel and its like, torch.compile, FSDP, activation checkpointing, DeepSpeed
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}


@dataclass(frozen=True)
class Networks:
    """The networks of one file.

    arguments: `{"G": ..., "D": ...}`, what builds them; without "D" where the file has none.
    states: By name: G, G_ema, and D where the file has one. Where the file holds no G, it is G_ema's.
    notes: What the file holds and these do not, and what these hold and the file does not, a sentence each.
    unusable: Why fastdgl cannot build the file's D, which is left out; empty where it can, or where there is none.
    """

    family: str
    arguments: Mapping[str, Mapping[str, Any]]
    states: Mapping[str, State]
    notes: list[str] = field(default_factory=list)
    unusable: str = ""


def unwrapped(key: str) -> str:
    """The name of a parameter without those of the modules that wrapped the network when it was saved."""
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def checked_state(data: Any, what: str) -> State:
    """`data` as a state dict in fp32, under the names that its tensors have in the network alone.

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
        name = unwrapped(str(key))
        if name in state:
            raise ForeignFileError(f"{what}: {key!r} is there twice, once in a wrapper")
        state[name] = value.as_subclass(Tensor).float()
    # of torch.optim.swa_utils.AveragedModel
    state.pop("n_averaged", None)
    return state


def mean_latent(value: Any, w_dim: int) -> tuple[Tensor, list[str]]:
    """The mean of w `[w_dim]` from what a file has of it: one w, one for each layer, or either in a batch; and what is lost.

    Raises:
        ForeignFileError: It is of another shape.
    """
    w = checked_state({"latent_avg": value}, "the file")["latent_avg"]
    if w.ndim == 0 or w.shape[-1] != w_dim or w.numel() == 0:
        raise ForeignFileError(f"latent_avg is {list(w.shape)}; expected [{w_dim}], [1, {w_dim}] or a row of {w_dim} for each layer")
    rows = w.reshape(-1, w_dim)
    if (rows == rows[0]).all():
        return rows[0].clone(), []
    return rows.mean(dim=0), [f"latent_avg is another w for each of {len(rows)} layers; fastdgl truncates to one, and their mean is taken"]


def fixed_noise(names: Iterable[tuple[str, int]]) -> State:
    """Return the noise of each layer, `[R, R]`, for a file without any: by its name and R, the same every time.

    Raises:
        ForeignFileError: A layer is larger than any network.
    """
    names = list(names)
    for name, R in names:
        if R > MAX_RESOLUTION:
            raise ForeignFileError(f"holds the layer {name.rpartition('.')[0]} of {R}x{R} pixels; expected at most {MAX_RESOLUTION}x{MAX_RESOLUTION}")
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(R, R, generator=generator) for name, R in names}


NOISE_MADE_UP = "the fixed noise of the layers is not in the file: it is made of random numbers, the same every time"


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


def channel_arguments(channels: Mapping[int, int], what: str, const: int | None = None) -> dict[str, Any]:
    """The arguments that build a network of these widths by resolution.

    They are min(channel_base // R, channel_max) * fraction where that gives the widths, and a list `channels` where not.

    Args:
        const: Channels of G's learned constant, which those of its convolutions are a fraction of; None where they are the same.

    Raises:
        ForeignFileError: There are none.
    """
    fraction = 1 if const in (None, channels[4]) else channels[4] / const
    full = {R: round(C / fraction) for R, C in channels.items()}
    if any(full[R] * fraction != C for R, C in channels.items()):
        widths = ", ".join(f"{C} at {R}x{R}" for R, C in channels.items())
        raise ForeignFileError(f"{what}: its constant has {const} channels and its convolutions {widths}; fastdgl's have the same part of the "
                               f"channels that a wider network would have at every resolution")
    found = {"channel_base": max(R * C for R, C in full.items()), "channel_max": max(full.values()), "fraction": fraction}
    if any(C != min(found["channel_base"] // R, found["channel_max"]) for R, C in full.items()):
        found["channels"] = [full[R] for R in sorted(full)]
    return found


def widths(arguments: Mapping[str, Any]) -> dict[int, int]:
    """The channels of the convolutions of a network of these arguments, by resolution."""
    listed = [2**i for i in range(2, arguments["img_resolution"].bit_length())]
    full = arguments.get("channels") or [min(arguments["channel_base"] // R, arguments["channel_max"]) for R in listed]
    return {R: int(C * arguments["fraction"]) for R, C in zip(listed, full)}
