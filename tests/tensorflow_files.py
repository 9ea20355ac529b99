"""Stand-ins for pickles of NVIDIA's TensorFlow code, written from what is known of their format."""

import contextlib
import pickle
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

State = Mapping[str, Tensor]


class Network:
    """As pickled by name: a network in `dnnlib.tflib.network`."""

    def __init__(self, name: str, function: str, variables: Mapping[str, np.ndarray], components: Mapping[str, "Network"] = {}, **settings):
        self.state = {"version": 4, "name": name, "static_kwargs": settings, "components": dict(components),
                      "build_module_src": "raise SystemExit('ran')", "build_func_name": function, "variables": list(variables.items())}

    def __getstate__(self):
        return self.state

    def __setstate__(self, state):
        raise AssertionError("the reader called what the writer named")


@contextlib.contextmanager
def tensorflow_modules() -> Iterator[None]:
    """While it lasts, the class is where NVIDIA's code has it."""
    names = ("dnnlib", "dnnlib.tflib", "dnnlib.tflib.network")
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    sys.modules["dnnlib.tflib.network"].Network = Network
    Network.__module__ = "dnnlib.tflib.network"
    try:
        yield
    finally:
        Network.__module__ = __name__
        for name in names:
            del sys.modules[name]


def linear(state: State, key: str) -> np.ndarray:                         # [out, in] -> [in, out]
    return state[key].numpy().transpose()


def convolution(state: State, key: str) -> np.ndarray:                    # [O, I, k, k] -> [k, k, I, O]
    return state[key].numpy().transpose(2, 3, 1, 0)


def modulated(state: State, ours: str, turned: bool = False) -> dict[str, np.ndarray]:
    weight = convolution(state, f"{ours}.weight")
    return {"weight": weight[::-1, ::-1] if turned else weight, "bias": state[f"{ours}.bias"].numpy(),
            "mod_weight": linear(state, f"{ours}.affine.weight"), "mod_bias": state[f"{ours}.affine.bias"].numpy() - 1}


def below(place: str, variables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{place}/{name}": value for name, value in variables.items()}


def generator(name: str, state: State, **settings) -> Network:
    """G of ours as theirs."""
    synthesis: dict[str, np.ndarray] = {"lod": np.float32(0), **below("4x4/Const", {"const": state["synthesis.b4.const"].numpy()[None]})}
    R = 4
    while f"synthesis.b{R}.torgb.weight" in state:
        first = 2 * int(np.log2(R)) - 5
        for ours, place, number in [("conv1", "Conv", 0)] if R == 4 else [("conv0", "Conv0_up", first), ("conv1", "Conv1", first + 1)]:
            layer = f"synthesis.b{R}.{ours}"
            synthesis |= below(f"{R}x{R}/{place}", modulated(state, layer, turned=ours == "conv0"))
            # of a variable without dimensions TensorFlow gives a number of NumPy's
            synthesis[f"{R}x{R}/{place}/noise_strength"] = np.float32(state[f"{layer}.noise_strength"].item())
            synthesis[f"noise{number}"] = state[f"{layer}.noise_const"].numpy()[None, None]
        synthesis |= below(f"{R}x{R}/ToRGB", modulated(state, f"synthesis.b{R}.torgb"))
        R *= 2
    mapping: dict[str, np.ndarray] = {}
    if "mapping.embed.weight" in state:
        mapping |= {"LabelEmbed/weight": linear(state, "mapping.embed.weight"), "LabelEmbed/bias": state["mapping.embed.bias"].numpy()}
    i = 0
    while f"mapping.fc{i}.weight" in state:
        mapping |= {f"Dense{i}/weight": linear(state, f"mapping.fc{i}.weight"), f"Dense{i}/bias": state[f"mapping.fc{i}.bias"].numpy()}
        i += 1
    parts = {"synthesis": Network("G_synthesis", "G_synthesis_stylegan2", synthesis), "mapping": Network("G_mapping", "G_mapping", mapping)}
    return Network(name, "G_main", {"lod": np.float32(0), "dlatent_avg": state["mapping.w_avg"].numpy()}, parts,
                   truncation_psi=0.5, resolution=R // 2, fmap_base=16 << 10, **settings)


def discriminator(state: State, **settings) -> Network:
    """D of ours as theirs."""
    variables: dict[str, np.ndarray] = {}
    for key in state:
        layer, _, kind = key.rpartition(".")
        block, _, part = layer.partition(".")
        if kind != "weight":
            continue
        R = block.removeprefix("b")
        place = {"fromrgb": f"{R}x{R}/FromRGB", "conv0": f"{R}x{R}/Conv0", "conv1": f"{R}x{R}/Conv1_down", "skip": f"{R}x{R}/Skip", "conv": "4x4/Conv",
                 "fc": "4x4/Dense0", "out": "Output"}[part]
        variables[f"{place}/weight"] = linear(state, key) if part in ("fc", "out") else convolution(state, key)
        if f"{layer}.bias" in state:
            variables[f"{place}/bias"] = state[f"{layer}.bias"].numpy()
    return Network("D", "D_stylegan2", variables, **settings)


def pickled(data: object, protocol: int = 4) -> bytes:
    with tensorflow_modules():
        return pickle.dumps(data, protocol=protocol)


def write_tensorflow(path: Path, states: Mapping[str, State], protocol: int = 4, G: Mapping = {}, D: Mapping = {}) -> Path:
    """A pickle as their training writes it: (G, D, Gs)."""
    path.write_bytes(pickled((generator("G", states["G"], **G), discriminator(states["D"], **D), generator("Gs", states["G_ema"], **G)), protocol))
    return path
