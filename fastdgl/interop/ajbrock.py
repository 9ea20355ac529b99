"""Folders of ajbrock/BigGAN-PyTorch, read and written: `G.pth`, `D.pth` and `G_ema.pth`, a state dict each.

Names and shapes of parameters are ours; the numbers that build the networks are read from the shapes.
"""

import os
from pathlib import Path
from typing import Any

from .networks import Networks, State, checked_state, count, size, with_both_generators
from .unpickling import ForeignFileError, load

FILES = {"G": "G.pth", "D": "D.pth", "G_ema": "G_ema.pth"}
# in no file, and of no weight: both keep a norm from zero
SN_EPS = 1e-6


def recognises(folder: Path) -> bool:
    return any(os.path.isfile(folder / FILES[name]) for name in ("G", "G_ema"))


def read(folder: Path) -> Networks:
    """The networks of a folder.

    Raises:
        ForeignFileError: A file is damaged, or holds no BigGAN that fastdgl can build.
        OSError: A file cannot be read.
    """
    states = {}
    for name, file in FILES.items():
        if os.path.isfile(folder / file):
            try:
                data = load(folder / file)
            except ForeignFileError as error:
                raise ForeignFileError(f"{file}: {error}") from None
            states[name] = checked_state(data, file)
    states, notes = with_both_generators(states)
    arguments = {"G": generator_arguments(states["G_ema"])}
    if "D" in states:
        arguments["D"] = discriminator_arguments(states["D"])
    notes.append(f"the files do not say their SN_eps: it is taken to be {SN_EPS:g}")
    return Networks("biggan", arguments, states, notes)


def generator_arguments(state: State) -> dict[str, Any]:
    """What builds G."""
    what = "the generator"
    blocks = count(state, "blocks.{}.0.conv1.weight")
    resolution = 4 * 2**blocks
    chunk = size(state, "linear.weight", 1, what)
    # batch norms see the shared embedding, with a chunk of z where there are chunks; or the class itself
    features = size(state, "blocks.0.0.bn1.gain.weight", 1, what)
    shared_dim = size(state, "shared.weight", 1, what) if "shared.weight" in state else 0
    hier = shared_dim > 0 and features > shared_dim
    embedding = "shared.weight" if shared_dim else "blocks.0.0.bn1.gain.weight"
    return {"z_dim": chunk * (blocks + 1) if hier else chunk, "c_dim": size(state, embedding, 0, what), "img_resolution": resolution,
            "img_channels": size(state, "output_layer.2.weight", 0, what),
            "ch": size(state, "blocks.0.0.conv1.weight", 1, what) // (4 if resolution == 32 else 16), "hier": hier, "shared_dim": shared_dim,
            "attention": attention(state, [4 * 2**(i + 1) for i in range(blocks)], what), "sn_eps": SN_EPS}


def discriminator_arguments(state: State) -> dict[str, Any]:
    """What builds D."""
    what = "the discriminator"
    blocks = count(state, "blocks.{}.0.conv1.weight")
    resolution = 4 * 2**(blocks - 1)
    halvings = 2 if resolution == 32 else blocks - 1
    return {"c_dim": size(state, "embed.weight", 0, what), "img_resolution": resolution,
            "img_channels": size(state, "blocks.0.0.conv1.weight", 1, what),
            "ch": size(state, "blocks.0.0.conv1.weight", 0, what) // (4 if resolution == 32 else 1),
            "attention": attention(state, [resolution // 2**min(i + 1, halvings) for i in range(blocks)], what), "sn_eps": SN_EPS}


def attention(state: State, resolutions: list[int], what: str) -> int:
    """The resolution of features after which self-attention stands; 0 for none."""
    found = [R for i, R in enumerate(resolutions) if f"blocks.{i}.1.gamma" in state]
    if len(found) > 1:
        raise ForeignFileError(f"{what}: has self-attention at {', '.join(map(str, found))}; fastdgl's BigGAN has it at one resolution")
    return found[0] if found else 0


def write(networks: Networks) -> tuple[dict[str, State], list[str]]:
    """The state dict for each file of a folder, and what they do not say.

    Raises:
        ForeignFileError: They are of another family.
    """
    if networks.family != "biggan":
        raise ForeignFileError(f"holds {networks.family}; a folder is what BigGAN-PyTorch keeps a BigGAN in: expected a suffix, .pt or .pth")
    G = networks.arguments["G"]
    options = f"--resolution {G['img_resolution']} --G_ch {G['ch']} --dim_z {G['z_dim']} --G_attn {G['attention']}"
    options += f" --G_shared --shared_dim {G['shared_dim']}" if G["shared_dim"] else ""
    options += " --hier" if G["hier"] else ""
    return {FILES[name]: state for name, state in networks.states.items()}, [
        f"build it with {options}", "it holds no optimizers and no state_dict.pth: their sample.py opens it, to go on their train.py wants those"]
