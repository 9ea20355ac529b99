"""Checkpoints of other codebases, to and from ours: one module per format. Nothing of a file is run, and nobody's code is needed.

Here are state dicts and plain values; the networks themselves are not known.
"""

import os
from pathlib import Path
from typing import Any

import torch

from ..atomic_files import atomically
from . import ajbrock, basicsr, nvidia, rosinality, tensorflow
from .forms import contents
from .networks import Networks, checked_state
from .unpickling import DAMAGE, PICKLE_MAGIC, ZIP_MAGIC, ForeignFileError, PersistentObject, damaged, load, load_checkpoint

__all__ = ["ForeignFileError", "Networks", "is_foreign", "load_checkpoint", "read", "write"]

# of networks that lie in one file
READERS = {"nvidia": nvidia, "rosinality": rosinality, "basicsr": basicsr}
WRITERS = {".pt": rosinality, ".pth": basicsr}


def is_foreign(path: Path) -> bool:
    """Whether the file is pickled, as the checkpoints of other codebases are, or the folder is one of BigGAN-PyTorch's.

    Raises:
        OSError: It cannot be read.
    """
    if os.path.isdir(path):
        return ajbrock.recognises(path)
    with open(path, "rb") as file:
        start = file.read(9)
    # safetensors has eight bytes of length, which may be any, and JSON
    return start.startswith(ZIP_MAGIC) or (start.startswith(PICKLE_MAGIC) and not start.endswith(b"{"))


def read(path: Path) -> Networks:
    """The networks in a file, or folder, of one of the formats, without running anything that is in it.

    Raises:
        ForeignFileError: It is damaged, asks for code to be run, or holds other networks than fastdgl has.
        OSError: It cannot be read.
    """
    if os.path.isdir(path):
        return ajbrock.read(path)
    data = load(path)
    try:
        return _networks(data, path)
    except ForeignFileError:
        raise
    except RecursionError:
        raise ForeignFileError("holds data within data, too deep to be networks") from None
    except MemoryError:
        raise ForeignFileError("asks for more memory than there is") from None
    # a file of the right names may hold anything under them
    except DAMAGE as error:
        if isinstance(error, OSError):
            raise
        raise damaged(error) from None


def _networks(data: Any, path: Path) -> Networks:
    theirs = tensorflow.networks_in(data)
    if theirs:
        return tensorflow.read(theirs, data)
    found = contents(data)
    if not found.networks:
        raise ForeignFileError(_nothing_in(data))
    states: dict[str, Any] = {name: network.state for name, network in found.networks.items()}
    if found.codebase == "biggan":
        return ajbrock.read_beside(path, states)
    return READERS[found.codebase].networks(states, found.latent_avg, found.rest)


def _nothing_in(data: Any) -> str:
    """Why there is no network in `data`, of what it looks like.

    Raises:
        ForeignFileError: A state dict in it is none.
    """
    if isinstance(data, dict):
        for key in ("g_ema", "g", "params_ema", "params"):
            if isinstance(data.get(key), dict):
                state = checked_state(data[key], key)
                if "final_linear.0.weight" in state:
                    return f"{key} is a discriminator by itself; expected a generator"
                return f"{key} has no to_rgb1.conv.weight, so it is no network that fastdgl knows"
    found = f"a dict of {', '.join(sorted(map(str, data))[:5])}" if isinstance(data, dict) else type(data).__name__
    if isinstance(data, PersistentObject):
        found = f"an object {data.class_name} of NVIDIA's code"
    return (f"is {found}; expected G, D, G_ema (NVIDIA), g, d, g_ema (rosinality) or params_ema (BasicSR), one network or its state dict, "
            f"or the folder that holds {', '.join(ajbrock.FILES.values())} (BigGAN-PyTorch)")


def write(path: Path, networks: Networks) -> list[str]:
    """Write networks in the format that goes with the suffix: `.pt` rosinality's, `.pth` BasicSR's, none BigGAN-PyTorch's folder.

    Returns:
        What the file does not say, a sentence each.

    Raises:
        ForeignFileError: That format cannot hold these networks, or fastdgl cannot write it.
        OSError: It cannot be written; nothing is left behind.
    """
    if path.suffix == ".pkl":
        raise ForeignFileError("NVIDIA's pickles hold source code of NVIDIA's, which fastdgl does not have; write a .safetensors instead, "
                               "and in a clone of theirs load its tensors G_ema.* into a Generator of the same arguments: the names are theirs")
    if path.suffix and path.suffix not in WRITERS:
        raise ForeignFileError(f"the suffix {path.suffix!r} names no format; expected .safetensors (fastdgl), .pt (rosinality), .pth (BasicSR), "
                               f"or none for a folder (BigGAN-PyTorch)")
    data, notes = WRITERS[path.suffix].write(networks) if path.suffix else ajbrock.write(networks)
    try:
        with atomically(path) as unfinished:
            if path.suffix:
                torch.save(data, unfinished)
            else:
                unfinished.mkdir()
                for name, state in data.items():
                    torch.save(state, unfinished / name)
    except RuntimeError as error:
        # of PyTorch's own file writer
        raise OSError(" ".join(str(error).split())) from None
    return notes
