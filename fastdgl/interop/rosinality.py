"""Checkpoints of rosinality/stylegan2-pytorch, read and written: a dict with `g`, `d`, `g_ema`, `latent_avg`.

The networks are NVIDIA's with other names, and parameters of other shapes but the same numbers. Theirs scale a weight before
1e-8 keeps its norm from zero, ours after: images differ by far less than 1e-4.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .networks import NOISE_MADE_UP, Networks, State, channel_arguments, count, fixed_noise, mean_latent, notes_on_rest, size
from .networks import widths, with_both_generators
from .unpickling import ForeignFileError

NAMES = {"g": "G", "d": "D", "g_ema": "G_ema"}
# they compute in fp32, without a bound on activations
PRECISION = {"num_fp16_res": 0, "low_precision": "float16", "conv_clamp": None}
# [1, 3, 3, 1] in both directions, of sum 1
BLUR = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64


class Tensors(NamedTuple):
    """One tensor under both names.

    before, after: How many dimensions of length 1 theirs has before and after those of ours.
    """

    ours: str
    theirs: str
    before: int = 0
    after: int = 0


def generator_tensors(img_resolution: int, mapping_layers: int) -> Iterator[Tensors]:
    """All parameters of G, and its noise."""
    for i in range(mapping_layers):
        yield from _affine(f"mapping.fc{i}", f"style.{i + 1}")
    yield Tensors("synthesis.b4.const", "input.input", before=1)
    yield from _layer("synthesis.b4.conv1", "conv1", 0)
    yield from _to_rgb("synthesis.b4.torgb", "to_rgb1")
    for i, R in enumerate(_above_4(img_resolution)):
        yield from _layer(f"synthesis.b{R}.conv0", f"convs.{2 * i}", 2 * i + 1)
        yield from _layer(f"synthesis.b{R}.conv1", f"convs.{2 * i + 1}", 2 * i + 2)
        yield from _to_rgb(f"synthesis.b{R}.torgb", f"to_rgbs.{i}")


def discriminator_tensors(img_resolution: int) -> Iterator[Tensors]:
    """All parameters of D."""
    for i, R in enumerate(reversed(_above_4(img_resolution))):
        if i == 0:
            yield from _convolution(f"b{R}.fromrgb", "convs.0", 0)
        yield from _convolution(f"b{R}.conv0", f"convs.{i + 1}.conv1", 0)
        yield from _convolution(f"b{R}.conv1", f"convs.{i + 1}.conv2", 1)
        yield Tensors(f"b{R}.skip.weight", f"convs.{i + 1}.skip.1.weight")
    yield from _convolution("b4.conv", "final_conv", 0)
    yield from _affine("b4.fc", "final_linear.0")
    yield from _affine("b4.out", "final_linear.1")


def _above_4(img_resolution: int) -> list[int]:
    return [2**i for i in range(3, img_resolution.bit_length())]


def _affine(ours: str, theirs: str) -> Iterator[Tensors]:
    for key in ("weight", "bias"):
        yield Tensors(f"{ours}.{key}", f"{theirs}.{key}")


def _layer(ours: str, theirs: str, noise: int) -> Iterator[Tensors]:
    yield Tensors(f"{ours}.weight", f"{theirs}.conv.weight", before=1)
    yield from _affine(f"{ours}.affine", f"{theirs}.conv.modulation")
    yield Tensors(f"{ours}.noise_strength", f"{theirs}.noise.weight", before=1)
    yield Tensors(f"{ours}.noise_const", f"noises.noise_{noise}", before=2)
    yield Tensors(f"{ours}.bias", f"{theirs}.activate.bias")


def _to_rgb(ours: str, theirs: str) -> Iterator[Tensors]:
    yield Tensors(f"{ours}.weight", f"{theirs}.conv.weight", before=1)
    yield from _affine(f"{ours}.affine", f"{theirs}.conv.modulation")
    yield Tensors(f"{ours}.bias", f"{theirs}.bias", before=1, after=2)


def _convolution(ours: str, theirs: str, position: int) -> Iterator[Tensors]:
    # a sequence: a blur where the resolution is halved, the convolution, its bias and activation
    yield Tensors(f"{ours}.weight", f"{theirs}.{position}.weight")
    yield Tensors(f"{ours}.bias", f"{theirs}.{position + 1}.bias")


def generator_blurs(img_resolution: int) -> dict[str, Tensor]:
    """The filters that G keeps, which make up for the zeros that upsampling puts in."""
    numbers = range(len(_above_4(img_resolution)))
    return {name: 4 * BLUR for i in numbers for name in (f"convs.{2 * i}.conv.blur.kernel", f"to_rgbs.{i}.upsample.kernel")}


def discriminator_blurs(img_resolution: int) -> dict[str, Tensor]:
    """The filters that D keeps."""
    numbers = range(1, len(_above_4(img_resolution)) + 1)
    return {name: BLUR for i in numbers for name in (f"convs.{i}.conv2.0.kernel", f"convs.{i}.skip.0.kernel")}


def generator_filters(img_resolution: int) -> State:
    """The filters that our G keeps."""
    names = ["synthesis.b4", "synthesis.b4.conv1"]
    names += [f"synthesis.b{R}{layer}" for R in _above_4(img_resolution) for layer in ("", ".conv0", ".conv1")]
    return {f"{name}.resample_filter": BLUR for name in names}


def discriminator_filters(img_resolution: int) -> State:
    """The filters that our D keeps."""
    names = [f"b{R}{layer}" for R in _above_4(img_resolution) for layer in ("", ".conv0", ".conv1", ".skip")]
    return {f"{name}.resample_filter": BLUR for name in [*names, f"b{img_resolution}.fromrgb", "b4.conv"]}


def networks(found: Mapping[str, State], latent_avg: Any, rest: Iterable[str]) -> Networks:
    """Our networks from state dicts in rosinality's names, G or G_ema among them.

    Args:
        latent_avg: The mean of w as the file has it; None where it has none.
        rest: What else is in the file.

    Raises:
        ForeignFileError: They are no StyleGAN2, or one that fastdgl cannot build.
    """
    arguments = {"G": generator_arguments(found.get("G_ema", found.get("G")))}
    w_avg, lost = (None, []) if latent_avg is None else mean_latent(latent_avg, arguments["G"]["w_dim"])
    generators = {name: our_generator(state, arguments["G"], w_avg, name) for name, state in found.items() if name != "D"}
    states, notes = with_both_generators(generators)
    noiseless = any(not has_noise(found[name]) for name in generators)
    unusable = ""
    if "D" in found:
        try:
            arguments_D = discriminator_arguments(found["D"])
            states["D"] = our_discriminator(found["D"], arguments_D)
            arguments["D"] = arguments_D
        except ForeignFileError as error:
            unusable = str(error)
    return Networks("stylegan2", arguments, states, [*notes, *lost, *([NOISE_MADE_UP] if noiseless else []), *notes_on_rest(rest)], unusable)


def has_noise(theirs: State) -> bool:
    return any(name.startswith("noises.") for name in theirs)


def generator_arguments(state: State) -> dict[str, Any]:
    """What builds G, from the shapes in their state dict."""
    what = "the generator"
    channels = {4: size(state, "to_rgb1.conv.weight", 2, what)}
    for i in range(count(state, "to_rgbs.{}.conv.weight")):
        channels[8 * 2**i] = size(state, f"to_rgbs.{i}.conv.weight", 2, what)
    # style.0 only normalizes
    mapping_layers = count(state, "style.{}.weight", first=1)
    const = size(state, "input.input", 1, what)
    return {"z_dim": size(state, "style.1.weight", 1, what), "w_dim": size(state, "conv1.conv.modulation.weight", 1, what),
            "mapping_layers": mapping_layers, "narrow_const": False, "c_dim": 0, "img_resolution": max(channels),
            "img_channels": size(state, "to_rgb1.bias", 1, what), **channel_arguments(channels, what, const), **PRECISION}


def discriminator_arguments(state: State) -> dict[str, Any]:
    """What builds D, from the shapes in their state dict."""
    what = "the discriminator"
    blocks = count(state, "convs.{}.conv1.0.weight", first=1)
    channels = {4: size(state, "final_conv.0.weight", 0, what)}
    channels |= {2 ** (2 + i): size(state, f"convs.{blocks + 1 - i}.conv1.0.weight", 1, what) for i in range(1, blocks + 1)}
    return {"mbstd_group_size": 4, "c_dim": 0, "img_resolution": max(channels),
            "img_channels": size(state, "convs.0.0.weight", 1, what), **channel_arguments(channels, what), **PRECISION}


def our_generator(theirs: State, arguments: Mapping[str, Any], w_avg: Tensor | None, what: str) -> State:
    R = arguments["img_resolution"]
    tensors = [*generator_tensors(R, arguments["mapping_layers"])]
    noise = {}
    # as converters before 2020 wrote them
    if not has_noise(theirs):
        layers = [t for t in tensors if t.theirs.startswith("noises.")]
        tensors = [t for t in tensors if t not in layers]
        noise = fixed_noise((t.ours, int(t.ours.split(".")[1].removeprefix("b"))) for t in layers)
    state = _ours(theirs, tensors, generator_blurs(R), what) | generator_filters(R) | noise
    if w_avg is not None:
        state["mapping.w_avg"] = w_avg
    return state


def our_discriminator(theirs: State, arguments: Mapping[str, Any]) -> State:
    R = arguments["img_resolution"]
    return _ours(theirs, [*discriminator_tensors(R)], discriminator_blurs(R), "D") | discriminator_filters(R)


def _ours(theirs: State, tensors: list[Tensors], blurs: Mapping[str, Tensor], what: str) -> State:
    missing = [t.theirs for t in tensors if t.theirs not in theirs]
    unknown = sorted(theirs.keys() - {t.theirs for t in tensors} - blurs.keys())
    for differences, said in ((missing, "is missing"), (unknown, "is not one of StyleGAN2's")):
        if differences:
            more = f", and {len(differences) - 1} more" if len(differences) > 1 else ""
            raise ForeignFileError(f"{what}: {differences[0]} {said}{more}")
    for name in blurs.keys() & theirs.keys():
        if theirs[name].shape != blurs[name].shape or not torch.allclose(theirs[name], blurs[name]):
            raise ForeignFileError(f"{what}: {name} is not the filter [1, 3, 3, 1], which is the one that fastdgl has")
    state = {}
    for t in tensors:
        value = theirs[t.theirs]
        shape = value.shape[t.before:value.ndim - t.after]
        if value.numel() != shape.numel():
            raise ForeignFileError(f"{what}: {t.theirs} is {list(value.shape)}, which is no shape of StyleGAN2's")
        state[t.ours] = value.reshape(shape)
    return state


def check_writable(networks: Networks, theirs: str) -> None:
    """Refuse what rosinality's networks, and those after them, are not."""
    G = networks.arguments["G"]
    if networks.family != "stylegan2":
        raise ForeignFileError(f"holds {networks.family}; {theirs} has StyleGAN2 alone")
    for name, value, expected in (("classes", G["c_dim"], 0), ("image channels", G["img_channels"], 3), ("w_dim", G["w_dim"], G["z_dim"])):
        if value != expected:
            raise ForeignFileError(f"has {name} {value}; {theirs} can have {expected} alone")
    for name, state in networks.states.items():
        for key, value in state.items():
            if key.endswith("resample_filter") and not torch.allclose(value, BLUR):
                raise ForeignFileError(f"{name}: {key} is not the filter [1, 3, 3, 1], which is the one that {theirs} has")
        if name != "D":
            const, width = len(state["synthesis.b4.const"]), len(state["synthesis.b4.conv1.weight"])
            if const != width:
                raise ForeignFileError(f"{name}: its constant has {const} channels and its first convolution {width}; {theirs} has one width at 4x4, "
                                       f"which a student has that was trained with model.narrow_const: true")


def their_generator(state: State, arguments: Mapping[str, Any]) -> State:
    """Our G in their names and shapes, without their filters."""
    return _theirs(state, generator_tensors(arguments["img_resolution"], arguments["mapping_layers"]))


def _theirs(state: State, tensors: Iterator[Tensors]) -> State:
    return {t.theirs: state[t.ours].reshape((1,) * t.before + tuple(state[t.ours].shape) + (1,) * t.after) for t in tensors}


def write(networks: Networks) -> tuple[dict[str, Any], list[str]]:
    """What `torch.save` makes a checkpoint of, and what it does not say.

    Raises:
        ForeignFileError: Their code cannot build these networks.
    """
    check_writable(networks, "rosinality's code")
    arguments, states = networks.arguments, networks.states
    R = arguments["G"]["img_resolution"]
    data: dict[str, Any] = {theirs: their_generator(states[ours], arguments["G"]) | generator_blurs(R)
                            for theirs, ours in NAMES.items() if ours != "D"}
    if "D" in states:
        data["d"] = _theirs(states["D"], discriminator_tensors(arguments["D"]["img_resolution"])) | discriminator_blurs(R)
    data["latent_avg"] = states["G_ema"]["mapping.w_avg"]
    return data, [*lost_settings(networks), *widths_to_set(arguments["G"]),
                  "it holds no optimizers: their generate.py and projector.py open it, to train on their train.py wants g_optim and d_optim"]


def lost_settings(networks: Networks) -> list[str]:
    """What their networks are built without."""
    G, D = networks.arguments["G"], networks.arguments.get("D")
    lost = []
    if G["num_fp16_res"] or G["conv_clamp"] is not None:
        lost.append(f"computed with num_fp16_res {G['num_fp16_res']} and conv_clamp {G['conv_clamp']}, there in fp32 and without a bound")
    if D is not None and D["mbstd_group_size"] != 4:
        lost.append(f"D's minibatch standard deviation is over groups of {D['mbstd_group_size']}, there of 4")
    return lost


def widths_to_set(G: Mapping[str, Any]) -> list[str]:
    """What must be changed in their code for it to build these widths."""
    ours = widths(G)
    for multiplier in (1, 2):
        if ours == {R: 512 if R < 64 else min(16384 * multiplier // R, 512) for R in ours}:
            return [f"build it with size {G['img_resolution']}, style_dim {G['z_dim']}, n_mlp {G['mapping_layers']}, channel_multiplier {multiplier}"]
    listed = ", ".join(f"{R}: {C}" for R, C in ours.items())
    return [f"its widths are none that their code can be asked for: set `channels` in their model to {{{listed}}}"]
