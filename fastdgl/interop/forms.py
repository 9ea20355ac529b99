"""Where in a file the networks are: in a dict of them, in a dict within, or one by itself; known by the parameters that they have."""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from .networks import checked_state, unwrapped
from .unpickling import Array, ForeignFileError, PersistentObject

# codebase, kind of network, and parameters that no other network has
SIGNATURES = (
    ("nvidia", "G", ("synthesis.b4.conv1.weight", "synthesis.b4.const")),
    ("nvidia", "G", ("synthesis.input.weight",)),
    ("nvidia", "D", ("b4.out.weight", "b4.conv.weight")),
    ("rosinality", "G", ("to_rgb1.conv.weight", "conv1.conv.weight")),
    ("rosinality", "D", ("final_conv.0.weight", "convs.0.0.weight")),
    ("basicsr", "G", ("style_conv1.modulated_conv.weight",)),
    ("basicsr", "D", ("final_conv.0.weight", "conv_body.0.0.weight")),
    ("biggan", "G", ("linear.weight", "blocks.0.0.conv1.weight", "output_layer.2.weight")),
    ("biggan", "D", ("linear.weight", "blocks.0.0.conv1.weight", "embed.weight")),
)
# of dicts within dicts
DEPTH = 4
# in one file: for each, all names of the dict that it lies in are looked through
MAX_NETWORKS = 32
AVERAGED = re.compile(r"ema|averag|_avg|shadow|smooth|(^|[._])gs($|[._])")


class Network(NamedTuple):
    """A network in a file.

    where: The keys that lead to it, with dots.
    state: Its state dict, or its module.
    """

    where: str
    codebase: str
    kind: str
    state: Mapping[str, Any] | PersistentObject

    @property
    def slot(self) -> str:
        """Which of our names it has."""
        averaged = AVERAGED.search(self.where.lower()) is not None
        return {"G": "G_ema" if averaged else "G", "D": "D_ema" if averaged else "D"}[self.kind]


@dataclass
class Contents:
    """What is in a file.

    networks: By our names.
    latent_avg: The mean of w that lies beside a network; None where none does.
    rest: The keys of what else there is.
    """

    networks: dict[str, Network] = field(default_factory=dict)
    latent_avg: Any = None
    rest: list[str] = field(default_factory=list)

    @property
    def codebase(self) -> str:
        return next(iter(self.networks.values())).codebase


def contents(data: Any) -> Contents:
    """The networks in what was unpickled.

    Raises:
        ForeignFileError: It holds no generator, several for one of our names, or more than MAX_NETWORKS.
    """
    found, contents = list(itertools.islice(networks_in(data), MAX_NETWORKS + 1)), Contents()
    if len(found) > MAX_NETWORKS:
        raise ForeignFileError(f"holds more than {MAX_NETWORKS} networks; save the ones that are meant by themselves")
    generators = {network.codebase for network in found if network.kind == "G"}
    if len(generators) > 1:
        raise ForeignFileError(f"holds generators of several codebases, at {places(found)}; save the one that is meant by itself")
    for network in found:
        if network.codebase in generators and network.slot in ("G", "D", "G_ema"):
            if network.slot in contents.networks:
                raise ForeignFileError(f"holds more than one {network.slot}, at {places([contents.networks[network.slot], network])}; "
                                       "save the one that is meant by itself")
            contents.networks[network.slot] = network
    if not generators:
        # of BigGAN-PyTorch's the generator lies in a file beside it
        if len(found) == 1 and found[0].codebase == "biggan":
            contents.networks["D"] = found[0]
        elif found:
            raise ForeignFileError(f"holds a discriminator by itself{f', at {found[0].where}' if found[0].where else ''}, which generates nothing; "
                                   "expected a file with its generator too")
        return contents
    contents.latent_avg = next(latents_in(data), None)
    used = {network.where.partition(".")[0] for network in contents.networks.values()} | {"latent_avg"}
    # of a state dict by itself the keys are those of its tensors
    if isinstance(data, dict) and "" not in used:
        names = [unwrapped(str(key)).partition(".")[0] for key, value in data.items() if value is not None]
        contents.rest = [name for name in dict.fromkeys(names) if name not in used]
    return contents


def places(networks: list[Network]) -> str:
    return " and ".join(repr(network.where) for network in networks)


def networks_in(data: Any, where: tuple[str, ...] = ()) -> Iterator[Network]:
    """Every network in what was unpickled."""
    if isinstance(data, PersistentObject):
        kind = kind_of_module(data)
        if kind:
            yield Network(".".join(where), "nvidia", kind, data)
    elif isinstance(data, dict):
        yield from in_state_dict(data, where)
        for key, value in data.items():
            if isinstance(value, (dict, PersistentObject)) and len(where) < DEPTH:
                yield from networks_in(value, (*where, str(key)))


def kind_of_module(module: PersistentObject) -> str:
    """"G" or "D" of a network of NVIDIA's; empty for anything else."""
    modules = module.state.get("_modules")
    if not isinstance(modules, dict):
        return ""
    return "G" if {"mapping", "synthesis"} <= modules.keys() else "D" if "b4" in modules else ""


def in_state_dict(data: Mapping[Any, Any], where: tuple[str, ...]) -> Iterator[Network]:
    """The networks whose tensors lie in one dict, each below a prefix of its own."""
    keys = {unwrapped(key): key for key, value in data.items() if isinstance(key, str) and isinstance(value, (Tensor, Array))}
    for codebase, kind, (first, *others) in SIGNATURES:
        for key in keys:
            prefix = key.removesuffix(first)
            if not key.endswith(first) or (prefix and not prefix.endswith(".")) or any(prefix + other not in keys for other in others):
                continue
            # a state dict by itself is all that there is; below a prefix lies one of several
            tensors = {name: value for name, value in data.items() if name != "latent_avg"}
            if prefix:
                tensors = {name.removeprefix(prefix): data[original] for name, original in keys.items() if name.startswith(prefix)}
            place = ".".join([*where, *prefix.strip(".").split(".")]).strip(".")
            yield Network(place, codebase, kind, checked_state(tensors, place or "the file"))


def latents_in(data: Any, depth: int = 0) -> Iterator[Any]:
    """Every `latent_avg`, the outer first."""
    if isinstance(data, dict):
        if data.get("latent_avg") is not None:
            yield data["latent_avg"]
        for value in data.values():
            if depth < DEPTH:
                yield from latents_in(value, depth + 1)
