"""Folders of ajbrock/BigGAN-PyTorch, read and written: `G.pth`, `D.pth` and `G_ema.pth`, a state dict each.

Beside the latest networks lie copies, such as `G_copy0.pth`, and the best ones, such as `G_best0.pth`, each set with a suffix of its own.
Names and shapes of parameters are ours; the numbers that build the networks are read from the shapes.
"""

import os
import re
from pathlib import Path
from typing import Any

from .networks import Networks, State, checked_state, count, size, with_both_generators
from .unpickling import ForeignFileError, load

FILES = {"G": "G.pth", "D": "D.pth", "G_ema": "G_ema.pth"}
# network and suffix; the optimizers of both are in files of the same form
FILE = re.compile(r"(G_ema|G|D)((?:_(?!optim|ema)[A-Za-z0-9.-]+)?)\.pth")
# of a norm within a norm: their name -> ours; the rest of it only counts
STATISTICS = {"running_mean": "stored_mean", "running_var": "stored_var", "stored_mean": "stored_mean", "stored_var": "stored_var"}
# in no file, and of no weight: both keep a norm from zero
SN_EPS = 1e-6


def sets(folder: Path) -> dict[str, dict[str, str]]:
    """The files of networks in a folder, `{suffix: {"G": "G_best0.pth", ...}}`, of each suffix that a generator has."""
    found: dict[str, dict[str, str]] = {}
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return {}
    for name in names:
        match = FILE.fullmatch(name)
        if match is not None and os.path.isfile(folder / name):
            found.setdefault(match[2], {})[match[1]] = name
    return {suffix: files for suffix, files in found.items() if "G" in files or "G_ema" in files}


def recognises(folder: Path) -> bool:
    return bool(sets(folder))


def chosen_suffix(folder: Path, suffixes: list[str]) -> str:
    """The set that a folder stands for: the latest, as for their sample.py; else the best, else the copy, that was written last."""
    if "" in suffixes:
        return ""

    def rank(suffix: str) -> tuple[bool, int, float, int]:
        files = sets(folder)[suffix]
        written = os.path.getmtime(folder / files.get("G_ema", files.get("G", "")))
        number = re.search(r"\d+$", suffix)
        return suffix.startswith("_best"), iterations(folder / f"state_dict{suffix}.pth"), written, int(number[0]) if number else -1

    return max(suffixes, key=rank)


def iterations(path: Path) -> int:
    """How far training was, as their state_dict.pth says; -1 where there is none that says so."""
    try:
        steps = load(path)["itr"]
    except (OSError, ForeignFileError, LookupError, TypeError):
        return -1
    return steps if type(steps) is int else -1


def read(folder: Path) -> Networks:
    """The networks of a folder, of one suffix.

    Raises:
        ForeignFileError: A file is damaged, or holds no BigGAN that fastdgl can build.
        OSError: A file cannot be read.
    """
    found = sets(folder)
    suffix = chosen_suffix(folder, list(found))
    files, notes = found.pop(suffix), []
    if found:
        others = [theirs.get("G_ema", theirs.get("G", "")) for theirs in found.values()]
        notes = [f"{files.get('G_ema', files.get('G'))} and what belongs to it are taken; for others in the folder name their file: {', '.join(others)}"]
    return networks(read_files(folder, files), notes)


def read_beside(path: Path, states: dict[str, State]) -> Networks:
    """The networks of one file, with those of its suffix that lie beside it.

    Args:
        states: Of the file: of G, G_ema or D, by its name where that says so.

    Raises:
        ForeignFileError, OSError: As of `read`.
    """
    match, notes = FILE.fullmatch(path.name), []
    files = sets(path.parent).get(match[2], {}) if match else {}
    if match and files.get(match[1]) == path.name:
        # G.pth by its name is G, and not the average beside it
        beside = {name: file for name, file in files.items() if name != match[1] and not (match[1] == "G" and name == "G_ema")}
        if match[1] == "G" and "G_ema" in files:
            notes = [f"{path.name} is G without averaging; the averaged one is in {files['G_ema']}"]
        states = {match[1]: next(iter(states.values()))} | read_files(path.parent, beside)
    return networks(states, notes)


def read_files(folder: Path, files: dict[str, str]) -> dict[str, State]:
    """The state dict in each file."""
    states = {}
    for name, file in files.items():
        try:
            data = load(folder / file)
        except ForeignFileError as error:
            raise ForeignFileError(f"{file}: {error}") from None
        states[name] = checked_state(data, file)
    return states


def networks(states: dict[str, State], notes: list[str]) -> Networks:
    """Our networks from their state dicts."""
    states, made_up = with_both_generators({name: state if name == "D" else plain_statistics(state) for name, state in states.items()})
    arguments, unusable = {"G": generator_arguments(states["G_ema"])}, ""
    if "D" in states:
        try:
            arguments["D"] = discriminator_arguments(states["D"])
        except ForeignFileError as error:
            unusable = str(error)
            del states["D"]
    return Networks("biggan", arguments, states, [*notes, *made_up, f"the files do not say their SN_eps: it is taken to be {SN_EPS:g}"], unusable)


def plain_statistics(state: State) -> State:
    """The state dict of G with the statistics of batch norm where BigGAN-PyTorch keeps them without --cross_replica and --mybn.

    --cross_replica: `bn.running_mean`, `bn.running_var`, of a norm over all GPUs, and what it counts. --mybn: `bn.stored_mean`,
    `bn.stored_var`, which are sums over as many batches as `bn.accumulation_counter` says, where that is not 0.
    """
    plain = {}
    for key, value in state.items():
        norm, inner, name = key.rpartition(".bn.")
        if not inner:
            plain[key] = value
        elif name in STATISTICS:
            batches = state.get(f"{norm}.bn.accumulation_counter")
            sums = name.startswith("stored") and batches is not None and batches.numel() == 1 and bool(batches >= 1)
            plain[f"{norm}.{STATISTICS[name]}"] = value / batches if sums else value
    return plain


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
