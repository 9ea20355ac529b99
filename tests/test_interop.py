"""Checkpoints of other codebases: the same images and logits, the way there and back, and what is refused."""

import argparse
import json
import os
import pickle
import random
import re
import struct
import sys
import zlib
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from foreign_files import nvidia_network, pickled, write_nvidia
from numerics import GOLDEN, assert_close, normal
from tensorflow_files import discriminator, generator, pickled as tensorflow_pickled, write_tensorflow

import fastdgl
from fastdgl import checkpoints, config as configs, interop, models, train
from fastdgl.assembly import open_teacher
from fastdgl.checkpoints import CheckpointError, open_snapshot
from fastdgl.cli import main
from fastdgl.interop import ajbrock
from fastdgl.interop.unpickling import PersistentObject

ROOT = Path(__file__).parent.parent
FILTER = torch.outer(*[torch.tensor([1.0, 3, 3, 1])] * 2) / 64


def nvidia_golden(name):
    """Their state dicts, and what their networks computed."""
    with np.load(GOLDEN / f"nvlabs_stylegan2_{name}.npz") as file:
        data = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta.json"}
        meta = json.loads(file["meta.json"].tobytes())
    states = {network: {key.removeprefix(f"state/{network}."): value for key, value in data.items() if key.startswith(f"state/{network}.")}
              for network in ("G", "D")}
    return SimpleNamespace(G=states["G"], D=states["D"], group_size=meta["discriminator"]["epilogue_kwargs"]["mbstd_group_size"], meta=meta, **{
        key: value for key, value in data.items() if "/" not in key})


@pytest.fixture(scope="module", params=["cond", "uncond"])
def nvidia(request, tmp_path_factory):
    golden = nvidia_golden(request.param)
    golden.path = write_nvidia(tmp_path_factory.mktemp("nvidia") / "ffhq.pkl", golden.G, golden.D, group_size=golden.group_size)
    return golden


@torch.no_grad()
def test_a_pickle_of_nvidias_paints_and_judges_as_theirs(nvidia):
    snapshot = open_snapshot(nvidia.path)
    for name in ("G", "G_ema"):
        G = snapshot.network(name)
        assert_close(G(nvidia.z, nvidia.c, noise_mode="const"), nvidia.img, tolerance=1e-4)
        assert_close(G(nvidia.z, nvidia.c, truncation_psi=0.6, noise_mode="const"), nvidia.img_psi06, tolerance=1e-4)
    D = snapshot.network("D")
    assert_close(D(nvidia.real, nvidia.c), nvidia.logits_real, tolerance=1e-4)
    assert_close(D(nvidia.img, nvidia.c), nvidia.logits_fake, tolerance=1e-4)
    assert snapshot.notes == ["left out, since fastdgl has no use for it: augment_pipe, training_set_kwargs"]


def test_the_arguments_of_a_pickle_are_those_it_was_built_with(nvidia):
    found = open_snapshot(nvidia.path).arguments
    expected = nvidia.meta["generator"]
    for key in ("z_dim", "w_dim", "c_dim", "img_resolution", "img_channels"):
        assert found["G"][key] == expected[key]
    assert found["G"]["mapping_layers"] == expected["mapping_kwargs"]["num_layers"]
    # widths are all that a base means
    for arguments in (found["G"], found["D"]):
        assert {R: min(arguments["channel_base"] // R, arguments["channel_max"]) for R in (4, 8, 16)} == {
            R: min(expected["channel_base"] // R, expected["channel_max"]) for R in (4, 8, 16)}
    assert found["D"]["mbstd_group_size"] == nvidia.group_size


def test_a_snapshot_is_not_taken_for_a_pickle_however_long_its_header_is(tmp_path):
    """Its first byte counts bytes of the header, and may be that of a pickle."""
    data = write_snapshot(tmp_path / "a.safetensors", TINY, None).read_bytes()
    length, = struct.unpack("<Q", data[:8])
    padding = (0x80 - length) % 256
    (tmp_path / "b.safetensors").write_bytes(struct.pack("<Q", length + padding) + data[8:8 + length] + b" " * padding + data[8 + length:])
    assert open_snapshot(tmp_path / "b.safetensors").network("G")


@pytest.mark.parametrize("protocol", [2, 3, 5])
def test_a_pickle_of_any_protocol_is_read(tmp_path, protocol):
    golden = nvidia_golden("uncond")
    path = write_nvidia(tmp_path / "a.pkl", golden.G, golden.D, protocol=protocol)
    assert torch.equal(open_snapshot(path).state_dict("D")["b4.fc.weight"], golden.D["b4.fc.weight"])


def test_what_a_pickle_says_of_16_bits_is_kept(tmp_path):
    golden = nvidia_golden("uncond")
    resolution = golden.meta["generator"]["img_resolution"]
    snapshot = open_snapshot(write_nvidia(tmp_path / "a.pkl", golden.G, golden.D, low=(resolution // 2, resolution), conv_clamp=256))
    for name in ("G", "D"):
        arguments = snapshot.arguments[name]
        assert (arguments["num_fp16_res"], arguments["low_precision"], arguments["conv_clamp"]) == (2, "float16", 256)


def test_notes_hold_nothing_that_a_terminal_obeys(tmp_path):
    convert(write_snapshot(tmp_path / "a.safetensors", TINY, None), tmp_path / "b.pt")
    torch.save(torch.load(tmp_path / "b.pt", weights_only=True) | {"\x1b[2J\n": 1}, tmp_path / "c.pt")
    assert open_snapshot(tmp_path / "c.pt").notes[0] == "left out, since fastdgl has no use for it: ?[2J"


@torch.no_grad()
def test_the_average_is_that_of_the_file(tmp_path):
    golden = nvidia_golden("uncond")
    average = {key: value * 1.5 if key == "synthesis.b4.const" else value for key, value in golden.G.items()}
    snapshot = open_snapshot(write_nvidia(tmp_path / "a.pkl", golden.G, golden.D, average=average))
    assert torch.equal(snapshot.state_dict("G_ema")["synthesis.b4.const"], golden.G["synthesis.b4.const"] * 1.5)
    assert torch.equal(snapshot.state_dict("G")["synthesis.b4.const"], golden.G["synthesis.b4.const"])


class RosinalityGolden:
    """Weights made from their names as those were that computed the images."""

    def __init__(self):
        with np.load(GOLDEN / "rosinality_stylegan2.npz") as file:
            self.meta = json.loads(file["meta.json"].tobytes())
            self.data = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta.json"}
        self.G, self.D = self.weights("G", self.meta["generator_keys"]), self.weights("D", self.meta["discriminator_keys"])
        # what their modules keep besides, not recorded
        self.G |= {name: FILTER * 4 for i in range(2) for name in (f"convs.{2 * i}.conv.blur.kernel", f"to_rgbs.{i}.upsample.kernel")}
        self.D |= {name: FILTER for i in (1, 2) for name in (f"convs.{i}.conv2.0.kernel", f"convs.{i}.skip.0.kernel")}

    def weights(self, network, shapes):
        def numbers(key, shape):
            chance = np.random.default_rng(zlib.crc32(f"{self.meta['salt']}{network}.{key}".encode()))
            return chance.standard_normal(shape) * (0.3 if key.endswith("bias") or "noise.weight" in key else 1.0)
        return {key: torch.from_numpy(numbers(key, shape).astype(np.float32)) for key, shape in shapes.items()}


@pytest.fixture(scope="module")
def rosinality_golden(tmp_path_factory):
    golden = RosinalityGolden()
    golden.path = tmp_path_factory.mktemp("rosinality") / "550000.pt"
    torch.save({"g": golden.G, "d": golden.D, "g_ema": golden.G, "g_optim": {"state": {}}, "args": argparse.Namespace(size=16)}, golden.path)
    return golden


@torch.no_grad()
def test_a_checkpoint_of_rosinalitys_paints_and_judges_as_theirs(rosinality_golden):
    """They add 1e-8 to another norm: far below 1e-4."""
    snapshot, data = open_snapshot(rosinality_golden.path), rosinality_golden.data
    G, D = snapshot.network("G_ema"), snapshot.network("D")
    assert_close(G.mapping(data["z"])[:, 0], data["latents"], tolerance=1e-4)
    assert_close(G(data["z"], noise_mode="const"), data["img"], tolerance=1e-4)
    assert_close(D(data["real"]), data["logits_real"], tolerance=1e-4)
    assert_close(D(data["img"]), data["logits_fake"], tolerance=1e-4)
    assert snapshot.notes[0] == "left out, since fastdgl has no use for it: g_optim, args"


SHARED = {"c_dim": 0, "img_resolution": 16, "img_channels": 3, "channel_base": 64, "channel_max": 12, "fraction": 1,
          "num_fp16_res": 0, "low_precision": "float16", "conv_clamp": None}
SMALL = SHARED | {"z_dim": 6, "w_dim": 6, "mapping_layers": 2, "narrow_const": False}
SMALL_D = SHARED | {"mbstd_group_size": 4}


def random_states(G=SMALL, D=SMALL_D):
    """State dicts of G, D and G_ema with no number the same as another."""
    torch.manual_seed(0)
    networks = {"G": models.generator("stylegan2", G), "G_ema": models.generator("stylegan2", G)}
    if D is not None:
        networks["D"] = models.discriminator("stylegan2", D)
    for network in networks.values():
        for name, value in network.state_dict().items():
            if not name.endswith("resample_filter"):
                value.normal_()
    return {name: network.state_dict() for name, network in networks.items()}


def write_snapshot(path, G=SMALL, D=SMALL_D):
    header = {"family": "stylegan2", "seen": 0, "classes": None, "G": G} | ({} if D is None else {"D": D})
    checkpoints.write_snapshot(path, random_states(G, D), header)
    return path


def convert(source, destination):
    return CliRunner().invoke(main, ["convert", str(source), str(destination)])


@pytest.mark.parametrize(("suffix", "names"), [(".pt", ("G", "D", "G_ema")), (".pth", ("G", "G_ema"))], ids=["rosinality", "basicsr"])
def test_there_and_back_changes_no_number(tmp_path, suffix, names):
    source = write_snapshot(tmp_path / "a.safetensors")
    for path, destination in ((source, tmp_path / f"b{suffix}"), (tmp_path / f"b{suffix}", tmp_path / "c.safetensors")):
        result = convert(path, destination)
        assert result.exit_code == 0, result.output
    there, back = open_snapshot(source), open_snapshot(tmp_path / "c.safetensors")
    assert back.names == [name for name in ("G", "D", "G_ema") if name in names]
    for name in names:
        expected, found = there.state_dict(name), back.state_dict(name)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            # of G's, the file has the mean of w of the average
            assert key == "mapping.w_avg" and name == "G" or torch.equal(found[key], value), key
    z = normal(2, 6, dtype=torch.float32)
    with torch.no_grad():
        images = [snapshot.network("G_ema")(z, truncation_psi=0.5, noise_mode="const") for snapshot in (there, back)]
    assert torch.equal(*images)


def test_a_student_as_narrow_as_its_constant_goes_there_and_back(tmp_path):
    G = SMALL | {"fraction": 0.5, "narrow_const": True}
    convert(write_snapshot(tmp_path / "a.safetensors", G, SMALL_D | {"fraction": 0.5}), tmp_path / "b.pt")
    z, there, back = normal(2, 6, dtype=torch.float32), open_snapshot(tmp_path / "a.safetensors"), open_snapshot(tmp_path / "b.pt")
    with torch.no_grad():
        assert torch.equal(there.network("G_ema")(z, noise_mode="const"), back.network("G_ema")(z, noise_mode="const"))
    assert back.state_dict("D").keys() == there.state_dict("D").keys()


def test_a_checkpoint_of_rosinalitys_goes_there_and_back(rosinality_golden, tmp_path):
    for source, destination in ((rosinality_golden.path, "b.safetensors"), (tmp_path / "b.safetensors", "c.pt")):
        result = convert(source, tmp_path / destination)
        assert result.exit_code == 0, result.output
    found = torch.load(tmp_path / "c.pt", weights_only=True)
    for name, expected in (("g", rosinality_golden.G), ("d", rosinality_golden.D), ("g_ema", rosinality_golden.G)):
        assert found[name].keys() == expected.keys() and all(torch.equal(found[name][key], value) for key, value in expected.items())


def test_a_pickle_of_nvidias_becomes_a_snapshot(nvidia, tmp_path):
    result = convert(nvidia.path, tmp_path / "b.safetensors")
    assert result.exit_code == 0 and "note: left out, since fastdgl has no use for it: augment_pipe, training_set_kwargs" in result.output
    there, back = open_snapshot(nvidia.path), open_snapshot(tmp_path / "b.safetensors")
    assert back.arguments == there.arguments and back.states is None
    for name in ("G", "D", "G_ema"):
        assert all(torch.equal(value, back.state_dict(name)[key]) for key, value in there.state_dict(name).items())


ROSINALITY_G = {
    "style.1.weight": (6, 6), "style.1.bias": (6,), "input.input": (1, 8, 4, 4), "conv1.conv.weight": (1, 8, 8, 3, 3),
    "conv1.conv.modulation.weight": (8, 6), "conv1.conv.modulation.bias": (8,), "conv1.noise.weight": (1,), "conv1.activate.bias": (8,),
    "to_rgb1.bias": (1, 3, 1, 1), "to_rgb1.conv.weight": (1, 3, 8, 1, 1), "to_rgb1.conv.modulation.weight": (8, 6),
    "to_rgb1.conv.modulation.bias": (8,), "convs.0.conv.weight": (1, 4, 8, 3, 3), "convs.0.conv.blur.kernel": (4, 4),
    "convs.0.conv.modulation.weight": (8, 6), "convs.0.conv.modulation.bias": (8,), "convs.0.noise.weight": (1,),
    "convs.0.activate.bias": (4,), "convs.1.conv.weight": (1, 4, 4, 3, 3), "convs.1.conv.modulation.weight": (4, 6),
    "convs.1.conv.modulation.bias": (4,), "convs.1.noise.weight": (1,), "convs.1.activate.bias": (4,), "to_rgbs.0.bias": (1, 3, 1, 1),
    "to_rgbs.0.upsample.kernel": (4, 4), "to_rgbs.0.conv.weight": (1, 3, 4, 1, 1), "to_rgbs.0.conv.modulation.weight": (4, 6),
    "to_rgbs.0.conv.modulation.bias": (4,), "noises.noise_0": (1, 1, 4, 4), "noises.noise_1": (1, 1, 8, 8), "noises.noise_2": (1, 1, 8, 8)}
BASICSR_G = {
    "style_mlp.1.weight": (6, 6), "style_mlp.1.bias": (6,), "constant_input.weight": (1, 8, 4, 4),
    "style_conv1.modulated_conv.weight": (1, 8, 8, 3, 3), "style_conv1.modulated_conv.modulation.weight": (8, 6),
    "style_conv1.modulated_conv.modulation.bias": (8,), "style_conv1.weight": (1,), "style_conv1.activate.bias": (8,),
    "to_rgb1.bias": (1, 3, 1, 1), "to_rgb1.modulated_conv.weight": (1, 3, 8, 1, 1), "to_rgb1.modulated_conv.modulation.weight": (8, 6),
    "to_rgb1.modulated_conv.modulation.bias": (8,), "style_convs.0.modulated_conv.weight": (1, 4, 8, 3, 3),
    "style_convs.0.modulated_conv.modulation.weight": (8, 6), "style_convs.0.modulated_conv.modulation.bias": (8,),
    "style_convs.0.weight": (1,), "style_convs.0.activate.bias": (4,), "style_convs.1.modulated_conv.weight": (1, 4, 4, 3, 3),
    "style_convs.1.modulated_conv.modulation.weight": (4, 6), "style_convs.1.modulated_conv.modulation.bias": (4,),
    "style_convs.1.weight": (1,), "style_convs.1.activate.bias": (4,), "to_rgbs.0.bias": (1, 3, 1, 1),
    "to_rgbs.0.modulated_conv.weight": (1, 3, 4, 1, 1), "to_rgbs.0.modulated_conv.modulation.weight": (4, 6),
    "to_rgbs.0.modulated_conv.modulation.bias": (4,), "noises.noise0": (1, 1, 4, 4), "noises.noise1": (1, 1, 8, 8),
    "noises.noise2": (1, 1, 8, 8)}
TINY = SMALL | {"mapping_layers": 1, "img_resolution": 8, "channel_base": 32, "channel_max": 8}


@pytest.mark.parametrize(("suffix", "key", "shapes"), [(".pt", "g_ema", ROSINALITY_G), (".pth", "params_ema", BASICSR_G)],
                         ids=["rosinality", "basicsr"])
def test_writes_the_names_and_shapes_that_their_code_loads_strictly(tmp_path, suffix, key, shapes):
    path = tmp_path / f"b{suffix}"
    assert convert(write_snapshot(tmp_path / "a.safetensors", TINY, None), path).exit_code == 0
    data = torch.load(path, weights_only=True)
    assert {name: tuple(value.shape) for name, value in data[key].items()} == shapes
    assert data["latent_avg"].shape == (6,)
    if suffix == ".pt":
        assert torch.equal(data[key]["convs.0.conv.blur.kernel"], FILTER * 4) and torch.equal(data[key]["to_rgbs.0.upsample.kernel"], FILTER * 4)


def test_says_what_is_lost_on_the_way(tmp_path):
    low = {"num_fp16_res": 1, "conv_clamp": 256}
    result = convert(write_snapshot(tmp_path / "a.safetensors", SMALL | low, SMALL_D | low | {"mbstd_group_size": 2}), tmp_path / "b.pth")
    assert "num_fp16_res 1 and conv_clamp 256, there in fp32" in result.output and "groups of 2, there of 4" in result.output
    assert "D is left out" in result.output and "set `channels` in their model to {4: 12, 8: 8, 16: 4}" in result.output
    assert "mean of w" not in result.output


def test_a_mean_of_w_that_is_not_in_the_file_is_made_and_said_to_be(tmp_path):
    convert(write_snapshot(tmp_path / "a.safetensors", SMALL, None), tmp_path / "b.pth")
    data = torch.load(tmp_path / "b.pth", weights_only=True)
    del data["latent_avg"], data["params"]
    torch.save(data, tmp_path / "c.pth")
    snapshot = open_snapshot(tmp_path / "c.pth")
    assert snapshot.notes[0] == "G is not in the file, and is the same as its G_ema"
    assert snapshot.notes[1].startswith("the mean of w, to which truncation pulls, is not in the file: it is that of 4096 random z")
    G = snapshot.network("G_ema")
    with torch.no_grad():
        other = G.mapping(normal(4096, 6, seed=5, dtype=torch.float32))[:, 0]
    assert (G.mapping.w_avg - other.mean(dim=0)).abs().max() <= 6 * other.std(dim=0).max() / 4096**0.5
    assert torch.equal(open_snapshot(tmp_path / "c.pth").network("G_ema").mapping.w_avg, G.mapping.w_avg)


def refused(path):
    with pytest.raises(CheckpointError) as error:
        snapshot = open_snapshot(path)
        for name in snapshot.names:
            snapshot.network(name)
    assert "\n" not in str(error.value) and str(error.value).count(str(path)) == 1
    return str(error.value)


GOLDEN_UNCOND = nvidia_golden("uncond")


@pytest.mark.parametrize(("changes", "said"), [
    pytest.param({"G_changes": {"synthesis.b8": {"architecture": "resnet"}}},
                 "G: synthesis.b8 has architecture 'resnet'; fastdgl's StyleGAN2 has 'skip'", id="resnet-generator"),
    pytest.param({"G_changes": {"mapping.fc0": {"bias_gain": 1}}},
                 "G: mapping.fc0 has bias_gain 1; fastdgl's StyleGAN2 has 0.01", id="learning-rate"),
    pytest.param({"G_changes": {"synthesis.b8.conv0": {"activation": "relu"}}}, "G: synthesis.b8.conv0 has activation 'relu'", id="activation"),
    pytest.param({"low": (8,)}, "G: computes in 16 bits at 8; fastdgl does so at the highest resolutions alone", id="low-precision"),
    pytest.param({"G_changes": {"synthesis.b8.conv0": {"conv_clamp": 256}}}, "G: its layers have different conv_clamp", id="clamps"),
])
def test_a_layer_that_computes_something_else_is_refused(tmp_path, changes, said):
    path = write_nvidia(tmp_path / "a.pkl", GOLDEN_UNCOND.G, GOLDEN_UNCOND.D, **changes)
    assert f"{path}: " in refused(path) and said in refused(path)


@pytest.mark.parametrize(("changes", "said"), [
    pytest.param({"b4": {"architecture": "orig"}}, "D: b4 has architecture 'orig'", id="orig"),
    pytest.param({"b8": {"architecture": "skip"}}, "D: b8 has architecture 'skip'", id="skip"),
    pytest.param({"b4.mbstd": {"num_channels": 4}}, "D: b4.mbstd has num_channels 4", id="standard-deviations"),
    pytest.param({"b4.mbstd": {"group_size": None}}, "over groups of None", id="group-of-the-whole-batch"),
    pytest.param({"b8.conv0": {"activation": "relu"}}, "D: b8.conv0 has activation 'relu'", id="activation"),
    pytest.param({"b8.conv0": {"conv_clamp": 8}}, "D: its layers have different conv_clamp", id="clamps"),
])
@torch.no_grad()
def test_a_discriminator_that_cannot_be_built_is_left_out_and_does_not_teach(tmp_path, changes, said):
    golden = GOLDEN_UNCOND
    path = write_nvidia(tmp_path / "a.pkl", golden.G, golden.D, D_changes=changes)
    snapshot = open_snapshot(path)
    assert snapshot.names == ["G", "G_ema"] and said in snapshot.notes[-1] and "its discriminator is left out" in snapshot.notes[-1]
    assert_close(snapshot.network("G_ema")(golden.z, golden.c, noise_mode="const"), golden.img, tolerance=1e-4)
    with pytest.raises(CheckpointError) as error:
        open_teacher(str(path), run_of(8), images_like(golden), 1)
    assert said in str(error.value) and str(error.value).count(str(path)) == 1 and "\n" not in str(error.value)


def test_stylegan3_is_refused_by_its_name(tmp_path):
    path = tmp_path / "a.pkl"
    state = {"mapping.fc0.weight": torch.zeros(6, 6), "synthesis.input.weight": torch.zeros(6, 6),
             "synthesis.L0_36_6.weight": torch.zeros(6, 6, 3, 3)}
    path.write_bytes(pickled({"G_ema": nvidia_network("Generator", state)}))
    assert refused(path) == f"{path}: G_ema is a StyleGAN3 generator; fastdgl has StyleGAN2, which stylegan3 trains with --cfg=stylegan2"


def test_a_module_that_is_in_itself_is_refused(tmp_path, monkeypatch):
    module = PersistentObject("Generator", {"_modules": {}})
    module.state["_modules"] |= {"mapping": module, "synthesis": PersistentObject("SynthesisNetwork", {"_modules": {}})}
    monkeypatch.setattr(interop, "load", lambda path: {"G_ema": module})
    (tmp_path / "a.pkl").write_bytes(pickled({}))
    assert refused(tmp_path / "a.pkl").endswith("G_ema: its modules lie within each other more than 20 deep")


@pytest.mark.parametrize(("data", "said"), [
    pytest.param({"model": torch.zeros(2)},
                 "is a dict of model; expected G, D, G_ema (NVIDIA), g, d, g_ema (rosinality) or params_ema", id="unknown"),
    pytest.param([1, 2], "is list; expected", id="no-dict"),
    pytest.param({"params_ema": {"conv_first.weight": torch.zeros(2, 2)}},
                 "has no to_rgb1.conv.weight, so it is no network that fastdgl knows", id="other"),
    pytest.param({"shared.weight": torch.zeros(2, 2)}, "is a dict of shared.weight; expected G, D, G_ema (NVIDIA)", id="biggan-alone"),
    pytest.param({"x": 1}, "or the folder that holds G.pth, D.pth, G_ema.pth (BigGAN-PyTorch)", id="numbers"),
    pytest.param({"params": {"final_linear.0.weight": torch.zeros(2, 2)}}, "params is a discriminator by itself", id="discriminator"),
    pytest.param({"g_ema": {"a": 1}}, "g_ema: 'a' is no tensor", id="no-tensors"),
])
def test_networks_of_another_kind_are_refused(tmp_path, data, said):
    torch.save(data, tmp_path / "a.pt")
    assert said in refused(tmp_path / "a.pt")


def test_data_within_data_is_refused_where_it_is_too_deep_to_be_named(tmp_path):
    # a dict whose one key is a tuple, in a tuple, in a tuple ...
    (tmp_path / "a.pt").write_bytes(b"\x80\x04})" + b"\x85" * 5000 + b"K\x01s.")
    assert refused(tmp_path / "a.pt").endswith("holds data within data, too deep to be networks")


ANYTHING = [None, [], {}, "x", 5, -1, 0, 1e9, True, torch.zeros(()), torch.zeros(0), torch.zeros(3), torch.zeros(1, 2, 3, 4), {"a": 1},
            PersistentObject("X", {}), PersistentObject("X", {"_modules": 3})]


def dicts_in(data):
    """All dicts in what was unpickled, at any depth, that hold something."""
    data = data.state if isinstance(data, PersistentObject) else data
    if isinstance(data, dict) and data:
        yield data
        for value in data.values():
            yield from dicts_in(value)


@pytest.mark.parametrize("suffix", [".pkl", ".pt", ".pth"])
def test_whatever_a_file_holds_it_is_read_or_refused_in_a_sentence(tmp_path, monkeypatch, suffix):
    path, chance = tmp_path / f"b{suffix}", random.Random(0)
    if suffix == ".pkl":
        write_nvidia(path, GOLDEN_UNCOND.G, GOLDEN_UNCOND.D)
    else:
        convert(write_snapshot(tmp_path / "a.safetensors"), path)
    load = interop.load
    for _ in range(50):
        changed = load(path)
        place = chance.choice([*dicts_in(changed)])
        place[chance.choice([*place, "b4.y", "style.9.weight", 5])] = chance.choice(ANYTHING)
        monkeypatch.setattr(interop, "load", lambda path: changed)
        try:
            snapshot = open_snapshot(path)
            for name in snapshot.names:
                snapshot.network(name)
        except CheckpointError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(("change", "said"), [
    pytest.param(lambda g: g.pop("convs.1.noise.weight"), "G_ema: convs.1.noise.weight is missing", id="missing"),
    pytest.param(lambda g: g.update({"convs.9.conv.weight": torch.zeros(1)}), "G_ema: convs.9.conv.weight is not one of StyleGAN2's", id="more"),
    pytest.param(lambda g: g.update({"convs.0.conv.blur.kernel": torch.ones(4, 4)}),
                 "convs.0.conv.blur.kernel is not the filter [1, 3, 3, 1]", id="filter"),
    pytest.param(lambda g: g.update({"noises.noise_2": torch.zeros(4, 1, 4, 4)}), "noises.noise_2 is [4, 1, 4, 4]", id="shape"),
    pytest.param(lambda g: g.update({"conv1.conv.weight": torch.zeros(1, 8, 8, 1, 1)}),
                 "b4.conv1.weight is [8, 8, 1, 1] instead of [8, 8, 3, 3]", id="size"),
    pytest.param(lambda g: g.update({"to_rgbs.0.conv.weight": torch.zeros(1, 3, 16, 1, 1)}), "b8.conv0.weight is [4, 8, 3, 3] instead of", id="widths"),
])
def test_a_state_dict_that_is_no_stylegan2_is_refused(tmp_path, change, said):
    convert(write_snapshot(tmp_path / "a.safetensors", TINY, None), tmp_path / "b.pt")
    data = torch.load(tmp_path / "b.pt", weights_only=True)
    del data["g"]
    change(data["g_ema"])
    torch.save(data, tmp_path / "c.pt")
    assert said in refused(tmp_path / "c.pt")


@pytest.mark.parametrize(("G", "destination", "said"), [
    pytest.param(SMALL | {"c_dim": 3}, "b.pt", "has classes 3; rosinality's code can have 0 alone", id="classes"),
    pytest.param(SMALL | {"img_channels": 1}, "b.pth", "has image channels 1; BasicSR can have 3 alone", id="grey"),
    pytest.param(SMALL | {"w_dim": 8}, "b.pt", "has w_dim 8; rosinality's code can have 6 alone", id="latents"),
    pytest.param(SMALL | {"fraction": 0.5}, "b.pt", "its constant has 12 channels and its first convolution 6", id="wide-constant"),
    pytest.param(SMALL, "b.pkl",
                 "NVIDIA's pickles hold source code of NVIDIA's, which fastdgl does not have; write a .safetensors instead", id="nvidia"),
    pytest.param(SMALL, "b.onnx",
                 "the suffix '.onnx' names no format; expected .safetensors (fastdgl), .pt (rosinality), .pth (BasicSR)", id="suffix"),
    pytest.param(SMALL, "b", "holds stylegan2; a folder is what BigGAN-PyTorch keeps a BigGAN in", id="folder"),
    pytest.param(SMALL, "b.safetensors", "is a snapshot of fastdgl already", id="the-same"),
    pytest.param(SMALL, "missing/b.pt", "missing/b.pt: cannot be written", id="no-folder"),
    pytest.param(SMALL, "a.safetensors/b.pt", "a.safetensors/b.pt: cannot be written", id="in-a-file"),
])
def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, G, destination, said):
    write_snapshot(tmp_path / "a.safetensors", G, None)
    result = convert(tmp_path / "a.safetensors", tmp_path / destination)
    assert result.exit_code != 0 and said in result.output and "Traceback" not in result.output
    assert result.output.count("\n") == 1 and [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("damage", [
    pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-1000]), id="cut-short"),
    pytest.param(lambda path: path.unlink(), id="missing"),
    pytest.param(lambda path: path.write_bytes(pickled({"G": argparse.ArgumentParser}, 4)), id="foreign-name"),
    pytest.param(lambda path: path.write_bytes(b"GIF89a" * 99), id="noise"),
    pytest.param(lambda path: (path.unlink(), path.mkdir()), id="folder"),
])
@pytest.mark.parametrize("command", [
    ["convert", "a.pkl", "b.safetensors"], ["generate", "--network", "a.pkl", "--seeds", "0", "--outdir", "out"]], ids=lambda command: command[0])
def test_a_file_that_cannot_be_read_is_refused_in_a_sentence(tmp_path, monkeypatch, damage, command):
    monkeypatch.chdir(tmp_path)
    damage(write_nvidia(Path("a.pkl"), GOLDEN_UNCOND.G, GOLDEN_UNCOND.D))
    result = CliRunner().invoke(main, command)
    assert result.exit_code != 0 and result.output.startswith("Error: a.pkl: ") and result.output.count("\n") == 1
    assert {file.name for file in tmp_path.iterdir()} <= {"a.pkl"}


class Runs:
    """Pickled as a command."""

    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize("command", [
    ["convert", "a.pkl", "b.safetensors"], ["convert", "a.pkl", "b.pt"], ["generate", "--network", "a.pkl", "--seeds", "0", "--outdir", "out"],
    ["export", "--network", "a.pkl", "--format", "hub", "out"]], ids=lambda command: f"{command[0]}-{command[-1]}")
def test_no_command_runs_what_a_pickle_names(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    Path("a.pkl").write_bytes(pickle.dumps({"G_ema": Runs()}))
    result = CliRunner().invoke(main, command)
    assert result.exit_code != 0 and re.fullmatch(r"Error: a\.pkl: asks for \w+\.system, .* nothing was run\n", result.output)
    assert os.listdir() == ["a.pkl"]
    pickle.loads(Path("a.pkl").read_bytes())
    assert Path("ran").exists(), "it would have run"


def test_a_snapshot_is_not_written_below_a_file(tmp_path):
    source = write_nvidia(tmp_path / "a.pkl", GOLDEN_UNCOND.G, GOLDEN_UNCOND.D)
    result = convert(source, source / "b.safetensors")
    assert result.exit_code == 1 and result.output.startswith(f"Error: {source / 'b.safetensors'}: cannot be written")
    assert os.listdir(tmp_path) == ["a.pkl"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    source = write_snapshot(tmp_path / "a.safetensors", TINY, None)
    (tmp_path / "b.pt").write_bytes(b"before")

    def full_disk(data, path):
        path.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full_disk)
    result = convert(source, tmp_path / "b.pt")
    assert result.exit_code != 0 and "cannot be written: [enforce fail" in result.output
    assert (tmp_path / "b.pt").read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 2


@pytest.fixture(params=["c10", "hier"])
def biggan(request, tmp_path):
    """A folder of BigGAN-PyTorch's, and what their networks computed."""
    with np.load(GOLDEN / f"ajbrock_biggan_{request.param}.npz") as file:
        data = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta.json"}
        config = json.loads(file["meta.json"].tobytes())["config"]
    (tmp_path / "weights").mkdir()
    for name, network in (("G", "G"), ("D", "D"), ("G_ema", "G")):
        prefix = f"state/{network}."
        torch.save(OrderedDict((key.removeprefix(prefix), value) for key, value in data.items() if key.startswith(prefix)),
                   tmp_path / "weights" / f"{name}.pth")
    c = torch.nn.functional.one_hot(data["y"], config["ncls"]).float()
    return SimpleNamespace(path=tmp_path / "weights", config=config, c=c, **{key: value for key, value in data.items() if "/" not in key})


@torch.no_grad()
def test_a_folder_of_biggan_pytorch_paints_and_judges_as_theirs(biggan):
    snapshot, config = open_snapshot(biggan.path), biggan.config
    for name in ("G", "G_ema"):
        assert_close(snapshot.network(name)(biggan.z, biggan.c), biggan.img, tolerance=1e-4)
    D = snapshot.network("D")
    assert_close(D(biggan.real, biggan.c), biggan.logits_real, tolerance=1e-4)
    assert_close(D(biggan.img, biggan.c), biggan.logits_fake, tolerance=1e-4)
    shared = {"c_dim": config["ncls"], "img_resolution": config["res"], "img_channels": 3, "ch": config["ch"], "attention": int(config["attn"]),
              "sn_eps": 1e-6}
    assert snapshot.arguments["D"] == shared
    assert snapshot.arguments["G"] == shared | {"z_dim": config["dz"], "hier": config["hier"], "shared_dim": config["sh"]}
    assert_close(fastdgl.load_generator(biggan.path)(biggan.z, biggan.c), biggan.img, tolerance=1e-4)


@pytest.mark.parametrize(("resolution", "z_dim", "attention"), [(32, 8, 16), (64, 10, 0), (128, 12, 64), (256, 14, 64)], ids=str)
@pytest.mark.parametrize("img_channels", [1, 3])
def test_the_arguments_of_a_biggan_are_found_in_its_shapes(resolution, z_dim, attention, img_channels):
    shared = {"c_dim": 3, "img_resolution": resolution, "img_channels": img_channels, "ch": 8, "attention": attention, "sn_eps": 1e-6}
    with torch.device("meta"):
        for special in ({"z_dim": z_dim, "hier": True, "shared_dim": 6}, {"z_dim": 7, "hier": False, "shared_dim": 6},
                        {"z_dim": 7, "hier": False, "shared_dim": 0}):
            assert ajbrock.generator_arguments(models.generator("biggan", shared | special).state_dict()) == shared | special
        assert ajbrock.discriminator_arguments(models.discriminator("biggan", shared).state_dict()) == shared


def test_a_biggan_goes_there_and_back(biggan, tmp_path):
    for source, destination in ((biggan.path, "b.safetensors"), (tmp_path / "b.safetensors", "c")):
        result = convert(source, tmp_path / destination)
        assert result.exit_code == 0, result.output
    assert sorted(file.name for file in (tmp_path / "c").iterdir()) == ["D.pth", "G.pth", "G_ema.pth"]
    assert f"note: build it with --resolution {biggan.config['res']} --G_ch {biggan.config['ch']}" in result.output
    for name in ("G", "D", "G_ema"):
        expected, found = (torch.load(folder / f"{name}.pth", weights_only=True) for folder in (biggan.path, tmp_path / "c"))
        assert expected.keys() == found.keys() and all(torch.equal(value, found[key]) for key, value in expected.items())


@torch.no_grad()
def test_a_folder_of_biggan_pytorch_teaches(biggan):
    G = open_snapshot(biggan.path).arguments["G"]
    model = {"family": "biggan", "resolution": G["img_resolution"]} | {key: G[key] for key in ("z_dim", "hier", "shared_dim", "attention")}
    config = configs.from_dict({"images": {"path": "digits"}, "model": model, "train": {"batch": 8}}, "test")
    images = SimpleNamespace(resolution=G["img_resolution"], channels=3, label_dim=G["c_dim"], class_names=None, label_kind="classes")
    teacher = open_teacher(str(biggan.path), config, images, 1)
    assert_close(teacher.network("D")(biggan.real, biggan.c), biggan.logits_real, tolerance=1e-4)
    with pytest.raises(CheckpointError, match="holds networks of family biggan, this run trains stylegan2"):
        open_teacher(str(biggan.path), run_of(8), images, 1)


@pytest.mark.parametrize(("name", "theirs"), [("c.pt", "rosinality's code"), ("c.pth", "BasicSR")])
def test_a_biggan_is_not_written_as_a_stylegan2(biggan, tmp_path, name, theirs):
    result = convert(biggan.path, tmp_path / name)
    assert result.exit_code != 0 and f"holds biggan; {theirs} has StyleGAN2 alone" in result.output
    assert [file.name for file in tmp_path.iterdir()] == ["weights"]


def test_a_biggan_is_not_written_over_another_folder(biggan, tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "photos").touch()
    result = convert(biggan.path, tmp_path / "c")
    assert result.exit_code != 0 and "c: cannot be written" in result.output
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c", "weights"] and [file.name for file in (tmp_path / "c").iterdir()] == ["photos"]


@pytest.mark.parametrize(("damage", "said"), [
    pytest.param(lambda folder: (folder / "D.pth").write_bytes((folder / "D.pth").read_bytes()[:-999]),
                 "D.pth: is cut short or damaged", id="cut-short"),
    pytest.param(lambda folder: torch.save({"x": 1}, folder / "G.pth"), "weights: G.pth: 'x' is no tensor", id="no-state"),
    pytest.param(lambda folder: torch.save({"x": torch.zeros(1)}, folder / "G_ema.pth"), "the generator: has no linear.weight", id="other-network"),
])
def test_a_damaged_folder_is_refused_with_the_file(biggan, damage, said):
    damage(biggan.path)
    assert said in refused(biggan.path)


def test_a_biggan_without_a_discriminator_does_not_teach(biggan):
    (biggan.path / "D.pth").unlink()
    with pytest.raises(CheckpointError, match="weights: it holds no discriminator"):
        open_teacher(str(biggan.path), run_of(8), SimpleNamespace(), 1)


def images_like(golden, **changes):
    G = golden.meta["generator"]
    return SimpleNamespace(**{"resolution": G["img_resolution"], "channels": 3, "label_dim": G["c_dim"], "class_names": None, "label_kind": "classes" if G["c_dim"] else None} | changes)


def run_of(batch):
    return configs.from_dict({"images": {"path": "digits"}, "model": {"resolution": 16}, "train": {"batch": batch}}, "test")


@torch.no_grad()
def test_a_pickle_of_nvidias_teaches(nvidia):
    teacher = open_teacher(str(nvidia.path), run_of(2 * nvidia.group_size), images_like(nvidia), 2)
    assert_close(teacher.network("D")(nvidia.real, nvidia.c), nvidia.logits_real, tolerance=1e-4)


def test_a_run_starts_from_a_pickle_and_is_taught_by_one(tmp_path):
    config = configs.from_dict({
        "outdir": str(tmp_path / "runs"), "images": {"path": "digits", "workers": 0}, "engine": {"kind": "torch"},
        "model": {"resolution": 32, "channels": 1, "conditional": True, "z_dim": 8, "w_dim": 8, "mapping_layers": 2, "channel_base": 128,
                  "channel_max": 8, "num_fp16_res": 0},
        "start": str(tmp_path / "start.pkl"), "guidance": {"teachers": [{"checkpoint": str(tmp_path / "start.pkl"), "mode": "updated"}]},
        "train": {"batch": 8, "kimg": 0.008}}, "test")
    states = random_states(config.model.generator_arguments(10), config.model.discriminator_arguments(10))
    write_nvidia(tmp_path / "start.pkl", states["G"], states["D"], average=states["G_ema"])
    (tmp_path / "run.yaml").write_text(configs.to_yaml(config))
    result = CliRunner().invoke(train.main, ["--config", str(tmp_path / "run.yaml")])
    assert result.exit_code == 0, result.output
    trained, = (tmp_path / "runs").glob("*/network-snapshot-000000.safetensors")
    moved = (open_snapshot(trained).state_dict("D")["b4.out.weight"] - states["D"]["b4.out.weight"]).abs().max()
    assert 0 < moved <= 4 * config.optimizer.discriminator.lr


def test_a_teacher_of_another_resolution_is_refused(nvidia):
    with pytest.raises(CheckpointError, match=r"ffhq\.pkl: was trained with resolution \d+, this run has 1024; they must agree"):
        open_teacher(str(nvidia.path), run_of(8), images_like(nvidia, resolution=1024), 1)


@pytest.mark.parametrize("name", ["b.pth", "c.safetensors"])
def test_a_file_without_a_discriminator_draws_and_does_not_teach(tmp_path, name):
    convert(write_snapshot(tmp_path / "a.safetensors"), tmp_path / "b.pth")
    result = convert(tmp_path / "b.pth", tmp_path / "c.safetensors")
    assert "note: it holds no discriminator: it draws images, and can neither teach nor be the start of a run" in result.output
    images = SimpleNamespace(resolution=16, channels=3, label_dim=0, class_names=None, label_kind=None)
    with pytest.raises(CheckpointError, match=re.escape(f"{name}: it holds no discriminator: it draws images, and can neither teach")):
        open_teacher(str(tmp_path / name), run_of(8), images, 1)
    result = CliRunner().invoke(main, ["generate", "--network", str(tmp_path / name), "--seeds", "0-1", "--outdir", str(tmp_path / "out")])
    assert result.exit_code == 0 and len(list((tmp_path / "out").iterdir())) == 2


def test_generate_draws_from_a_pickle(tmp_path):
    path = write_nvidia(tmp_path / "ffhq.pkl", GOLDEN_UNCOND.G, GOLDEN_UNCOND.D)
    result = CliRunner().invoke(main, ["generate", "--network", str(path), "--seeds", "3", "--outdir", str(tmp_path / "out")])
    assert result.exit_code == 0 and (tmp_path / "out" / "seed0003.png").exists()


@torch.no_grad()
def test_a_generator_is_called_as_nvidias(nvidia):
    G = fastdgl.load_generator(nvidia.path)
    assert not G.training
    arguments = nvidia.meta["generator"]
    for name in ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels"):
        assert getattr(G, name) == arguments[name]
    ws = G.mapping(nvidia.z, nvidia.c)
    assert ws.shape == (4, G.num_ws, G.w_dim)
    assert_close(ws, nvidia.ws, tolerance=1e-4)
    assert torch.equal(G.synthesis(ws, noise_mode="const"), G(nvidia.z, nvidia.c, noise_mode="const"))
    assert_close(G(nvidia.z, nvidia.c, truncation_psi=0.6, noise_mode="const"), nvidia.img_psi06, tolerance=1e-4)


def test_generate_draws_from_a_folder_of_biggan_pytorch(biggan, tmp_path):
    result = CliRunner().invoke(main, ["generate", "--network", str(biggan.path), "--class", "1", "--seeds", "3", "--outdir", str(tmp_path / "out")])
    assert result.exit_code == 0 and (tmp_path / "out" / "seed0003-class1.png").exists() and "note:" not in result.output


def test_a_generator_computes_in_fp32_on_a_cpu(tmp_path):
    highest = GOLDEN_UNCOND.meta["generator"]["img_resolution"]
    path = write_nvidia(tmp_path / "ffhq.pkl", GOLDEN_UNCOND.G, GOLDEN_UNCOND.D, low=(highest,), conv_clamp=256)
    assert {block.dtype for block in fastdgl.load_generator(path).synthesis.blocks} == {torch.float32}


def test_there_is_nothing_else_in_fastdgl():
    with pytest.raises(AttributeError, match="has no attribute 'load_generators'"):
        fastdgl.load_generators


def test_the_tensors_for_nvidias_code_are_those_of_the_average(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_snapshot(Path("network-snapshot-025000.safetensors"))
    example, = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    names = {}
    exec(example, names)
    assert names["arguments"] == SMALL
    expected = random_states()["G_ema"]
    assert names["state"].keys() == expected.keys() and all(torch.equal(value, expected[key]) for key, value in names["state"].items())


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_nvidia(Path("ffhq.pkl"), GOLDEN_UNCOND.G, GOLDEN_UNCOND.D)
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    example, = [example for example in examples if "load_generator" in example]
    names = {}
    exec(example, names)
    assert names["images"].shape == (4, 3, *[GOLDEN_UNCOND.meta["generator"]["img_resolution"]] * 2)


def saved(state, *wrappers):
    """A state dict as of a network within others."""
    return {".".join([*wrappers, key]): value for key, value in state.items()}


@pytest.fixture(scope="module")
def networks():
    """State dicts of one file, and what its average draws."""
    states = random_states()
    G = models.generator("stylegan2", SMALL).eval()
    G.load_state_dict(states["G_ema"])
    with torch.no_grad():
        return SimpleNamespace(**states, z=normal(2, 6, dtype=torch.float32), images=draws_of(G, normal(2, 6, dtype=torch.float32)))


@torch.no_grad()
def draws_of(G, z):
    return G(z, truncation_psi=0.5, noise_mode="const")


FORMS = {
    "state-dict": lambda n: dict(n.G_ema),
    "data-parallel": lambda n: saved(n.G_ema, "module"),
    "twice-wrapped": lambda n: saved(n.G_ema, "module", "module"),
    "compiled": lambda n: saved(n.G_ema, "_orig_mod"),
    "wrapped-and-compiled": lambda n: saved(n.G_ema, "module", "_orig_mod"),
    "compiled-inside": lambda n: {key.replace("synthesis.", "synthesis._orig_mod."): value for key, value in n.G_ema.items()},
    "averaged-model": lambda n: {"n_averaged": torch.tensor(7), **saved(n.G_ema, "module")},
    "ema-in-a-dict": lambda n: {"G_ema": dict(n.G_ema)},
    "all-in-a-dict": lambda n: {"G": n.G, "D": n.D, "G_ema": n.G_ema, "step": 3},
    "other-words": lambda n: {"generator": n.G, "discriminator": saved(n.D, "module"), "generator_ema": n.G_ema},
    "state-dict-in-a-dict": lambda n: {"state_dict": saved(n.G_ema, "module"), "epoch": 5},
    "one-dict-of-all": lambda n: saved(n.G, "G") | saved(n.D, "D") | saved(n.G_ema, "G_ema"),
    "of-a-trainer": lambda n: {"state_dict": saved(n.G, "netG") | saved(n.D, "netD") | saved(n.G_ema, "netG_ema"), "lr": 1e-3},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_a_network_is_read_however_it_was_saved(tmp_path, networks, form):
    data = form(networks)
    torch.save(data, tmp_path / "a.pt")
    snapshot = open_snapshot(tmp_path / "a.pt")
    assert torch.equal(draws_of(snapshot.network("G_ema"), networks.z), networks.images)
    if "D" in snapshot.names:
        assert all(torch.equal(value, networks.D[key]) for key, value in snapshot.state_dict("D").items())
        assert all(torch.equal(value, networks.G[key]) for key, value in snapshot.state_dict("G").items())
    assert ("D" in snapshot.names) == (form in [FORMS[name] for name in ("all-in-a-dict", "other-words", "one-dict-of-all", "of-a-trainer")])
    assert any("a state dict does not say" in note for note in snapshot.notes)


@pytest.mark.parametrize("student", [{"fraction": 0.5}, {"fraction": 0.25, "narrow_const": True}, {"channels": [10, 7, 3]}, {"channels": [8, 12, 4], "fraction": 0.5}],
                         ids=["wide-constant", "narrow", "listed", "listed-wide-constant"])
def test_the_state_dict_of_a_student_says_its_widths(tmp_path, student):
    states = random_states(SMALL | student, None)
    torch.save(states["G_ema"], tmp_path / "a.pt")
    found = open_snapshot(tmp_path / "a.pt").network("G_ema")
    assert all(torch.equal(value, states["G_ema"][key]) for key, value in found.state_dict().items())


@pytest.mark.parametrize("leave_out", ["resample_filter", "noise_const", "w_avg"])
def test_buffers_that_a_state_dict_leaves_out_are_made_up_and_said_to_be(tmp_path, networks, leave_out):
    torch.save({key: value for key, value in networks.G_ema.items() if not key.endswith(leave_out)}, tmp_path / "a.pt")
    snapshot = open_snapshot(tmp_path / "a.pt")
    assert snapshot.network("G_ema").state_dict().keys() == networks.G_ema.keys()
    said = {"resample_filter": "", "noise_const": "the fixed noise of the layers is not in the file", "w_avg": "the mean of w, to which truncation pulls"}
    assert any(said[leave_out] in note for note in snapshot.notes)


@pytest.mark.parametrize(("data", "said"), [
    pytest.param(lambda n: n.D, "holds a discriminator by itself, which generates nothing", id="D"),
    pytest.param(lambda n: {"netD": n.D}, "holds a discriminator by itself, at netD", id="D-in-a-dict"),
    pytest.param(lambda n: {"a": n.G, "b": n.G}, "holds more than one G, at 'a' and 'b'", id="two"),
    pytest.param(lambda n: {"g": n.G} | saved(n.G_ema, "g"), "holds more than one G, at 'g' and 'g'", id="twice"),
    pytest.param(lambda n: n.G | saved({"synthesis.b4.const": n.G["synthesis.b4.const"]}, "module"), "is there twice, once in a wrapper", id="wrapped-too"),
])
def test_a_file_whose_generator_is_not_clear_is_refused(tmp_path, networks, data, said):
    torch.save(data(networks), tmp_path / "a.pt")
    assert said in refused(tmp_path / "a.pt")


@pytest.fixture(scope="module")
def of_rosinality(tmp_path_factory):
    """What rosinality's train.py saves, of networks whose mean of w is known."""
    folder = tmp_path_factory.mktemp("rosinality")
    convert(write_snapshot(folder / "a.safetensors"), folder / "b.pt")
    return torch.load(folder / "b.pt", weights_only=True)


@pytest.mark.parametrize("shape", ["[6]", "[1, 6]", "[6, 6]", "[1, 6, 6]", "[6], numpy"])
def test_the_mean_of_w_is_read_in_any_shape(tmp_path, of_rosinality, shape):
    w = of_rosinality["latent_avg"]
    shaped = {"[6]": w, "[1, 6]": w[None], "[6, 6]": w.repeat(6, 1), "[1, 6, 6]": w.repeat(1, 6, 1), "[6], numpy": w.numpy()}[shape]
    torch.save(of_rosinality | {"latent_avg": shaped}, tmp_path / "a.pt")
    snapshot = open_snapshot(tmp_path / "a.pt")
    assert torch.equal(snapshot.network("G_ema").mapping.w_avg, w) and not any("mean" in note for note in snapshot.notes)


def test_a_mean_of_w_for_each_layer_becomes_one_and_is_said_to(tmp_path, of_rosinality):
    w = of_rosinality["latent_avg"]
    torch.save(of_rosinality | {"latent_avg": torch.stack([w, w + 2])}, tmp_path / "a.pt")
    snapshot = open_snapshot(tmp_path / "a.pt")
    assert torch.equal(snapshot.network("G_ema").mapping.w_avg, torch.stack([w, w + 2]).mean(dim=0))
    assert any("latent_avg is another w for each of 2 layers" in note for note in snapshot.notes)


@pytest.mark.parametrize("latent_avg", [torch.zeros(5), torch.zeros(6, 1), torch.zeros(()), torch.zeros(0, 6)], ids=lambda x: str(list(x.shape)))
def test_a_mean_of_w_of_another_size_is_refused_by_its_name(tmp_path, of_rosinality, latent_avg):
    torch.save(of_rosinality | {"latent_avg": latent_avg}, tmp_path / "a.pt")
    assert f"latent_avg is {list(latent_avg.shape)}; expected [6], [1, 6] or a row of 6 for each layer" in refused(tmp_path / "a.pt")


def test_a_generator_of_rosinalitys_without_noise_is_read(tmp_path, of_rosinality):
    """As older converters wrote it, here within an encoder's checkpoint and wrapped."""
    g = {key: value for key, value in of_rosinality["g_ema"].items() if not key.startswith("noises.")}
    torch.save({"state_dict": saved(g, "module", "decoder") | {"encoder.x": torch.zeros(2)}, "latent_avg": of_rosinality["latent_avg"].repeat(6, 1)}, tmp_path / "a.pt")
    a, b = (open_snapshot(tmp_path / "a.pt") for _ in range(2))
    assert any("the fixed noise of the layers is not in the file" in note for note in a.notes)
    for key, value in a.state_dict("G_ema").items():
        assert torch.equal(value, b.state_dict("G_ema")[key])
    z, full = normal(2, 6, dtype=torch.float32), tmp_path / "full.pt"
    torch.save(of_rosinality, full)
    with torch.no_grad():
        images = [open_snapshot(path).network("G_ema")(z, truncation_psi=0.5, noise_mode="none") for path in (tmp_path / "a.pt", full)]
    assert torch.equal(*images)


@pytest.mark.parametrize("damage", [
    lambda d: d.pop("convs.1.conv2.2.bias"), lambda d: d.update({"convs.9.conv.weight": torch.zeros(1)}),
    lambda d: d.update({"final_linear.0.weight": torch.zeros(3, 3)})], ids=["missing", "more", "shape"])
def test_a_discriminator_of_rosinalitys_that_is_another_is_left_out(tmp_path, of_rosinality, damage):
    d = dict(of_rosinality["d"])
    damage(d)
    torch.save(of_rosinality | {"d": d}, tmp_path / "a.pt")
    snapshot = open_snapshot(tmp_path / "a.pt")
    assert snapshot.names == ["G", "G_ema"] and "its discriminator is left out, since fastdgl cannot build it" in snapshot.notes[-1]


@pytest.mark.parametrize("pruned", [[154, 154, 77], [5, 9, 2], [1, 1, 1]], ids=str)
def test_widths_that_follow_no_rule_go_there_and_back(tmp_path, pruned):
    """Such as pruning leaves: of CAGAN's 512 to 154, of 256 to 77."""
    source = write_snapshot(tmp_path / "a.safetensors", SMALL | {"channels": pruned}, SMALL_D)
    for path, destination in ((source, tmp_path / "b.pt"), (tmp_path / "b.pt", tmp_path / "c.safetensors")):
        result = convert(path, destination)
        assert result.exit_code == 0, result.output
    there, back = (open_snapshot(tmp_path / name) for name in ("a.safetensors", "c.safetensors"))
    assert [block.conv1.weight.shape[0] for block in back.network("G").synthesis.blocks] == pruned
    assert all(torch.equal(value, back.state_dict("G_ema")[key]) for key, value in there.state_dict("G_ema").items())


def copies(folder, *suffixes, network=("G", "D", "G_ema")):
    """Copies of the networks in a folder, each with another bias."""
    for i, suffix in enumerate(suffixes):
        for name in network:
            state = torch.load(folder / f"{name}.pth", weights_only=True)
            state["linear.bias"] = state["linear.bias"] + i + 1
            torch.save(state, folder / f"{name}{suffix}.pth")


def bias_of(path, name="G_ema"):
    return open_snapshot(path).state_dict(name)["linear.bias"]


def test_the_best_and_the_copies_of_a_biggan_are_read_by_their_files(biggan):
    copies(biggan.path, "_best0", "_copy1")
    (biggan.path / "G_optim.pth").write_bytes(b"none of its business")
    last = torch.load(biggan.path / "G_ema.pth", weights_only=True)["linear.bias"]
    assert torch.equal(bias_of(biggan.path), last)
    assert "for others in the folder name their file: G_ema_best0.pth, G_ema_copy1.pth" in open_snapshot(biggan.path).notes[0]
    for i, suffix in enumerate(("_best0", "_copy1")):
        for name in ("G_ema", "D"):
            snapshot = open_snapshot(biggan.path / f"{name}{suffix}.pth")
            assert snapshot.names == ["G", "D", "G_ema"] and torch.equal(snapshot.state_dict("G_ema")["linear.bias"], last + i + 1)
            D = torch.load(biggan.path / f"D{suffix}.pth", weights_only=True)
            assert torch.equal(snapshot.state_dict("D")["linear.bias"], D["linear.bias"])


def test_a_folder_of_copies_alone_stands_for_the_best_that_came_last(biggan):
    copies(biggan.path, "_best0", "_best1", "_copy7")
    for name in ("G", "D", "G_ema"):
        (biggan.path / f"{name}.pth").unlink()
    for suffix, steps in (("_best0", 900), ("_best1", 300), ("_copy7", 1200)):
        torch.save({"itr": steps, "best_IS": 1.0}, biggan.path / f"state_dict{suffix}.pth")
    assert torch.equal(bias_of(biggan.path), torch.load(biggan.path / "G_ema_best0.pth", weights_only=True)["linear.bias"])
    assert open_snapshot(biggan.path).notes[0].startswith("G_ema_best0.pth and what belongs to it are taken")


def test_the_generator_of_a_biggan_by_its_file_is_not_the_average(biggan):
    copies(biggan.path, "_best0", network=["G"])
    os.replace(biggan.path / "G_best0.pth", biggan.path / "G.pth")
    assert torch.equal(bias_of(biggan.path / "G.pth"), torch.load(biggan.path / "G.pth", weights_only=True)["linear.bias"])
    assert not torch.equal(bias_of(biggan.path / "G.pth"), bias_of(biggan.path))


@pytest.mark.parametrize("norm", ["cross_replica", "cross_replica-1.0", "mybn", "mybn-standing"])
@torch.no_grad()
def test_the_batch_norms_of_other_modes_of_biggan_pytorch_are_read(biggan, norm):
    for name in ("G", "G_ema"):
        state = torch.load(biggan.path / f"{name}.pth", weights_only=True)
        for key in [key for key in state if key.endswith(("stored_mean", "stored_var"))]:
            value, (place, _, kind) = state.pop(key), key.rpartition(".")
            if norm.startswith("cross_replica"):
                state[f"{place}.bn.{kind.replace('stored', 'running')}"] = value
                state[f"{place}.bn.num_batches_tracked"] = torch.tensor(9)
                if norm.endswith("1.0"):
                    state |= {f"{place}.bn._tmp_running_mean": value, f"{place}.bn._running_iter": torch.ones(1)}
            else:
                batches = 16.0 if norm.endswith("standing") else 0.0
                state |= {f"{place}.bn.{kind}": value * (batches or 1), f"{place}.bn.accumulation_counter": torch.tensor([batches])}
        torch.save(saved(state, "module"), biggan.path / f"{name}.pth")
    assert_close(open_snapshot(biggan.path).network("G_ema")(biggan.z, biggan.c), biggan.img, tolerance=1e-4)


def of_few_digits(states):
    """Their styles are added to 1, ours hold the 1: with these biases the sum is exact."""
    return {name: {key: (value * 2**12).round() / 2**12 if key.endswith("affine.bias") else value for key, value in state.items()} for name, state in states.items()}


@pytest.mark.parametrize("protocol", [2, 3, 4])
@torch.no_grad()
def test_a_pickle_of_tensorflows_paints_and_judges_as_ours(tmp_path, protocol):
    states = of_few_digits(random_states())
    G, D = models.generator("stylegan2", SMALL).eval(), models.discriminator("stylegan2", SMALL_D).eval()
    G.load_state_dict(states["G_ema"])
    D.load_state_dict(states["D"])
    before = set(sys.modules)
    snapshot = open_snapshot(write_tensorflow(tmp_path / "ffhq.pkl", states, protocol))
    assert not {name for name in set(sys.modules) - before if name.startswith(("tensorflow", "dnnlib"))}
    z, real = normal(2, 6, dtype=torch.float32), normal(4, 3, 16, 16, dtype=torch.float32)
    assert torch.equal(draws_of(snapshot.network("G_ema"), z), draws_of(G, z))
    assert torch.equal(snapshot.network("D")(real), D(real))
    assert all(torch.equal(value, states["G"][key]) for key, value in snapshot.state_dict("G").items())
    assert snapshot.notes == []


@pytest.mark.parametrize("form", ["the average alone", "in a dict", "without D", "of stylegan2-ada with classes", "wide constant", "grey"])
def test_other_pickles_of_tensorflows_are_read(tmp_path, form):
    changes = {"of stylegan2-ada with classes": {"c_dim": 3}, "wide constant": {"fraction": 0.5}, "grey": {"img_channels": 1}}.get(form, {})
    states = of_few_digits(random_states(SMALL | changes, SMALL_D | {"img_channels": changes.get("img_channels", 3)}))
    G, D, Gs = (generator("G", states["G"]), discriminator(states["D"], mbstd_group_size=8), generator("Gs", states["G_ema"]))
    data = {"the average alone": Gs, "in a dict": {"G": G, "D": D, "G_ema": Gs, "args": 3}, "without D": (G, Gs)}.get(form, (G, D, Gs))
    (tmp_path / "a.pkl").write_bytes(tensorflow_pickled(data))
    snapshot = open_snapshot(tmp_path / "a.pkl")
    assert all(torch.equal(value, states["G_ema"][key]) for key, value in snapshot.network("G_ema").state_dict().items())
    if "D" in snapshot.names:
        assert snapshot.minibatch_group == 8
    assert ("D" in snapshot.names) == (form not in ("the average alone", "without D"))


@pytest.mark.parametrize(("G", "D", "said"), [
    ({"architecture": "resnet"}, {}, "was built with architecture 'resnet'; fastdgl's StyleGAN2 has 'skip'"),
    ({"nonlinearity": "relu"}, {}, "was built with nonlinearity 'relu'"),
    ({"resample_kernel": [1, 2, 1]}, {}, "was built with resample_kernel [1, 2, 1]"),
    ({"mapping_lrmul": 1}, {}, "was built with mapping_lrmul 1"),
])
def test_another_stylegan_of_tensorflows_is_refused(tmp_path, networks, G, D, said):
    states = {name: getattr(networks, name) for name in ("G", "D", "G_ema")}
    assert said in refused(write_tensorflow(tmp_path / "a.pkl", states, G=G, D=D))


@pytest.mark.parametrize(("D", "said"), [({"architecture": "orig"}, "architecture 'orig'"), ({"mbstd_group_size": None}, "over groups of None"),
                                         ({"label_size": 10}, "takes classes as the code of TensorFlow does")])
def test_a_discriminator_of_tensorflows_that_cannot_be_built_is_left_out(tmp_path, networks, D, said):
    states = {name: getattr(networks, name) for name in ("G", "D", "G_ema")}
    snapshot = open_snapshot(write_tensorflow(tmp_path / "a.pkl", states, D=D))
    assert snapshot.names == ["G", "G_ema"] and said in snapshot.notes[-1]


@pytest.mark.parametrize("damage", [
    lambda n: n.state["components"]["synthesis"].state["variables"].pop(), lambda n: n.state["variables"].clear(),
    lambda n: n.state["components"].pop("mapping"), lambda n: n.state.update(components={"synthesis": 3}),
    lambda n: n.state.update(variables=[("dlatent_avg", np.zeros((2, 2)))]), lambda n: n.state.update(variables=3),
    lambda n: n.state.update(static_kwargs=None), lambda n: n.state.pop("name"), lambda n: n.state["components"].update(mapping=n)])
def test_a_damaged_pickle_of_tensorflows_is_refused_in_a_sentence(tmp_path, networks, damage):
    network = generator("Gs", networks.G_ema)
    damage(network)
    (tmp_path / "a.pkl").write_bytes(tensorflow_pickled(network))
    refused(tmp_path / "a.pkl")
