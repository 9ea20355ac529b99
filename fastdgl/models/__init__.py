"""The networks, built from the numbers of a config."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from . import biggan, stylegan2

# family -> (generator, discriminator)
FAMILIES: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "stylegan2": (stylegan2.Generator, stylegan2.Discriminator),
    "biggan": (biggan.Generator, biggan.Discriminator),
}


def build(network: type[nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    """The network of these arguments; `low_precision` is spelled as in a config, e.g. "bfloat16"."""
    arguments = dict(arguments)
    if "low_precision" in arguments:
        arguments["low_precision"] = getattr(torch, arguments["low_precision"])
    return network(**arguments)


def generator(family: str, arguments: Mapping[str, Any]) -> nn.Module:
    return build(FAMILIES[family][0], arguments)


def discriminator(family: str, arguments: Mapping[str, Any]) -> nn.Module:
    return build(FAMILIES[family][1], arguments)
