"""`fastdgl generate`: which image a seed makes, and what a wrong call gets to hear. `fastdgl dataset` is in test_packing.py."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from fastdgl import checkpoints, config as configs, models
from fastdgl.cli import main

C_DIM = 3


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """A conditional and an unconditional snapshot of a tiny network, and the averaged G in each."""
    folder = tmp_path_factory.mktemp("snapshots")
    paths = {}
    for name, c_dim in (("conditional", C_DIM), ("unconditional", 0)):
        torch.manual_seed(0)
        config = configs.from_dict({"images": {"path": "digits"}, "model": {
            "resolution": 16, "z_dim": 8, "w_dim": 8, "mapping_layers": 2, "channel_base": 64, "channel_max": 8, "num_fp16_res": 0}}, "test")
        G = models.generator("stylegan2", config.model.generator_arguments(c_dim))
        average = models.generator("stylegan2", config.model.generator_arguments(c_dim))
        average.mapping.w_avg.normal_()
        D = models.discriminator("stylegan2", config.model.discriminator_arguments(c_dim))
        paths[name] = folder / name / "network-snapshot-000001.safetensors"
        paths[name].parent.mkdir()
        images = SimpleNamespace(label_dim=c_dim, class_names=None)
        checkpoints.save_snapshot(paths[name], {"G": G, "D": D, "G_ema": average}, config, images, 1000)
    return paths


def generate(*arguments):
    return CliRunner().invoke(main, ["generate", *map(str, arguments)])


def test_a_seed_chooses_z_as_nvidias_tools_do_and_the_averaged_generator_draws(snapshots, tmp_path):
    result = generate("--network", snapshots["unconditional"], "--seeds", "3,5-6", "--trunc", 0.7, "--outdir", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["seed0003.png", "seed0005.png", "seed0006.png"]
    G = checkpoints.open_snapshot(snapshots["unconditional"]).network("G_ema")
    z = torch.from_numpy(np.random.RandomState(5).randn(1, 8)).float()
    with torch.no_grad():
        image = G(z, torch.zeros(1, 0), truncation_psi=0.7, noise_mode="const")
    expected = (image[0].permute(1, 2, 0) * 127.5 + 128).clamp(0, 255).to(torch.uint8).numpy()
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "seed0005.png")), expected)


def test_classes_make_different_images(snapshots, tmp_path):
    for index in (0, 2):
        assert generate("--network", snapshots["conditional"], "--seeds", 0, "--class", index, "--outdir", tmp_path / str(index)).exit_code == 0
    first, third = (np.asarray(Image.open(tmp_path / str(index) / "seed0000.png")) for index in (0, 2))
    assert not np.array_equal(first, third)


def test_a_run_folder_stands_for_its_newest_snapshot(snapshots, tmp_path):
    assert generate("--network", snapshots["unconditional"].parent, "--seeds", "0", "--outdir", tmp_path).exit_code == 0
    assert (tmp_path / "seed0000.png").exists()


@pytest.mark.parametrize("name, arguments, sentence", [
    pytest.param("conditional", [], "choose one with --class 0 to 2", id="class-missing"),
    pytest.param("conditional", ["--class", "3"], "--class 3: this network has classes 0 to 2", id="class-out-of-range"),
    pytest.param("unconditional", ["--class", "0"], "has no classes", id="class-of-an-unconditional-network"),
    pytest.param("unconditional", ["--seeds", "5-3"], "is no list of seeds", id="seeds-backwards"),
    pytest.param("unconditional", ["--seeds", "a"], "is no list of seeds", id="seeds-no-number"),
    pytest.param("unconditional", ["--seeds", str(2**32)], "expected seeds up to", id="seed-too-large"),
    pytest.param("unconditional", ["--seeds", "0-99999999"], "at most 1000000 in a range", id="seeds-too-many"),
    pytest.param("unconditional", ["--network", "none.safetensors"], "none.safetensors: no such file", id="network-missing"),
    pytest.param("unconditional", ["--network", __file__], "is not a snapshot of fastdgl", id="network-of-something-else"),
    pytest.param("unconditional", ["--outdir", __file__], "images cannot be written", id="outdir-is-a-file"),
    pytest.param("unconditional", ["--noise-mode", "loud"], "random", id="unknown-noise-mode"),
])
def test_a_wrong_call_is_refused_in_a_sentence(snapshots, tmp_path, name, arguments, sentence):
    result = generate("--network", snapshots[name], "--seeds", "0", "--outdir", tmp_path / "out", *arguments)
    assert result.exit_code != 0 and sentence in result.output and "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
