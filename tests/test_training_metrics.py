"""Metrics while a run trains: that they are those of `fastdgl evaluate`, that training goes on as without, and which network is the best."""

import itertools
import json
import os
import shutil
import signal
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from ranks import free_port
from tiny_runs import SCRIPT, dump, launch, networks, refusal, same, statistics, switch_off, train
from toy_detectors import Averager, Seer

from fastdgl import training_metrics
from fastdgl.atomic_files import DiskFullError
from fastdgl.checkpoints import BEST_NAME, CheckpointError, SNAPSHOT_NAME, open_snapshot, saved_checkpoints, saved_snapshots
from fastdgl.cli import main as cli
from fastdgl.config import BestBy, MetricName
from fastdgl.fidelity.detectors import TorchScriptDetector
from fastdgl.fidelity.metrics import BETTER, METRICS, append_line
from fastdgl.images.files import sha256_of_file
from fastdgl.training_metrics import Evaluator

NUM, REAL, BATCH = 14, 23, 8
STYLEGAN2 = {
    "model": {"resolution": 8, "channels": 1, "z_dim": 4, "w_dim": 4, "mapping_layers": 1, "channel_base": 32, "channel_max": 4, "num_fp16_res": 0},
    "loss": {"r1_gamma": 0.1, "r1_interval": 2, "path_length_interval": 2},
    "images": {"path": "grey8", "workers": 0, "mirror": True},
}
BIGGAN = {
    "model": {"family": "biggan", "resolution": 32, "channels": 1, "z_dim": 4, "generator_ch": 1, "discriminator_ch": 1, "hier": False,
              "shared_dim": 0, "attention": 0, "sync_batchnorm": False},
    "images": {"path": "digits", "workers": 0},
}
# four ticks of one step, each with a snapshot and a checkpoint
TRAIN = {"batch": BATCH, "kimg": 4 * BATCH / 1000, "tick_kimg": BATCH / 1000, "snapshot_ticks": 1, "checkpoint_ticks": 1, "keep_checkpoints": 9}
SEENS = [8, 16, 24, 32]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for module in (Seer(), Averager()):
        torch.jit.script(module).save(folder / f"{type(module).__name__.lower()}.pt")
    (folder / "text.pt").write_text("no module")
    (folder / "grey8").mkdir()
    random = np.random.RandomState(1)
    for i in range(REAL):
        Image.fromarray(random.randint(256, size=[8, 8]).astype(np.uint8)).save(folder / "grey8" / f"{i:04d}.png")
    return folder


@pytest.fixture
def written(files, tmp_path, monkeypatch):
    """Writes a config of a second; its only run goes to tmp_path/runs/00000-run."""
    # a run of a second has no two snapshots a kimg apart
    monkeypatch.setattr("fastdgl.train.snapshot_name", SNAPSHOT_NAME.format)
    monkeypatch.chdir(files)

    def write(family: dict = STYLEGAN2, settings: dict | None = None, **metrics) -> Path:
        section = {"names": ["fid50k_full"], "detector": "seer.pt", "fakes": NUM, "batch": 5, "cache": str(tmp_path / "cache")} | metrics
        config = family | {"engine": {"kind": "torch"}, "outdir": str(tmp_path / "runs"), "train": TRAIN | (settings or {}), "metrics": section}
        (tmp_path / "config.yaml").write_text(dump(config))
        return tmp_path / "config.yaml"

    return write


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "00000-run"


def lines(folder: Path, name: str = "fid0.014k_full") -> list[dict]:
    return [json.loads(text) for text in (folder / f"metric-{name}.jsonl").read_text().splitlines()]


def evaluated(folder: Path, name: str = "fid0.014k_full") -> list[int]:
    """Images shown to the snapshots that have a line."""
    return [int(line["snapshot_pkl"].removesuffix(".safetensors").rpartition("-")[2]) for line in lines(folder, name)]


def seens(folder: Path) -> list[int]:
    return [open_snapshot(path).seen for path in saved_snapshots(folder)]


def test_the_config_knows_the_metrics_without_importing_them():
    assert list(get_args(MetricName)) == list(METRICS)
    assert list(get_args(BestBy)) == list(BETTER)


def test_are_those_of_evaluate(written, folder, tmp_path):
    output = train("--config", written(names=["fid50k_full", "pr50k3_full", "is50k", "ppl2_wend"], every=3))
    # every third snapshot, and the last
    assert evaluated(folder) == evaluated(folder, "is0.014k") == [24, 32]
    result = CliRunner().invoke(cli, ["evaluate", "--network", str(folder), "--data", "grey8", "--metrics", "fid50k_full,pr50k3_full,is50k,ppl2_wend",
                                      "--detector", "seer.pt", "--fakes", str(NUM), "--batch", "5", "--workers", "0", "--cache", str(tmp_path / "other")])
    assert result.exit_code == 0, result.output
    for name in ("fid0.014k_full", "pr0.014k3_full", "is0.014k", "ppl2_wend"):
        *_, ours, theirs = lines(folder, name)
        assert list(ours) == list(theirs)
        when = ("timestamp", "total_time", "total_time_str")
        assert {key: ours[key] for key in ours if key not in when} == {key: theirs[key] for key in theirs if key not in when}
    tick, = (tick for tick in statistics(folder) if tick["Progress/kimg"]["mean"] == 0.024)
    fid = lines(folder)[0]["results"]["fid0.014k_full"]
    assert tick["Metrics/fid0.014k_full"] == {"num": 1, "mean": fid, "std": 0.0} and "Loss/G/loss" in tick
    assert {"Metrics/pr0.014k3_full_recall", "Metrics/is0.014k_std"} <= tick.keys() and "Metrics/is0.014k_mean" not in statistics(folder)[0]
    assert f"network-snapshot-000024.safetensors: fid0.014k_full {fid:.6g}\n" in (folder / "log.txt").read_text() and f"{fid:.6g}" in output


@pytest.mark.parametrize("family", [STYLEGAN2, BIGGAN], ids=["stylegan2", "biggan"])
def test_training_is_bit_for_bit_the_same_as_without(written, tmp_path, family):
    config = written(family, keep_best="fid50k_full")
    train("--config", config)
    train("--config", config, "metrics={}")
    with_metrics, without = (networks(tmp_path / "runs" / name) for name in ("00000-run", "00001-run"))
    assert evaluated(tmp_path / "runs" / "00000-run") == SEENS
    assert not list((tmp_path / "runs" / "00001-run").glob("metric-*")) and not (tmp_path / "runs" / "00001-run" / BEST_NAME).exists()
    assert same(with_metrics, without)


def test_leave_the_random_numbers_and_the_precision_of_training(written, monkeypatch):
    precisions, states = [], []

    def looked(self, images):
        precisions.append(torch.backends.cudnn.allow_tf32)
        return features(self, images)

    def watched(self, *arguments):
        states.append(torch.get_rng_state())
        precisions.clear()
        evaluate(self, *arguments)
        states.append(torch.get_rng_state())
        assert torch.backends.cudnn.allow_tf32

    features, evaluate = TorchScriptDetector.features, Evaluator.evaluate
    monkeypatch.setattr(TorchScriptDetector, "features", looked)
    monkeypatch.setattr(Evaluator, "evaluate", watched)
    train("--config", written(settings={"kimg": BATCH / 1000}), "engine.allow_tf32=true")
    assert torch.equal(*states)
    assert precisions and not any(precisions)


@pytest.mark.parametrize("call", [3, 7], ids=["second-metric", "at-the-end"])
def test_resuming_makes_up_for_an_interrupted_evaluation(written, folder, tmp_path, monkeypatch, call):
    """Two metrics of four snapshots make eight calls."""
    config = written(names=["fid50k_full", "kid50k_full"], keep_best="kid50k_full")
    with monkeypatch.context() as context:
        switch_off(context, "fastdgl.training_metrics.append_line", call)
        assert "switched off" in refusal("--config", config)
    train("--resume", folder)
    train("--config", config)
    whole = tmp_path / "runs" / "00001-run"
    for name in ("fid0.014k_full", "kid0.014k_full"):
        assert evaluated(folder, name) == SEENS
        assert [line["results"] for line in lines(folder, name)] == [line["results"] for line in lines(whole, name)]
        values = [[tick.get(f"Metrics/{name}") for tick in statistics(place)] for place in (folder, whole)]
        assert values[0] == values[1] and len(values[0]) == len(SEENS)
    assert open_snapshot(folder / BEST_NAME).best == open_snapshot(whole / BEST_NAME).best
    assert same(networks(folder), networks(whole))


@pytest.mark.parametrize("call", [1, 4], ids=["first-metric", "at-the-end"])
def test_a_signal_during_an_evaluation_is_heard_between_two_metrics(written, folder, monkeypatch, call):
    """There is a checkpoint to go on from, though none was due; resuming makes up for the rest."""
    config, calls = written(names=["fid50k_full", "kid50k_full"], settings={"checkpoint_ticks": 0}, every=2), itertools.count(1)

    def append(place, line):
        append_line(place, line)
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as context:
        context.setattr("fastdgl.training_metrics.append_line", append)
        output = train("--config", config)
    seen = 16 if call == 1 else 32
    assert f"stopped as asked after {seen / 1000:g} kimg" in output and evaluated(folder)[-1] == seen
    assert [path.name for path in saved_checkpoints(folder / "checkpoints")][-1] == f"{seen:010d}"
    assert [tick["Progress/kimg"]["mean"] for tick in statistics(folder)][-1] == seen / 1000
    train("--resume", folder)
    assert evaluated(folder, "fid0.014k_full") == evaluated(folder, "kid0.014k_full") == [16, 32]


def test_a_signal_while_an_interrupted_evaluation_is_made_up_for_leaves_the_rest_to_do(written, folder, monkeypatch):
    config = written(names=["fid50k_full", "kid50k_full", "is50k"], every=2)
    with monkeypatch.context() as context:
        switch_off(context, "fastdgl.training_metrics.append_line", 0)
        assert "switched off" in refusal("--config", config)
    with monkeypatch.context() as context:
        context.setattr("fastdgl.training_metrics.append_line", lambda place, line: (append_line(place, line), os.kill(os.getpid(), signal.SIGTERM)))
        assert "stopped as asked after 0.016 kimg" in train("--resume", folder)
    assert evaluated(folder) == [16] and not (folder / "metric-kid0.014k_full.jsonl").exists()
    train("--resume", folder)
    for name in ("fid0.014k_full", "kid0.014k_full", "is0.014k"):
        assert evaluated(folder, name) == [16, 32]


def test_the_last_snapshot_is_evaluated_though_it_has_the_name_of_the_one_before(files, tmp_path, folder, monkeypatch):
    """Two snapshots of the same thousand images have the same name."""
    monkeypatch.chdir(files)
    config = tmp_path / "config.yaml"
    config.write_text(dump(STYLEGAN2 | {
        "engine": {"kind": "torch"}, "outdir": str(tmp_path / "runs"), "train": TRAIN | {"kimg": 2 * BATCH / 1000},
        "metrics": {"names": ["fid50k_full"], "detector": "seer.pt", "fakes": NUM, "batch": 5, "cache": str(tmp_path / "cache")}}))
    with monkeypatch.context() as context:
        switch_off(context, "fastdgl.training_metrics.append_line", 1)
        assert "switched off" in refusal("--config", config)
    assert [line["seen"] for line in lines(folder)] == [8]
    train("--resume", folder)
    assert [line["seen"] for line in lines(folder)] == [8, 16]
    # nor is it forgotten where the one before is gone on from
    shutil.rmtree(saved_checkpoints(folder / "checkpoints")[-1])
    train("--resume", folder)
    assert [line["seen"] for line in lines(folder)] == [8, 16]


def test_a_disk_without_room_for_a_line_is_named(tmp_path):
    (tmp_path / "metric-fid.jsonl").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match="metric-fid.jsonl: cannot be written: No space left on device"):
        append_line(tmp_path, {"metric": "fid", "results": {"fid": 1.0}})


def test_an_only_line_that_was_cut_short_harms_no_other(written, folder):
    with pytest.MonkeyPatch.context() as context:
        switch_off(context, "fastdgl.training_metrics.append_line", 0)
        assert "switched off" in refusal("--config", written())
    (folder / "metric-fid0.014k_full.jsonl").write_text('{"results": {"fi')
    train("--resume", folder)
    assert evaluated(folder) == SEENS


def test_what_comes_again_is_told_once(written, folder):
    train("--config", written(keep_best="fid50k_full"))
    before = lines(folder)
    for checkpoint in saved_checkpoints(folder / "checkpoints")[2:]:
        shutil.rmtree(checkpoint)
    with open(folder / "metric-fid0.014k_full.jsonl", "a") as file:
        file.write('{"results": {"fi')
    train("--resume", folder)
    assert [(line["snapshot_pkl"], line["results"]) for line in lines(folder)] == [(line["snapshot_pkl"], line["results"]) for line in before]
    # nothing is left to do
    train("--resume", folder)
    assert evaluated(folder) == SEENS


def test_a_run_made_longer_is_evaluated_at_its_new_end(written, folder):
    train("--config", written(every=99))
    assert evaluated(folder) == [32]
    train("--resume", folder, "train.kimg=0.048")
    assert evaluated(folder) == [32, 48]


@pytest.fixture
def pretended(monkeypatch):
    """Metrics whose values are given, one for each evaluation."""

    def pretend(name: str, *values: float) -> None:
        coming = iter(values)

        def evaluate(names, *others, **options):
            yield name, {f"{name}": next(coming)}, REAL

        monkeypatch.setattr("fastdgl.fidelity.metrics.evaluate", evaluate)

    return pretend


@pytest.mark.parametrize(("number", "name", "values", "best"), [
    pytest.param("fid50k_full", "fid0.014k_full", [3.0, 1.5, 1.5, 2.0], 16, id="lower"),
    pytest.param("is50k_mean", "is0.014k_mean", [3.0, 1.5, 4.0, 2.0], 24, id="higher"),
    pytest.param("pr50k3_full_recall", "pr0.014k3_full_recall", [0.3, 0.1, 0.2, 0.4], 32, id="one-of-two"),
])
def test_the_best_network_is_kept(written, files, folder, pretended, number, name, values, best):
    pretended(name, *values)
    train("--config", written(names=[number.removesuffix("_mean").removesuffix("_recall")], keep_best=number),
        "train.keep_snapshots=1")
    kept = open_snapshot(folder / BEST_NAME)
    assert kept.seen == best and seens(folder) == [32]
    assert kept.best == {"number": name, "value": values[SEENS.index(best)], "kimg": best / 1000, "num_fake": NUM,
                         "detector_sha256": sha256_of_file(files / "seer.pt")}
    assert f"{SNAPSHOT_NAME.format(best)} has the best {name} so far" in (folder / "log.txt").read_text()


def test_the_best_is_a_copy_that_opens_and_no_newest_snapshot(written, folder, pretended):
    pretended("fid0.014k_full", 1.0, 2.0, 3.0, 4.0)
    train("--config", written(keep_best="fid50k_full"))
    first, best = open_snapshot(folder / SNAPSHOT_NAME.format(8)), open_snapshot(folder / BEST_NAME)
    assert all(same(first.state_dict(name), best.state_dict(name)) for name in best.names)
    assert best.averaged_generator("cpu") is not None and first.best is None
    assert open_snapshot(folder).seen == 32
    for path in saved_snapshots(folder):
        path.unlink()
    with pytest.raises(CheckpointError, match="no network snapshot in this folder"):
        open_snapshot(folder)


def test_the_best_survives_a_resume(written, folder, pretended):
    pretended("fid0.014k_full", 4.0, 1.0, 3.0, 2.0, 5.0, 0.5)
    train("--config", written(keep_best="fid50k_full"), "train.keep_snapshots=2")
    train("--resume", folder, "train.kimg=0.040")
    assert open_snapshot(folder / BEST_NAME).seen == 16
    train("--resume", folder, "train.kimg=0.048")
    assert open_snapshot(folder / BEST_NAME).seen == 48 and seens(folder) == [40, 48]


def test_values_of_other_numbers_are_not_compared(written, folder, pretended):
    pretended("fid0.014k_full", 1.0, 1.0, 1.0, 1.0)
    train("--config", written(keep_best="fid50k_full"))
    pretended("kid0.014k_full", 2.0, 3.0)
    train("--resume", folder, "train.kimg=0.040", "metrics.names=[kid50k_full]", "metrics.keep_best=kid50k_full")
    assert open_snapshot(folder / BEST_NAME).best["value"] == 2.0


def test_a_best_that_cannot_be_written_leaves_the_one_before(written, folder, pretended, monkeypatch):
    pretended("fid0.014k_full", 4.0, 3.0, 2.0, 1.0)
    with monkeypatch.context() as context:
        # each snapshot, and each best
        switch_off(context, "safetensors.torch.save_file", 5)
        assert "switched off" in refusal("--config", written(keep_best="fid50k_full"))
    assert open_snapshot(folder / BEST_NAME).seen == 16 and not list(folder.glob("*.tmp"))
    pretended("fid0.014k_full", 2.0, 1.0)
    train("--resume", folder)
    assert open_snapshot(folder / BEST_NAME).seen == 32 and evaluated(folder) == SEENS


@pytest.mark.parametrize(("metrics", "words"), [
    pytest.param({"detector": "none.pt"}, "none.pt cannot be read", id="no-detector"),
    pytest.param({"detector": "text.pt"}, "text.pt is no TorchScript file", id="no-torchscript"),
    pytest.param({"sha256": "0" * 64}, "expected 000000", id="another-detector"),
    pytest.param({"names": ["is50k"], "detector": "averager.pt"}, "returns no probabilities of classes", id="no-probabilities"),
    pytest.param({"names": ["dc50k5_full"], "fakes": 5}, "dc50k5_full needs at least 6 fakes, got 5", id="too-few-fakes"),
    pytest.param({"cache": __file__}, "cannot be written to: File exists; choose another folder by metrics.cache", id="cache-is-a-file"),
    pytest.param({"names": ["fid"]}, "metrics.names.0: expected 'fid50k_full', 'kid50k_full'", id="unknown-metric"),
    pytest.param({"names": ["is50k", "is50k"]}, "metrics.names: is50k, is50k names a metric twice", id="twice"),
    pytest.param({"detector": None, "sha256": "0" * 64}, "metrics.sha256: is the checksum of one file", id="checksum-of-no-detector"),
    pytest.param({"names": ["ppl2_wend"], "detector": "averager.pt"}, "averager.pt cannot tell perceptual distances", id="no-lpips"),
    pytest.param({"keep_best": "is50k_mean"}, "metrics.keep_best: is50k_mean is not computed; add its metric to metrics.names", id="best-not-computed"),
    pytest.param({"keep_best": "is50k_std"}, "metrics.keep_best: expected 'fid50k_full'", id="best-tells-nothing"),
])
def test_what_cannot_be_computed_is_refused_before_training(written, tmp_path, metrics, words):
    assert words in refusal("--config", written(**metrics))
    assert not (tmp_path / "runs").exists()


def test_a_metric_of_other_networks_is_refused_before_training(written, tmp_path):
    assert "ppl2_wend is the length of paths in w" in refusal("--config", written(BIGGAN, names=["ppl2_wend"]))
    assert not (tmp_path / "runs").exists()


def test_images_are_counted_without_their_mirror_images(written, tmp_path):
    (tmp_path / "few").mkdir()
    for i in range(5):
        Image.new("L", (8, 8), i).save(tmp_path / "few" / f"{i}.png")
    few = STYLEGAN2 | {"images": STYLEGAN2["images"] | {"path": str(tmp_path / "few")}}
    assert "dc50k5_full needs at least 6 real images, got 5" in refusal("--config", written(few, names=["dc50k5_full"]))
    assert not (tmp_path / "runs").exists()


def test_a_resumed_run_whose_detector_is_gone_is_refused(written, folder):
    train("--config", written())
    assert "none.pt cannot be read" in refusal("--resume", folder, "metrics.detector=none.pt", "train.kimg=0.040")
    assert len(statistics(folder)) == 4


def test_two_ranks_evaluate_together(files, tmp_path):
    """In the order of the images, whichever rank drew them: as one rank computes it of the same snapshot."""
    config = STYLEGAN2 | {"images": {"path": str(files / "grey8"), "workers": 0}, "outdir": str(tmp_path / "runs"), "engine": {"kind": "torch"},
                          "train": {"batch": BATCH, "kimg": BATCH / 1000},
                          "metrics": {"names": ["fid50k_full"], "detector": str(files / "seer.pt"), "fakes": NUM, "batch": 3, "cache": str(tmp_path / "cache"),
                                      "keep_best": "fid50k_full"}}
    (tmp_path / "config.yaml").write_text(dump(config))
    launch("torchrun", "--nproc_per_node", "2", "--master_port", free_port(), SCRIPT, "--config", tmp_path / "config.yaml")
    folder = tmp_path / "runs" / "00000-run"
    line, = lines(folder)
    assert line["num_gpus"] == 2 and open_snapshot(folder / BEST_NAME).best["value"] == line["results"]["fid0.014k_full"]
    arguments = ["--network", folder, "--data", files / "grey8", "--detector", files / "seer.pt", "--fakes", NUM, "--batch", 6, "--workers", 0,
                 "--cache", tmp_path / "other"]
    assert CliRunner().invoke(cli, ["evaluate", *map(str, arguments)]).exit_code == 0
    # a sum in another order may take one level to the next
    assert lines(folder)[-1]["results"] == pytest.approx(line["results"], rel=1e-3)


@pytest.mark.parametrize(("batch", "accumulate", "most"), [(64, 1, 8), (64, 2, 4), (3, 1, 3), (64, 4, 2)])
def test_are_of_images_generated_in_batches_no_larger_than_trainings(written, monkeypatch, batch, accumulate, most):
    asked = []
    monkeypatch.setattr(training_metrics, "evaluated", lambda *arguments, **options: asked.append(options["batch"]) or [])
    train("--config", written(names=["fid50k_full"], every=9, batch=batch), f"train.accumulate_generator={accumulate}", "train.kimg=0.008",
          "loss.path_length_interval=0", "model.mbstd_group=2")
    assert asked == [most]
