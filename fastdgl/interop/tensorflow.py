"""Pickles of NVIDIA's TensorFlow code: StyleGAN2, config F, of stylegan2 and of stylegan2-ada. Read, and never written.

A pickle is a tuple of G, D and Gs, the average, each a network of networks with its variables by name, and with its source code, which is
not read. TensorFlow keeps the weight of a convolution as `[k, k, I, O]` and that of a linear layer as `[in, out]`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .networks import Networks, State, channel_arguments, checked_state, notes_on_rest, with_both_generators
from .rosinality import discriminator_filters, generator_filters
from .unpickling import Array, ForeignFileError, TensorFlowNetwork

# what fastdgl's layers are, where a setting of theirs can be another
GENERATOR = {"architecture": "skip", "nonlinearity": "lrelu", "mapping_nonlinearity": "lrelu", "mapping_lrmul": 0.01, "normalize_latents": True,
             "use_noise": True, "resample_kernel": [1, 3, 3, 1]}
DISCRIMINATOR = {"architecture": "resnet", "nonlinearity": "lrelu", "mbstd_num_features": 1, "resample_kernel": [1, 3, 3, 1]}
# of networks within networks
DEPTH = 4
CONFIG_F = "fastdgl reads StyleGAN2 of config F: a skip generator and a residual discriminator"


def networks_in(data: Any) -> dict[str, TensorFlowNetwork]:
    """Networks of theirs in what was unpickled, by our names; empty where there are none.

    Raises:
        ForeignFileError: There is no generator among them.
    """
    parts = list(data.values()) if isinstance(data, dict) else list(data) if isinstance(data, (tuple, list)) else [data]
    found = [part for part in parts if isinstance(part, TensorFlowNetwork)]
    generators = [network for network in found if "synthesis" in network.components]
    if found and not generators:
        raise ForeignFileError(f"holds {', '.join(repr(network.name) for network in found)} of TensorFlow and no generator among them; {CONFIG_F}")
    named: dict[str, TensorFlowNetwork] = {}
    for network in generators:
        # without a name that tells, the average is the last, as their training writes them
        named["G_ema" if network.name.startswith("Gs") or network is generators[-1] and len(generators) > 1 else "G"] = network
    if len(named) < len(generators):
        raise ForeignFileError(f"holds {len(generators)} generators of TensorFlow; expected G and Gs")
    named |= {"D": network for network in found if network not in generators}
    return named


def read(named: Mapping[str, TensorFlowNetwork], data: Any) -> Networks:
    """Our networks from theirs, G or G_ema among them.

    Raises:
        ForeignFileError: They are no StyleGAN2, or one that fastdgl cannot build.
    """
    arguments, states = {}, {}
    for name in ("G", "G_ema"):
        if name in named:
            # the average's are the ones that count
            arguments["G"], states[name] = generator(named[name], name)
    states, notes = with_both_generators(states)
    unusable = ""
    if "D" in named:
        try:
            arguments["D"], states["D"] = discriminator(named["D"])
        except ForeignFileError as error:
            unusable = str(error)
    rest = [key for key, value in data.items() if not isinstance(value, TensorFlowNetwork)] if isinstance(data, dict) else []
    return Networks("stylegan2", arguments, states, notes + notes_on_rest(rest), unusable)


class Variables:
    """The variables of a network and of those in it, by their full names.

    Raises:
        ForeignFileError: Of `of`: there is no variable of that name, or it has another number of dimensions.
    """

    def __init__(self, network: TensorFlowNetwork, what: str):
        self.what = what
        self.values = dict(collected(network, what))

    def of(self, name: str, ndim: int) -> Tensor:
        if name not in self.values:
            raise ForeignFileError(f"{self.what}: has no variable {name}; {CONFIG_F}")
        value = self.values[name]
        if value.ndim != ndim:
            raise ForeignFileError(f"{self.what}: its variable {name} is {list(value.shape)}; expected {ndim} dimensions")
        return value

    def linear(self, name: str) -> Tensor:                                # [in, out] -> [out, in]
        return self.of(name, 2).t()

    def convolution(self, name: str) -> Tensor:                           # [k, k, I, O] -> [O, I, k, k]
        return self.of(name, 4).permute(3, 2, 0, 1)


def collected(network: TensorFlowNetwork, what: str, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if prefix.count("/") > DEPTH:
        raise ForeignFileError(f"{what}: its networks lie within each other more than {DEPTH} deep")
    values = {name: torch.tensor(float(value)) if isinstance(value, (int, float)) else value for name, value in network.variables}
    for name, value in checked_state(values, what).items():
        yield prefix + name, value
    for name, part in network.components.items():
        if not isinstance(part, TensorFlowNetwork):
            raise ForeignFileError(f"{what}: its part {name!r} is no network of TensorFlow's")
        yield from collected(part, what, f"{prefix}{name}/")


def check_settings(network: TensorFlowNetwork, expected: Mapping[str, Any], what: str) -> None:
    """Refuse layers that compute something else than fastdgl's."""
    for key, value in expected.items():
        found = network.settings.get(key, value)
        found = found.value.tolist() if isinstance(found, Array) else list(found) if isinstance(found, tuple) else found
        if found != value:
            raise ForeignFileError(f"{what}: was built with {key} {found!r:.50}; fastdgl's StyleGAN2 has {value!r}")


def precision(network: TensorFlowNetwork, what: str) -> dict[str, Any]:
    """Which resolutions compute in 16 bits, and the bound on activations."""
    low, clamp = network.settings.get("num_fp16_res", 0), network.settings.get("conv_clamp")
    if type(low) is not int or type(clamp) not in (int, float, type(None)):
        raise ForeignFileError(f"{what}: was built with num_fp16_res {low!r:.50} and conv_clamp {clamp!r:.50}; expected numbers")
    return {"num_fp16_res": low, "low_precision": "float16", "conv_clamp": clamp}


def resolutions(variables: Variables, pattern: str) -> list[int]:
    """4, 8, ..., of those above 4 as many as there are without a gap."""
    found = [4]
    while pattern.format(2 * found[-1]) in variables.values:
        found.append(2 * found[-1])
    return found


def generator(network: TensorFlowNetwork, what: str) -> tuple[dict[str, Any], State]:
    """What builds G, and its state dict in our names."""
    check_settings(network, GENERATOR, what)
    theirs = Variables(network, what)
    if "mapping/LabelConcat/weight" in theirs.values:
        raise ForeignFileError(f"{what}: joins its classes to z before both are normalized, as the first StyleGAN2 did; fastdgl's normalizes each by itself")
    theirs.of("mapping/Dense0/weight", 2)
    listed, layers = resolutions(theirs, "synthesis/{0}x{0}/Conv1/weight"), 0
    while f"mapping/Dense{layers}/weight" in theirs.values:
        layers += 1
    state = {"mapping.w_avg": theirs.of("dlatent_avg", 1), "synthesis.b4.const": theirs.of("synthesis/4x4/Const/const", 4)[0]}
    c_dim = embedded = 0
    if "mapping/LabelEmbed/weight" in theirs.values:
        state["mapping.embed.weight"], state["mapping.embed.bias"] = theirs.linear("mapping/LabelEmbed/weight"), theirs.of("mapping/LabelEmbed/bias", 1)
        embedded, c_dim = state["mapping.embed.weight"].shape
    for i in range(layers):
        state[f"mapping.fc{i}.weight"], state[f"mapping.fc{i}.bias"] = theirs.linear(f"mapping/Dense{i}/weight"), theirs.of(f"mapping/Dense{i}/bias", 1)

    for R in listed:
        log2 = R.bit_length() - 1
        for ours, layer, noise in [("conv1", "Conv", 0)] if R == 4 else [("conv0", "Conv0_up", 2 * log2 - 5), ("conv1", "Conv1", 2 * log2 - 4)]:
            name, place = f"synthesis.b{R}.{ours}", f"synthesis/{R}x{R}/{layer}"
            state |= modulated(theirs, name, place)
            if ours == "conv0":
                # their transposed convolution turns it by itself
                state[f"{name}.weight"] = state[f"{name}.weight"].flip(2, 3)
            state[f"{name}.noise_const"] = theirs.of(f"synthesis/noise{noise}", 4)[0, 0]
            state[f"{name}.noise_strength"] = theirs.of(f"{place}/noise_strength", 0)
        state |= modulated(theirs, f"synthesis.b{R}.torgb", f"synthesis/{R}x{R}/ToRGB")
    widths = {R: len(state[f"synthesis.b{R}.conv1.weight"]) for R in listed}
    arguments = {"z_dim": state["mapping.fc0.weight"].shape[1] - embedded, "c_dim": c_dim,
                 "w_dim": len(state["mapping.w_avg"]), "mapping_layers": layers, "narrow_const": False, "img_resolution": listed[-1],
                 "img_channels": len(state["synthesis.b4.torgb.weight"]), **channel_arguments(widths, what, len(state["synthesis.b4.const"])),
                 **precision(network, what)}
    return arguments, contiguous(state) | generator_filters(listed[-1])


def modulated(theirs: Variables, ours: str, place: str) -> State:
    """Weight, bias and style of a modulated convolution; their style is added to 1."""
    return {f"{ours}.weight": theirs.convolution(f"{place}/weight"), f"{ours}.bias": theirs.of(f"{place}/bias", 1),
            f"{ours}.affine.weight": theirs.linear(f"{place}/mod_weight"), f"{ours}.affine.bias": theirs.of(f"{place}/mod_bias", 1) + 1}


def discriminator(network: TensorFlowNetwork) -> tuple[dict[str, Any], State]:
    """What builds D, and its state dict in our names."""
    check_settings(network, DISCRIMINATOR, "D")
    theirs = Variables(network, "D")
    if network.settings.get("label_size"):
        raise ForeignFileError("D: takes classes as the code of TensorFlow does, by other layers than fastdgl's")
    # where the first StyleGAN2's says nothing it is 4, where stylegan2-ada's says nothing it is the whole batch
    group = network.settings.get("mbstd_group_size", 4 if network.function == "D_stylegan2" else None)
    if type(group) is not int or group < 1:
        raise ForeignFileError(f"D: its minibatch standard deviation is over groups of {group!r:.50}; fastdgl's are of a fixed number")
    listed, state = resolutions(theirs, "{0}x{0}/Conv0/weight"), {}
    places = {"b4.conv": "4x4/Conv", f"b{listed[-1]}.fromrgb": "{0}x{0}/FromRGB".format(listed[-1])}
    for R in listed[1:]:
        places |= {f"b{R}.conv0": f"{R}x{R}/Conv0", f"b{R}.conv1": f"{R}x{R}/Conv1_down"}
        state[f"b{R}.skip.weight"] = theirs.convolution(f"{R}x{R}/Skip/weight")
    for ours, place in places.items():
        state[f"{ours}.weight"], state[f"{ours}.bias"] = theirs.convolution(f"{place}/weight"), theirs.of(f"{place}/bias", 1)
    for ours, place in (("b4.fc", "4x4/Dense0"), ("b4.out", "Output")):
        state[f"{ours}.weight"], state[f"{ours}.bias"] = theirs.linear(f"{place}/weight"), theirs.of(f"{place}/bias", 1)
    widths = {4: len(state["b4.conv.weight"])} | {R: state[f"b{R}.conv0.weight"].shape[1] for R in listed[1:]}
    arguments = {"mbstd_group_size": group, "c_dim": 0, "img_resolution": listed[-1], "img_channels": state[f"b{listed[-1]}.fromrgb.weight"].shape[1],
                 **channel_arguments(widths, "D"), **precision(network, "D")}
    return arguments, contiguous(state) | discriminator_filters(listed[-1])


def contiguous(state: State) -> State:
    return {key: value.contiguous() for key, value in state.items()}
