"""Stand-ins for files of other codebases, written from what is known of their formats."""

import contextlib
import pickle
import re
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


class EasyDict(dict):
    """As pickled by name: a dict in `dnnlib.util`."""


def _reconstruct_persistent_obj(meta):
    raise AssertionError("the reader called what the writer named")


class Persistent:
    """An object that NVIDIA's torch_utils.persistence has pickled: its attributes, with the source of its class."""

    def __init__(self, class_name: str, state: dict, module_src: str = "raise SystemExit('ran')"):
        self.class_name, self.state, self.module_src = class_name, state, module_src

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": self.module_src, "class_name": self.class_name, "state": self.state}
        return _reconstruct_persistent_obj, (meta,), None


@contextlib.contextmanager
def nvidias_modules() -> Iterator[None]:
    """While it lasts, the two names are where NVIDIA's code has them."""
    homes = {"dnnlib.util": EasyDict, "torch_utils.persistence": _reconstruct_persistent_obj}
    for name, item in homes.items():
        package = name.partition(".")[0]
        sys.modules[package], sys.modules[name] = types.ModuleType(package), types.ModuleType(name)
        item.__module__, item.__qualname__ = name, item.__name__
        setattr(sys.modules[name], item.__name__, item)
    try:
        yield
    finally:
        for name in homes:
            del sys.modules[name.partition(".")[0]], sys.modules[name]


def pickled(data: object, protocol: int = 4) -> bytes:
    with nvidias_modules():
        return pickle.dumps(data, protocol=protocol)


def nvidia_network(class_name: str, tensors: Mapping[str, Tensor], *, init_kwargs: Mapping = {}, changed: Mapping[str, Mapping] = {},
                   **numbers) -> Persistent:
    """A network of theirs: modules in modules, each with its settings as attributes.

    Args:
        tensors: Its state dict.
        changed: Settings of single layers, by their names.
        numbers: conv_clamp, low (the resolutions in 16 bits), group_size.
    """
    names = {""} | {name.rsplit(".", i)[0] for name in tensors for i in range(1, name.count(".") + 1)}
    names |= {"b4.mbstd"} if class_name == "Discriminator" else set()

    def module(name: str) -> Persistent:
        depth = name.count(".") + 1 if name else 0
        prefix = name + "." if name else ""
        own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix) and key.count(".") == depth}
        buffers = {key: value for key, value in own.items() if key in ("resample_filter", "noise_const", "w_avg")}
        children = sorted(child for child in names if child and child.startswith(prefix) and child.count(".") == depth)
        parameters = {key: nn.Parameter(value) for key, value in own.items() if key not in buffers}
        state = {"training": False, "_parameters": OrderedDict(parameters), "_buffers": OrderedDict(buffers), "_non_persistent_buffers_set": set(),
                 "_backward_hooks": OrderedDict(), "_is_full_backward_hook": None,
                 "_modules": OrderedDict((child.removeprefix(prefix), module(child)) for child in children),
                 "_init_args": (), "_init_kwargs": dict(init_kwargs) if not name else {}}
        return Persistent(class_name if not name else "Layer", state | _settings(name, class_name, **numbers) | changed.get(name, {}))

    return module("")


def _settings(name: str, class_name: str, conv_clamp: float | None = None, low: tuple[int, ...] = (), group_size: int = 4) -> dict:
    layer = name.rpartition(".")[2]
    if layer in ("conv0", "conv1", "conv", "fromrgb"):
        return {"activation": "lrelu", "conv_clamp": conv_clamp, "weight_gain": np.float64(0.25), "use_noise": True, "act_gain": np.float64(2**0.5)}
    if layer in ("skip", "torgb"):
        return {"activation": "linear", "conv_clamp": None if layer == "skip" else conv_clamp, "weight_gain": np.float64(0.25)}
    if layer in ("affine", "embed", "out"):
        return {"activation": "linear", "bias_gain": 1}
    if layer == "mapping":
        return {"w_avg_beta": 0.995}
    if layer == "mbstd":
        return {"group_size": group_size, "num_channels": 1}
    if re.fullmatch(r"fc\d*", layer):
        return {"activation": "lrelu", "bias_gain": 1 if layer == "fc" else 0.01}
    if re.fullmatch(r"b\d+", layer):
        return {"architecture": "resnet" if class_name == "Discriminator" else "skip", "use_fp16": int(layer[1:]) in low}
    return {}


def write_nvidia(path: Path, G: Mapping[str, Tensor], D: Mapping[str, Tensor], *, average: Mapping[str, Tensor] | None = None, protocol: int = 4,
                 D_changes: Mapping = {}, G_changes: Mapping = {}, **numbers) -> Path:
    """A pickle as NVIDIA's training loops write it."""
    group = numbers.pop("group_size", 4)
    path.write_bytes(pickled({
        "G": nvidia_network("Generator", G, changed=G_changes, init_kwargs={"mapping_kwargs": EasyDict(), "z_dim": 1}, **numbers),
        "D": nvidia_network("Discriminator", D, changed=D_changes, group_size=group, **numbers),
        "G_ema": nvidia_network("Generator", G if average is None else average, changed=G_changes, **numbers),
        "augment_pipe": nvidia_network("AugmentPipe", {"p": torch.zeros([])}), "training_set_kwargs": EasyDict(path="ffhq.zip", use_labels=False),
    }, protocol))
    return path
