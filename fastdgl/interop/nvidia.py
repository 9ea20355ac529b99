"""Networks of NVIDIA's PyTorch code: StyleGAN2 of stylegan2-ada-pytorch and of stylegan3. Read, and never written.

A pickle is a dict with G, D and G_ema, each a module of modules with its source code, which is not read. Names and shapes of
parameters are ours; the numbers that build the networks are read from the shapes and from the settings that each layer keeps.
State dicts of the same names, ours among them, keep no settings.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .networks import NOISE_MADE_UP, Networks, State, channel_arguments, checked_state, count, fixed_noise, mean_latent, notes_on_rest, size
from .networks import with_both_generators
from .rosinality import discriminator_filters, generator_filters
from .unpickling import ForeignFileError, PersistentObject

# what fastdgl's layers are, where a layer of theirs can be another: (layers, setting, value)
MAPPING = ((r"mapping\.fc\d+", "activation", "lrelu"), (r"mapping\.fc\d+", "bias_gain", 0.01),
           (r"mapping\.embed", "activation", "linear"), (r"mapping\.embed", "bias_gain", 1))
GENERATOR = (*MAPPING,
             (r"synthesis\.b\d+", "architecture", "skip"),
             (r"synthesis\.b\d+\.conv[01]", "activation", "lrelu"), (r"synthesis\.b\d+\.conv[01]", "use_noise", True),
             (r"synthesis\..*\.affine", "activation", "linear"), (r"synthesis\..*\.affine", "bias_gain", 1))
DISCRIMINATOR = (*MAPPING,
                 (r"b\d+", "architecture", "resnet"),
                 (r"b\d+\.(fromrgb|conv0|conv1|conv|fc)", "activation", "lrelu"), (r"b\d+\.(skip|out)", "activation", "linear"),
                 (r"b4\.(fc|out)", "bias_gain", 1), (r"b4\.mbstd", "num_channels", 1))

W_AVG_BETA = 0.995
# modules within modules in their networks: 4
DEPTH = 20
NO_MODULE = PersistentObject("", {})
NO_SETTINGS = ("a state dict does not say which resolutions compute in 16 bits, the bound on activations, nor D's group: "
               "fp32, no bound and 4 are taken")


def networks(found: Mapping[str, PersistentObject | State], latent_avg: Any, rest: Iterable[str]) -> Networks:
    """Our networks from modules or state dicts of theirs, G or G_ema among them.

    Args:
        latent_avg: A mean of w that lies beside the networks, for those that keep none; None for none.
        rest: What else is in the file.

    Raises:
        ForeignFileError: They are no StyleGAN2, or one that fastdgl cannot build.
    """
    modules = {name: layers(item, name) if isinstance(item, PersistentObject) else {} for name, item in found.items()}
    states = {name: state_dict(modules[name], name) if modules[name] else dict(item) for name, item in found.items()}
    for name, state in states.items():
        if any(key.startswith("synthesis.input.") for key in state):
            raise ForeignFileError(f"{name} is a StyleGAN3 generator; fastdgl has StyleGAN2, which stylegan3 trains with --cfg=stylegan2")

    states, notes = with_both_generators(states)
    generator = modules.get("G_ema", modules.get("G", {}))
    arguments, unusable = {"G": generator_arguments(generator, states["G_ema"])}, ""
    if "D" in states:
        try:
            arguments["D"] = discriminator_arguments(modules["D"], states["D"])
            R = arguments["D"]["img_resolution"]
            states["D"] = (discriminator_filters(R) if not modules["D"] else {}) | states["D"]
        except ForeignFileError as error:
            unusable = str(error)
            del states["D"]
    if not generator:
        notes.append(NO_SETTINGS)
        notes += complete(states, arguments["G"], latent_avg)
    notes += notes_on_rest(rest)
    beta = setting(generator.get("mapping", NO_MODULE), "w_avg_beta", W_AVG_BETA, "G")
    if beta != W_AVG_BETA:
        notes.append(f"its mean of w moves by a factor of {beta}, fastdgl's by {W_AVG_BETA} where training goes on")
    return Networks("stylegan2", arguments, states, notes, unusable)


def complete(states: dict[str, State], arguments: Mapping[str, Any], latent_avg: Any) -> list[str]:
    """Add to the generators the buffers that some programs leave out of a state dict; and say which."""
    R, notes = arguments["img_resolution"], []
    layers = [f"synthesis.b{r}.conv{i}" for r in (2**i for i in range(2, R.bit_length())) for i in (0, 1) if (r, i) != (4, 0)]
    noise = fixed_noise((f"{layer}.noise_const", int(layer.split(".")[1].removeprefix("b"))) for layer in layers)
    for name in ("G", "G_ema"):
        state = states[name]
        if not any(key.endswith("noise_const") for key in state):
            state, notes = state | noise, notes or [NOISE_MADE_UP]
        if latent_avg is not None and "mapping.w_avg" not in state:
            w_avg, lost = mean_latent(latent_avg, arguments["w_dim"])
            state = state | {"mapping.w_avg": w_avg}
            notes = notes + [note for note in lost if note not in notes]
        states[name] = generator_filters(R) | state
    return notes


def layers(module: PersistentObject, what: str) -> dict[str, PersistentObject]:
    """A module, as "", and all modules in it, by their full names."""
    if what.count(".") > DEPTH:
        raise ForeignFileError(f"{what.partition('.')[0]}: its modules lie within each other more than {DEPTH} deep")
    found = {"": module}
    for name, child in _dict(module, "_modules", what).items():
        if child is None:
            continue
        if not isinstance(child, PersistentObject):
            raise ForeignFileError(f"{what}: its {name} is no module of NVIDIA's")
        found |= {f"{name}.{rest}" if rest else str(name): layer for rest, layer in layers(child, f"{what}.{name}").items()}
    return found


def state_dict(modules: Mapping[str, PersistentObject], what: str) -> State:
    """The parameters and buffers of a module and all modules in it."""
    tensors = {}
    for name, module in modules.items():
        transient = module.state.get("_non_persistent_buffers_set", set())
        if not isinstance(transient, set):
            raise ForeignFileError(f"{what}: the _non_persistent_buffers_set of its {module.class_name} is no set")
        own = _dict(module, "_parameters", what) | _dict(module, "_buffers", what)
        tensors |= {f"{name}.{key}" if name else key: value for key, value in own.items() if value is not None and key not in transient}
    return checked_state(tensors, what)


def _dict(module: PersistentObject, name: str, what: str) -> dict[str, Any]:
    found = module.state.get(name, {})
    if not isinstance(found, dict):
        raise ForeignFileError(f"{what}: the {name} of its {module.class_name} are no dict")
    return dict(found)


def setting(module: PersistentObject, name: str, default: Any, what: str) -> Any:
    """A plain value that a layer keeps; `default` where it keeps none.

    Raises:
        ForeignFileError: It is no plain value.
    """
    found = module.state.get(name, default)
    if found is not None and type(found) not in (bool, int, float, str):
        raise ForeignFileError(f"{what}: the {name} of a {module.class_name} is no plain value")
    return found


def generator_arguments(modules: Mapping[str, PersistentObject], state: State) -> dict[str, Any]:
    """What builds G."""
    check_settings(modules, GENERATOR, "G")
    c_dim = size(state, "mapping.embed.weight", 1, "G") if "mapping.embed.weight" in state else 0
    embedded = size(state, "mapping.embed.weight", 0, "G") if c_dim else 0
    channels = channels_by_resolution(state, "synthesis.b{}.conv1.weight", 0, 4, "G")
    const = size(state, "synthesis.b4.const", 0, "G")
    return {"z_dim": size(state, "mapping.fc0.weight", 1, "G") - embedded, "w_dim": size(state, "synthesis.b4.conv1.affine.weight", 1, "G"),
            "mapping_layers": count(state, "mapping.fc{}.weight"), "narrow_const": False, "c_dim": c_dim,
            "img_resolution": max(channels), "img_channels": size(state, "synthesis.b4.torgb.weight", 0, "G"),
            **channel_arguments(channels, "G", const), **precision(modules, "synthesis.b{}", max(channels), "G")}


def discriminator_arguments(modules: Mapping[str, PersistentObject], state: State) -> dict[str, Any]:
    """What builds D."""
    check_settings(modules, DISCRIMINATOR, "D")
    channels = {4: size(state, "b4.conv.weight", 0, "D")} | channels_by_resolution(state, "b{}.conv0.weight", 1, 8, "D")
    group = setting(modules.get("b4.mbstd", NO_MODULE), "group_size", 4, "D")
    if type(group) is not int or group < 1:
        raise ForeignFileError(f"D: its minibatch standard deviation is over groups of {group!r}; fastdgl's are of a fixed number")
    return {"mbstd_group_size": group, "c_dim": size(state, "mapping.embed.weight", 1, "D") if "mapping.embed.weight" in state else 0,
            "img_resolution": max(channels), "img_channels": size(state, f"b{max(channels)}.fromrgb.weight", 1, "D"),
            **channel_arguments(channels, "D"), **precision(modules, "b{}", max(channels), "D")}


def channels_by_resolution(state: State, pattern: str, dim: int, lowest: int, what: str) -> dict[int, int]:
    """The length along `dim` of `pattern` with each resolution in it, from `lowest` up."""
    channels, R = {}, lowest
    while R == lowest or pattern.format(R) in state:
        channels[R] = size(state, pattern.format(R), dim, what)
        R *= 2
    return channels


def check_settings(modules: Mapping[str, PersistentObject], expected: tuple[tuple[str, str, Any], ...], what: str) -> None:
    """Refuse layers that compute something else than fastdgl's of the same name."""
    for pattern, key, value in expected:
        for name, module in modules.items():
            if re.fullmatch(pattern, name) and (found := setting(module, key, value, what)) != value:
                raise ForeignFileError(f"{what}: {name} has {key} {found!r}; fastdgl's StyleGAN2 has {value!r}")


def precision(modules: Mapping[str, PersistentObject], pattern: str, img_resolution: int, what: str) -> dict[str, Any]:
    """Which resolutions compute in 16 bits, and the bound on activations."""
    blocks = {R: modules.get(pattern.format(R), NO_MODULE) for R in (2**i for i in range(2, img_resolution.bit_length()))}
    low = [R for R, block in blocks.items() if setting(block, "use_fp16", False, what)]
    if low != [img_resolution // 2**i for i in reversed(range(len(low)))] or 4 in low:
        raise ForeignFileError(f"{what}: computes in 16 bits at {', '.join(map(str, low))}; fastdgl does so at the highest resolutions alone")
    clamps = [setting(module, "conv_clamp", None, what) for name, module in modules.items()
              if "conv_clamp" in module.state and not name.endswith("skip")]
    if any(clamp != clamps[0] for clamp in clamps):
        raise ForeignFileError(f"{what}: its layers have different conv_clamp; fastdgl's have one")
    if clamps and type(clamps[0]) not in (int, float, type(None)):
        raise ForeignFileError(f"{what}: its conv_clamp is {clamps[0]!r}; expected a number")
    return {"num_fp16_res": len(low), "low_precision": "float16", "conv_clamp": clamps[0] if clamps else None}
