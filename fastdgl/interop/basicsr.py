"""Generators of BasicSR's StyleGAN2, read and written: a dict with `params_ema`, and `params` while it trained.

They are rosinality's with other names, and keep no filters. A discriminator is in a file of its own, which is not read.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from . import rosinality
from .networks import Networks, State

NAMES = {"params": "G", "params_ema": "G_ema"}

# rosinality's name -> theirs; each is undone by its neighbour in the second list
TO_THEIRS = ((r"^style\.", "style_mlp."), (r"^input\.input$", "constant_input.weight"), (r"^noises\.noise_(\d+)$", r"noises.noise\1"),
             (r"^(conv1|convs\.\d+)\.noise\.weight$", r"style_\1.weight"), (r"^(conv1|convs\.\d+)\.", r"style_\1."),
             (r"\.conv\.", ".modulated_conv."))
TO_ROSINALITY = ((r"^style_mlp\.", "style."), (r"^constant_input\.weight$", "input.input"), (r"^noises\.noise(\d+)$", r"noises.noise_\1"),
                 (r"^style_(conv1|convs\.\d+)\.weight$", r"\1.noise.weight"), (r"^style_(conv1|convs\.\d+)\.", r"\1."),
                 (r"\.modulated_conv\.", ".conv."))


def renamed(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def networks(found: Mapping[str, State], latent_avg: Any, rest: Iterable[str]) -> Networks:
    """As `rosinality.networks`, of state dicts in BasicSR's names."""
    theirs = {name: {renamed(key, TO_ROSINALITY): value for key, value in state.items()} for name, state in found.items()}
    return rosinality.networks(theirs, latent_avg, rest)


def write(networks: Networks) -> tuple[dict[str, Any], list[str]]:
    """What `torch.save` makes a file of, and what it does not say.

    Raises:
        ForeignFileError: Their code cannot build these networks.
    """
    rosinality.check_writable(networks, "BasicSR")
    G = networks.arguments["G"]
    data: dict[str, Any] = {theirs: {renamed(key, TO_THEIRS): value for key, value in rosinality.their_generator(networks.states[ours], G).items()}
                            for theirs, ours in NAMES.items()}
    data["latent_avg"] = networks.states["G_ema"]["mapping.w_avg"]
    notes = [*rosinality.lost_settings(networks), *rosinality.widths_to_set(G)]
    if "D" in networks.states:
        notes.append("D is left out: BasicSR keeps one in a file of its own")
    return data, notes
