"""The teacher of the digits: when it is good enough to ship, how it is written, and that its training goes on where it was."""

import math

import numpy as np
import pytest
import safetensors.torch
import torch

from bench import digits_teacher
from bench.digits_teacher import Acceptance, TrainingFailed, pack, trained, within_class_variance
from fastdgl import checkpoints, config as configs, models
from fastdgl.checkpoints import CheckpointError, open_snapshot

GOOD = Acceptance(kimg=400, fid=8.0, variance=0.9, real=0.7, fake=-0.8)


def test_variance_is_that_within_classes_alone():
    # two pixels; the classes lie far apart, which must not count
    images = np.array([[0, 0], [2, 0], [100, 50], [100, 54]], dtype=np.uint8)
    classes = np.array([0, 0, 1, 1])
    # of class 0: 2 and 0; of class 1: 0 and 8
    assert within_class_variance(images, classes) == pytest.approx((1 + 4) / 2)
    assert within_class_variance(images[::-1], classes[::-1]) == pytest.approx(2.5)


@pytest.mark.parametrize("changes, words", [
    ({"fid": 10.0}, "FID is 10, expected below 10"), ({"fid": math.nan}, "FID is nan"),
    ({"variance": 0.8}, "variance within classes is 0.8 of the digits', expected above 0.8"), ({"variance": math.nan}, "variance within classes is nan"),
    ({"real": -0.1}, "D scores digits -0.1 and its own images -0.8"), ({"fake": 0.1}, "its own images +0.1"), ({"real": math.nan}, "D scores digits +nan")])
def test_each_fault_is_named(changes, words):
    assert GOOD.faults == []
    fault, = Acceptance(**vars(GOOD) | changes).faults
    assert words in fault


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    """A snapshot of the config's networks, untrained."""
    config, = configs.read(digits_teacher.CONFIG)
    arguments = {"G": config.model.generator_arguments(10), "D": config.model.discriminator_arguments(10)}
    torch.manual_seed(0)
    networks = {"G": models.generator("biggan", arguments["G"]), "D": models.discriminator("biggan", arguments["D"]),
                "G_ema": models.generator("biggan", arguments["G"]), "D_ema": models.discriminator("biggan", arguments["D"])}
    path = tmp_path_factory.mktemp("teacher") / "network-snapshot-000400.safetensors"
    header = {"family": "biggan", "seen": 400_000, "classes": None, "averaged_D": True, **arguments}
    checkpoints.write_snapshot(path, {name: network.state_dict() for name, network in networks.items()}, header)
    return open_snapshot(path)


def test_a_good_one_is_written_small_and_opens_as_any_snapshot(snapshot, tmp_path):
    path = tmp_path / "teacher.safetensors"
    pack(snapshot, GOOD, path)
    assert path.stat().st_size <= digits_teacher.MOST_BYTES
    assert {value.dtype for value in safetensors.torch.load_file(path).values()} == {torch.float16}
    packed = open_snapshot(path)
    assert packed.names == ["G", "D", "G_ema", "D_ema"] and packed.seen == snapshot.seen and packed.teacher_name(average=True) == "D_ema"
    for name in packed.names:
        average = name if name.endswith("_ema") else f"{name}_ema"
        there, back = snapshot.network(average).state_dict(), packed.network(name).state_dict()
        for key, value in there.items():
            # rounded once, to 11 bits, or to steps of 2^-24
            torch.testing.assert_close(back[key], value, rtol=2**-11, atol=2**-25)


def test_a_bad_one_is_not_written(snapshot, tmp_path):
    path = tmp_path / "teacher.safetensors"
    with pytest.raises(CheckpointError, match="is no teacher to ship: FID is 11, expected below 10; its variance within classes is 0.5"):
        pack(snapshot, Acceptance(400, 11.0, 0.5, 1.0, -1.0), path)
    assert not list(tmp_path.iterdir())


def test_one_too_large_leaves_no_file(snapshot, tmp_path, monkeypatch):
    monkeypatch.setattr(digits_teacher, "MOST_BYTES", 1000)
    with pytest.raises(CheckpointError, match="would take .* bytes; expected at most 1,000: train a narrower network"):
        pack(snapshot, GOOD, tmp_path / "teacher.safetensors")
    assert not list(tmp_path.iterdir())


def test_training_goes_on_from_its_newest_checkpoint_and_failure_is_told(tmp_path, monkeypatch):
    calls, code = [], 0

    class Ran:
        @property
        def returncode(self):
            return code

    def run(command, **options):
        calls.append(command[2:])
        (tmp_path / "00000-digits-teacher").mkdir(exist_ok=True)
        return Ran()

    monkeypatch.setattr(digits_teacher.subprocess, "run", run)
    assert trained(tmp_path, ["train.kimg=1"]) == tmp_path / "00000-digits-teacher"
    assert calls.pop() == ["--config", str(digits_teacher.CONFIG), f"outdir={tmp_path}", "train.kimg=1"]
    (tmp_path / "00000-digits-teacher" / "checkpoints" / "0000000032").mkdir(parents=True)
    trained(tmp_path, [])
    assert calls.pop() == ["--resume", str(tmp_path / "00000-digits-teacher")]
    code = 3
    with pytest.raises(TrainingFailed, match=f"ended with exit code 3; its output is in {tmp_path / 'train.log'}"):
        trained(tmp_path, [])
