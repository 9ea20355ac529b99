"""Runs that start from networks of which a part fits: what is taken, what is new, and what is refused."""

from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from tiny_networks import BIGGAN, STYLEGAN2, save

from fastdgl import models
from fastdgl.assembly import open_start, starts_partly, take_over
from fastdgl.checkpoints import CheckpointError, open_snapshot
from fastdgl.config import ConfigError, from_dict
from fastdgl.images import CLASSES
from fastdgl.train import main
from tiny_runs import TINY, dump, train


def run_of(model, **changes):
    return from_dict({"images": {"path": "digits"}, "model": model, "start": "a.safetensors"} | changes, "test")


def images_for(config, c_dim):
    return SimpleNamespace(resolution=config.model.resolution, channels=3, label_dim=c_dim, class_names=None, label_kind=CLASSES if c_dim else None)


def networks_of(config, c_dim):
    model = config.model
    torch.manual_seed(1)
    return {"G": models.generator(model.family, model.generator_arguments(c_dim)),
            "D": models.discriminator(model.family, model.discriminator_arguments(c_dim)),
            "G_ema": models.generator(model.family, model.generator_arguments(c_dim))}


@pytest.mark.parametrize(("theirs", "c_dim", "ours", "our_c_dim", "new", "left"), [
    pytest.param(STYLEGAN2, 0, STYLEGAN2 | {"conditional": True}, 3, {"mapping.embed.weight", "mapping.embed.bias", "mapping.fc0.weight"}, {"mapping.fc0.weight"},
                 id="classes"),
    pytest.param(STYLEGAN2 | {"conditional": True}, 3, STYLEGAN2, 0, {"mapping.fc0.weight"}, {"mapping.embed.weight", "mapping.embed.bias", "mapping.fc0.weight"},
                 id="no-classes"),
    pytest.param(STYLEGAN2 | {"mapping_layers": 1}, 0, STYLEGAN2, 0, {"mapping.fc1.weight", "mapping.fc1.bias"}, set(), id="mapping"),
    pytest.param(BIGGAN, 3, BIGGAN, 5, None, None, id="biggan"),
])
def test_takes_over_what_fits_and_says_what_not(tmp_path, theirs, c_dim, ours, our_c_dim, new, left):
    save(tmp_path / "a" / "a.safetensors", theirs, c_dim, None)
    start, config = open_snapshot(tmp_path / "a" / "a.safetensors"), run_of(ours, start_partly=True)
    networks = networks_of(config, our_c_dim)
    before = {name: {key: value.clone() for key, value in network.state_dict().items()} for name, network in networks.items()}
    lines = take_over(start, networks, partly=True)
    assert [line.partition(":")[0] for line in lines] == ["G", "D", "G_ema"]
    for name, line in zip(networks, lines):
        saved = start.state_dict(name)
        said_new, said_left = (set(part.partition(": ")[2].split(", ")) - {"none"} for part in line.split("; ")[1:])
        for key, value in networks[name].state_dict().items():
            fits = key in saved and saved[key].shape == value.shape
            assert torch.equal(value, saved[key] if fits else before[name][key]) and (key in said_new) != fits
        assert said_left == {key for key in saved if key not in before[name] or saved[key].shape != before[name][key].shape}
        if new is not None and name != "D":
            assert (said_new, said_left) == (new, left)


@pytest.mark.parametrize(("start_partly", "c_dim", "partly"), [(None, 0, True), (None, 3, False), (True, 3, True), (False, 0, False)])
def test_a_network_without_classes_may_start_a_run_with_classes(tmp_path, start_partly, c_dim, partly):
    save(tmp_path / "a" / "a.safetensors", STYLEGAN2 | {"conditional": c_dim > 0}, c_dim, None)
    config = run_of(STYLEGAN2 | {"conditional": True}, start_partly=start_partly)
    path, images = str(tmp_path / "a" / "a.safetensors"), images_for(config, 5)
    assert starts_partly(open_snapshot(path), config, images) is partly
    if partly:
        assert open_start(path, config, images).arguments["G"]["c_dim"] == c_dim
    else:
        with pytest.raises(CheckpointError, match=rf"was trained with classes {c_dim}, this run has 5; they must agree"):
            open_start(path, config, images)


def test_networks_with_nothing_in_common_are_refused(tmp_path):
    save(tmp_path / "a" / "a.safetensors", STYLEGAN2 | {"z_dim": 5, "w_dim": 5, "channel_max": 7, "channel_base": 56}, 0, None)
    save(tmp_path / "b" / "b.safetensors", BIGGAN, 3, None)
    config = run_of(STYLEGAN2 | {"channels": 1}, start_partly=True)
    state = open_snapshot(tmp_path / "a" / "a.safetensors")
    lone = {"G": torch.nn.Linear(3, 4)}
    with pytest.raises(CheckpointError, match="has nothing in common with this run's network"):
        take_over(state, lone, partly=True)
    with pytest.raises(CheckpointError, match="holds networks of family biggan, this run trains stylegan2"):
        open_start(str(tmp_path / "b" / "b.safetensors"), config, images_for(config, 0))


def test_optimizers_are_not_kept_of_a_part():
    with pytest.raises(ConfigError, match="keep_optimizer: true does not go with start_partly"):
        run_of(STYLEGAN2, start_partly=True, keep_optimizer=True)


def test_a_run_says_what_it_starts_with(tmp_path):
    """From digits without classes to digits with classes; and the student's list of widths trains."""
    model = TINY["model"] | {"conditional": False, "generator_channels": [7, 5]}
    plain = TINY | {"name": "plain", "outdir": str(tmp_path / "runs"), "train": {"batch": 8, "kimg": 0.008}, "model": model}
    (tmp_path / "a.yaml").write_text(dump(plain))
    train("--config", tmp_path / "a.yaml")
    folder, = (tmp_path / "runs").glob("*-plain")
    assert open_snapshot(folder).arguments["G"]["channels"] == [7, 5]
    (tmp_path / "b.yaml").write_text(dump(plain | {"name": "classes", "start": str(folder), "model": model | {"conditional": True}}))
    train("--config", tmp_path / "b.yaml")
    log = next((tmp_path / "runs").glob("*-classes")).joinpath("log.txt").read_text()
    assert "start     G: " in log and "new: mapping.embed.weight, mapping.embed.bias, mapping.fc0.weight; not taken: mapping.fc0.weight" in log
    (tmp_path / "c.yaml").write_text(dump(plain | {"name": "no", "start": str(folder), "start_partly": False, "model": model | {"conditional": True}}))
    result = CliRunner().invoke(main, ["--config", str(tmp_path / "c.yaml")])
    assert result.exit_code == 1 and "was trained with classes 0, this run has 10; they must agree" in result.output
