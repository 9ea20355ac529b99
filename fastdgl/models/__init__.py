"""The networks, built from the numbers of a config."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from . import biggan, stylegan2
from .pretrained import build

# family -> (generator, discriminator)
FAMILIES: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "stylegan2": (stylegan2.Generator, stylegan2.Discriminator),
    "biggan": (biggan.Generator, biggan.Discriminator),
}


def generator(family: str, arguments: Mapping[str, Any]) -> nn.Module:
    return build(FAMILIES[family][0], arguments)


def discriminator(family: str, arguments: Mapping[str, Any]) -> nn.Module:
    return build(FAMILIES[family][1], arguments)
