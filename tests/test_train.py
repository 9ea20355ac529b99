"""Whole runs of train.py: stages, what they leave behind, resuming, ranks and launchers, and what bad input gets to hear."""

import json
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

from fastdgl.checkpoints import SNAPSHOT_NAME, open_snapshot, saved_checkpoints, saved_snapshots
from fastdgl.engines import TorchEngine
from fastdgl.images import ImageDataset
from fastdgl.samples import SampleSheet
from fastdgl.train import main

from ranks import free_port
from tiny_runs import COLUMNS, ROOT, SCRIPT, TINY, dump, launch, networks, refusal, statistics, switch_off, train, train_apart

STAGES = {
    "teacher": {},
    "student": {"model": {"generator_fraction": 0.5, "discriminator_fraction": 0.5}},
    "guided": {"model": {"generator_fraction": 0.5, "discriminator_fraction": 0.5}, "start": "stage:student",
               "guidance": {"weight": 0.1, "teachers": [{"checkpoint": "stage:teacher", "check": "warn"}]}},
}


@pytest.fixture
def tiny(tmp_path):
    """Writes a config of seconds, with changes on top; its runs go to tmp_path/runs."""

    def write(**changes) -> Path:
        path = tmp_path / "tiny.yaml"
        path.write_text(dump(TINY | {"outdir": str(tmp_path / "runs")} | changes))
        return path

    return write


# Each by itself: the mapping networks' parameters are a hundred times larger, and buffers are the same anyway.
PARTS = ("G.mapping.", "G.synthesis.", "D.mapping.", "D.b")


def relative_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest over the parts of the networks."""
    assert a.keys() == b.keys()
    differences = []
    for part in PARTS:
        keys = [key for key in a if key.startswith(part) and not key.endswith(("resample_filter", "noise_const"))]
        x, y = (torch.cat([state[key].flatten() for key in keys]) for state in (a, b))
        differences.append(float((x - y).norm() / y.norm()))
    return max(differences)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The output and the runs of teacher, student, guided student."""
    folder = tmp_path_factory.mktemp("stages")
    config = folder / "tiny.yaml"
    config.write_text(dump(TINY | {"outdir": str(folder / "runs"), "stages": STAGES}))
    output = train("--config", config)
    return output, sorted((folder / "runs").iterdir()), config


class TestStages:
    def test_each_stage_has_a_numbered_run_folder(self, finished):
        assert [run.name for run in finished[1]] == ["00000-tiny-teacher", "00001-tiny-student", "00002-tiny-guided"]

    def test_a_run_folder_holds_what_people_expect(self, finished):
        for run in finished[1]:
            names = {item.name for item in run.iterdir()}
            assert {"log.txt", "stats.jsonl", "training_options.json", "config.yaml", "reals.png", "fakes_init.png", "checkpoints"} <= names
            assert any(name.startswith("events.out.tfevents") for name in names)
            assert any(re.fullmatch(r"fakes\d{6}\.png", name) for name in names)
            assert any(re.fullmatch(r"network-snapshot-\d{6}\.safetensors", name) for name in names)

    def test_the_sheets_show_each_class_in_a_row(self, finished):
        sheet = Image.open(finished[1][0] / "reals.png")
        assert sheet.size == (COLUMNS * 8, 8 * 10)

    def test_the_end_is_a_table_with_costs_losses_and_places(self, finished):
        output, runs, _ = finished
        table = output[output.index("\nrun "):]
        for word in ("G params", "G MACs", "seconds", "G loss", "D loss", "guidance"):
            assert word in table
        rows = {line.split()[0]: line.split() for line in table.splitlines() if line.startswith("tiny-") and ":" not in line}
        assert list(rows) == ["tiny-teacher", "tiny-student", "tiny-guided"]
        teacher, student = (int(rows[f"tiny-{name}"][1].replace(",", "")) for name in ("teacher", "student"))
        assert student < teacher
        assert rows["tiny-teacher"][-1] == "-" and float(rows["tiny-guided"][-1]) > 0
        for run in runs:
            assert f"images in {run}" in table and f"networks in {run}" in table

    def test_both_terms_and_the_teachers_scores_are_logged_every_tick(self, finished):
        for tick in statistics(finished[1][2]):
            assert {"Loss/G/adversarial", "Loss/G/guidance", "Loss/scores/teacher0_fake", "Loss/scores/teacher0_real"} <= tick.keys()

    def test_the_image_counter_goes_on_in_the_second_stage(self, finished):
        _, student, guided = finished[1]
        assert statistics(student)[-1]["Progress/kimg"]["mean"] == 0.048
        assert statistics(guided)[-1]["Progress/kimg"]["mean"] == 0.096
        assert open_snapshot(guided).seen == 96

    def test_the_config_kept_is_resolved(self, finished):
        kept = yaml.safe_load((finished[1][2] / "config.yaml").read_text())
        assert kept["start"] == str(open_snapshot(finished[1][1]).path)
        assert kept["guidance"]["teachers"][0]["checkpoint"] == str(open_snapshot(finished[1][0]).path)
        assert kept["loss"]["style_mixing"] == 0.9

    def test_one_stage_can_be_run_later_from_the_newest_runs(self, finished):
        output = train("--config", finished[2], "--stage", "guided", "train.kimg=0.008")
        assert "00003-tiny-guided" in output and "00001-tiny-student" not in output

    def test_the_second_stage_begins_with_the_networks_of_the_first(self, finished):
        """With a step too small to see, the guided student is the student."""
        train("--config", finished[2], "--stage", "guided", "name=tiny", "train.kimg=0.008", "train.ema_kimg=1000000",
              "optimizer.generator.lr=1e-12", "optimizer.discriminator.lr=1e-12")
        newest = sorted(finished[1][0].parent.iterdir())[-1]
        began, student = networks(newest), networks(finished[1][1])
        w_avg = "G.mapping.w_avg", "G_ema.mapping.w_avg"
        for key in began.keys() - set(w_avg):
            torch.testing.assert_close(began[key], student[key], atol=1e-6, rtol=0)


def test_no_guidance_and_a_weight_of_zero_are_the_same_run_bit_for_bit(tiny, tmp_path):
    train("--config", tiny(name="teacher"))
    teacher = open_snapshot(tmp_path / "runs" / "00000-teacher").path
    train("--config", tiny(name="plain"))
    train("--config", tiny(name="zero", guidance={"weight": 0, "teachers": [{"checkpoint": str(teacher), "check": "warn"}]}))
    train("--config", tiny(name="some", guidance={"weight": 0.1, "teachers": [{"checkpoint": str(teacher), "check": "warn"}]}))
    plain, zero, some = (networks(tmp_path / "runs" / name) for name in ("00001-plain", "00002-zero", "00003-some"))
    assert all(torch.equal(plain[key], zero[key]) for key in plain)
    assert not all(torch.equal(plain[key], some[key]) for key in plain)


@pytest.mark.parametrize("teachers", [
    pytest.param({"combine": "uniform", "modes": ["updated"]}, id="one-updated"),
    pytest.param({"combine": "dynamic", "modes": ["frozen", "updated"]}, id="frozen-and-updated-dynamic"),
])
def test_teachers_of_every_kind_train_and_resume(tiny, tmp_path, teachers):
    train("--config", tiny(name="teacher"))
    snapshot = str(open_snapshot(tmp_path / "runs" / "00000-teacher").path)
    guidance = {"weight": 0.1, "ramp_kimg": 0.024, "combine": teachers["combine"],
                "teachers": [{"checkpoint": snapshot, "mode": mode, "check": "warn"} for mode in teachers["modes"]]}
    config = tiny(name="guided", guidance=guidance, train=TINY["train"] | {"checkpoint_ticks": 1, "keep_checkpoints": 9})
    assert_resumed_equals_uninterrupted(config, tmp_path / "runs" / "00001-guided")


def test_a_teacher_of_features_trains_and_resumes_and_is_in_no_snapshot(tiny, tmp_path):
    stages = {"teacher": {}, "student": {"model": {"generator_fraction": 0.5}, "guidance": {"features": {
        "checkpoint": "stage:teacher", "images": {"weight": 0.5}, "generators": {"weight": 2.0, "resolutions": [8]}}}}}
    train("--config", tiny(stages=stages), "--stage", "teacher")
    config, run = tiny(stages=stages, train=TINY["train"] | {"checkpoint_ticks": 1, "keep_checkpoints": 9}), tmp_path / "runs" / "00001-tiny-student"
    assert_resumed_equals_uninterrupted(config, run, "--stage", "student")
    assert {"Loss/G/image_features", "Loss/G/generator_features"} <= statistics(run)[-1].keys()
    assert {key.partition(".")[0] for key in networks(run)} == {"G", "D", "G_ema", "D_ema"}
    assert networks(run).keys() == networks(tmp_path / "runs" / "00000-tiny-teacher").keys()
    first, *_, last = (torch.load(folder / "adaptors.pt", weights_only=True)["parameters"] for folder in saved_checkpoints(run / "checkpoints"))
    assert first.keys() == {"0.weight", "0.bias"} and not torch.equal(first["0.weight"], last["0.weight"])
    assert "checkpoint: stage:" not in (run / "config.yaml").read_text()


def assert_resumed_equals_uninterrupted(config: Path, run: Path, *options: str) -> None:
    train("--config", config, *options)
    whole = networks(run)
    # as if it had been stopped after its first checkpoint
    first, *later = saved_checkpoints(run / "checkpoints")
    for item in [*later, open_snapshot(run).path]:
        shutil.rmtree(item) if item.is_dir() else item.unlink()
    train("--resume", run)
    assert later
    resumed = networks(run)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(tiny, tmp_path):
    config = tiny(train=TINY["train"] | {"checkpoint_ticks": 1, "keep_checkpoints": 9, "ema_rampup": 0.05})
    assert_resumed_equals_uninterrupted(config, tmp_path / "runs" / "00000-tiny")


def test_a_resumed_run_can_be_made_longer_and_counts_on(tiny, tmp_path):
    train("--config", tiny())
    run = tmp_path / "runs" / "00000-tiny"
    output = train("--resume", run, "train.kimg=0.096")
    ticks = statistics(run)
    assert ticks[-1]["Progress/kimg"]["mean"] == 0.096
    assert [t["Progress/tick"]["mean"] for t in ticks] == list(range(len(ticks)))
    assert ticks[-1]["Timing/total_sec"]["mean"] > ticks[2]["Timing/total_sec"]["mean"]
    assert "00001" not in output


def test_a_checkpoint_of_an_earlier_fastdgl_is_refused(tiny, tmp_path):
    """It had a folder for each engine, and DeepSpeed's are pickles that run what they hold."""
    train("--config", tiny())
    run = tmp_path / "runs" / "00000-tiny"
    (saved_checkpoints(run / "checkpoints")[-1] / "G").mkdir()
    assert "was written by an earlier fastdgl, in a form that is not read any more" in refusal("--resume", run, "train.kimg=0.096")


def test_resuming_takes_over_a_changed_learning_rate_and_keeps_it(tiny, tmp_path):
    train("--config", tiny())
    run = tmp_path / "runs" / "00000-tiny"
    before = networks(run)
    train("--resume", run, "train.kimg=0.072", "optimizer.generator.lr=1e-12")
    after = networks(run)
    for key in before:
        if key.startswith("G.") and not key.endswith("w_avg"):
            torch.testing.assert_close(after[key], before[key], atol=1e-6, rtol=0)
    kept = yaml.safe_load((run / "config.yaml").read_text())
    assert kept["optimizer"]["generator"]["lr"] == 1e-12 and kept["train"]["kimg"] == 0.072


def test_a_dry_run_of_resuming_changes_nothing(tiny, tmp_path):
    train("--config", tiny())
    run = tmp_path / "runs" / "00000-tiny"
    before = {item: item.stat().st_mtime_ns for item in run.rglob("*")}
    output = train("--resume", run, "--dry-run", "train.kimg=9")
    assert yaml.safe_load(output)["train"]["kimg"] == 9
    assert {item: item.stat().st_mtime_ns for item in run.rglob("*")} == before


def test_what_an_interrupted_run_wrote_after_its_checkpoint_is_not_told_twice(tiny, tmp_path):
    train("--config", tiny(train=TINY["train"] | {"checkpoint_ticks": 1, "keep_checkpoints": 9}))
    run = tmp_path / "runs" / "00000-tiny"
    ticks = [tick["Progress/kimg"]["mean"] for tick in statistics(run)]
    shutil.rmtree(saved_checkpoints(run / "checkpoints")[-1])
    with open(run / "stats.jsonl", "a") as file:
        file.write('{"Progress/kimg": {"nu')
    train("--resume", run)
    assert [tick["Progress/kimg"]["mean"] for tick in statistics(run)] == ticks


def test_old_checkpoints_are_removed(tiny, tmp_path):
    train("--config", tiny(train=TINY["train"] | {"checkpoint_ticks": 1, "keep_checkpoints": 1}))
    assert len(saved_checkpoints(tmp_path / "runs" / "00000-tiny" / "checkpoints")) == 1


# six steps, each a tick with a snapshot and a checkpoint
OFTEN = TINY["train"] | {"tick_kimg": 0.008, "snapshot_ticks": 1, "checkpoint_ticks": 1, "keep_checkpoints": 9}


@pytest.fixture
def by_image(monkeypatch):
    """Snapshots named by images: those of so short a run are not a kimg apart."""
    monkeypatch.setattr("fastdgl.train.snapshot_name", SNAPSHOT_NAME.format)


def seens(run: Path) -> list[int]:
    return [open_snapshot(path).seen for path in saved_snapshots(run)]


@pytest.mark.parametrize(("keep", "left"), [("all", [8, 16, 24, 32, 40, 48]), (3, [32, 40, 48]), (1, [48])], ids=["all", "3", "1"])
def test_the_newest_snapshots_stay(tiny, tmp_path, by_image, keep, left):
    train("--config", tiny(train=OFTEN | {"keep_snapshots": keep}))
    assert seens(tmp_path / "runs" / "00000-tiny") == left


def test_old_snapshots_stay_until_the_new_one_is_whole(tiny, tmp_path, by_image, monkeypatch):
    run = tmp_path / "runs" / "00000-tiny"
    with monkeypatch.context() as context:
        switch_off(context, "safetensors.torch.save_file", 1)
        assert "switched off" in refusal("--config", tiny(train=OFTEN | {"keep_snapshots": 1}))
    assert seens(run) == [8]
    with monkeypatch.context() as context:
        switch_off(context, "fastdgl.checkpoints.remove_old_snapshots", 0)
        assert "switched off" in refusal("--resume", run)
    assert seens(run) == [8, 16]
    train("--resume", run)
    assert seens(run) == [48]


def test_a_snapshot_that_a_resumed_run_has_yet_to_replace_pushes_none_out(tiny, tmp_path, by_image):
    train("--config", tiny(train=OFTEN))
    run = tmp_path / "runs" / "00000-tiny"
    for checkpoint in saved_checkpoints(run / "checkpoints")[1:]:
        shutil.rmtree(checkpoint)
    train("--resume", run, "train.keep_snapshots=1", "train.kimg=0.016")
    assert seens(run) == [16, 24, 32, 40, 48]


def test_the_optimizers_can_be_kept_into_the_second_stage(tiny, tmp_path):
    """Kept, the moments of Adam make another first step than fresh ones."""
    train("--config", tiny(name="first"))
    first = tmp_path / "runs" / "00000-first"
    start = str(open_snapshot(first).path)
    short = TINY["train"] | {"kimg": 0.008}
    train("--config", tiny(name="fresh", start=start, train=short))
    train("--config", tiny(name="kept", start=start, keep_optimizer=True, train=short))
    fresh, kept = (networks(tmp_path / "runs" / name) for name in ("00001-fresh", "00002-kept"))
    assert any(not torch.equal(fresh[key], kept[key]) for key in fresh if key.startswith("D."))
    shutil.rmtree(first / "checkpoints")
    assert "no training checkpoint beside it" in refusal("--config", tiny(start=start, keep_optimizer=True))


def test_dry_run_prints_the_resolved_config_and_leaves_nothing(tiny, tmp_path):
    output = train("--config", tiny(stages=STAGES), "--dry-run", "train.batch=16")
    documents = list(yaml.safe_load_all(output))
    assert [d["stage"] for d in documents] == ["teacher", "student", "guided"]
    assert all(d["train"]["batch"] == 16 for d in documents)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("override, words", [
    ("train.batch=6", "train.batch: 6 on 1 rank(s) is 6 each, which is no multiple of model.mbstd_group"),
    ("train.accumulate_generator=3", "train.batch: 8 cannot be shared by 1 rank(s) in 3 passes (train.accumulate_generator)"),
])
def test_a_dry_run_refuses_what_no_number_of_ranks_can_share(tiny, override, words):
    assert words in refusal("--config", tiny(stages=STAGES), "--dry-run", override)


BIGGAN = {
    # which is as small as a BigGAN's images get
    "images": {"path": "digits", "workers": 0},
    "model": {"family": "biggan", "resolution": 32, "channels": 1, "z_dim": 8, "generator_ch": 2, "discriminator_ch": 2, "shared_dim": 4,
              "attention": 16, "sync_batchnorm": False},
    "loss": {"orthogonal_weight": 1e-4},
    "train": {"batch": 8, "generator_batch": 4, "accumulate_discriminator": 2, "discriminator_steps": 2, "ema_decay": 0.5, "ema_start": 2,
              "kimg": 0.064, "tick_kimg": 0.016, "checkpoint_ticks": 1, "keep_checkpoints": 9},
}


class TestBigGAN:
    def test_trains_a_teacher_a_student_and_the_student_guided(self, tiny, tmp_path):
        narrow = {"model": {"generator_ch": 1, "discriminator_ch": 1, "attention": 0}}
        stages = {"teacher": {"model": {"attention": 0}}, "student": narrow,
                  "guided": narrow | {"start": "stage:student", "guidance": {"weight": 0.1, "teachers": [{"checkpoint": "stage:teacher", "check": "warn"}]}}}
        train("--config", tiny(**BIGGAN, stages=stages))
        teacher, student, guided = sorted((tmp_path / "runs").iterdir())
        snapshot = open_snapshot(guided)
        assert (snapshot.family, snapshot.minibatch_group, snapshot.seen) == ("biggan", 1, 128)
        for tick in statistics(guided):
            assert {"Loss/G/adversarial", "Loss/G/guidance", "Loss/scores/teacher0_fake", "Loss/scores/teacher0_real"} <= tick.keys()
        # G saw 4 images an iteration, D twice 8 in two passes
        tick = statistics(student)[-1]
        assert tick["Loss/scores/fake"]["num"] == 4 and tick["Loss/D/loss"]["num"] == 16 and tick["Progress/kimg"]["mean"] == 0.064

    def test_resumes_bit_for_bit_with_teachers_of_both_kinds(self, tiny, tmp_path):
        train("--config", tiny(name="teacher", **BIGGAN))
        snapshot = str(open_snapshot(tmp_path / "runs" / "00000-teacher").path)
        guidance = {"weight": 0.1, "teachers": [{"checkpoint": snapshot, "mode": mode, "check": "warn"} for mode in ("frozen", "updated")]}
        config = tiny(name="guided", guidance=guidance, **BIGGAN)
        assert_resumed_equals_uninterrupted(config, tmp_path / "runs" / "00001-guided")

    def test_the_average_is_a_copy_until_it_starts(self, tiny, tmp_path):
        def difference(run: Path, buffer: str) -> float:
            state = networks(tmp_path / "runs" / run)
            keys = [key for key in state if key.startswith("G.") and key.endswith(buffer)]
            return max(float((state[key] - state["G_ema." + key.removeprefix("G.")]).abs().max()) for key in keys)

        train("--config", tiny(name="young", **BIGGAN | {"train": BIGGAN["train"] | {"kimg": 0.016}}))
        assert difference("00000-young", "") == 0
        train("--config", tiny(name="older", **BIGGAN))
        assert difference("00001-older", "weight") > 0 and difference("00001-older", "stored_mean") > 0
        # of a run that starts from it, from the first step
        start = str(open_snapshot(tmp_path / "runs" / "00001-older").path)
        train("--config", tiny(name="later", start=start, **BIGGAN | {"train": BIGGAN["train"] | {"kimg": 0.016}}))
        assert difference("00002-later", "weight") > 0

    def test_refuses_images_without_labels(self, tiny, tmp_path):
        write_images(tmp_path / "bare.zip", {"0.png": Image.new("L", (32, 32))})
        sentence = refusal("--config", tiny(**BIGGAN | {"images": {"path": str(tmp_path / "bare.zip"), "workers": 0}}))
        assert "no dataset.json" in sentence and "run `fastdgl dataset --labels folders`; a BigGAN has classes always" in sentence
        # which has no such key
        assert "conditional" not in sentence

    def test_refuses_labels_that_are_no_classes(self, tiny, tmp_path):
        labels = {"labels": [["0.png", [0.5, 0.5]]]}
        write_images(tmp_path / "vectors.zip", {"0.png": Image.new("L", (32, 32))})
        with zipfile.ZipFile(tmp_path / "vectors.zip", "a") as file:
            file.writestr("dataset.json", json.dumps(labels))
        sentence = refusal("--config", tiny(**BIGGAN | {"images": {"path": str(tmp_path / "vectors.zip"), "workers": 0}}))
        assert "are vectors of 2 numbers; a biggan takes one class an image" in sentence and not (tmp_path / "runs").exists()

    def test_refuses_a_teacher_of_another_family(self, tiny, tmp_path, snapshots):
        sentence = refusal("--config", tiny(**BIGGAN, guidance={"teachers": [{"checkpoint": snapshots["digits"]}]}))
        assert "holds networks of family stylegan2, this run trains biggan" in sentence and not (tmp_path / "runs").exists()

    def test_refuses_networks_that_cannot_be(self, tiny):
        sentence = refusal("--config", tiny(**BIGGAN | {"model": BIGGAN["model"] | {"generator_ch": 1}}))
        assert "model: attention=16" in sentence and "use a larger ch" in sentence


EIGHT_STEPS = TINY | {"train": TINY["train"] | {"kimg": 0.064, "tick_kimg": 1, "image_ticks": 0}}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    config = folder / "tiny.yaml"
    config.write_text(dump(EIGHT_STEPS | {"outdir": str(folder / "runs")}))
    # another folder, by path, as a person would from anywhere
    launch(sys.executable, SCRIPT, "--config", config)
    return networks(folder / "runs" / "00000-tiny")


class TestLaunchers:
    """Eight steps on two ranks under each launcher equal one process of plain PyTorch."""

    # a rank trains alike whoever starts it: test_engines.py compares every ZeRO stage, without a launcher
    @pytest.mark.parametrize(("launcher", "stage"), [
        pytest.param(["deepspeed", "--num_gpus", "2"], 3, id="deepspeed"),
        pytest.param(["torchrun", "--nproc_per_node", "2"], 1, id="torchrun"),
    ])
    def test_two_ranks_equal_one_process(self, alone, tmp_path, launcher, stage):
        config = tmp_path / "ranks.yaml"
        config.write_text(dump(EIGHT_STEPS | {"outdir": str(tmp_path / "runs"), "engine": {"kind": "deepspeed", "zero_stage": stage}}))
        output = launch(*launcher, "--master_port", free_port(), SCRIPT, "--config", config)
        assert "2 rank(s)" in output
        difference = relative_difference(networks(tmp_path / "runs" / "00000-tiny"), alone)
        assert difference < 1e-5, f"{difference:.2g}"

    def test_deepspeed_resumes_bit_for_bit(self, tmp_path):
        config = tmp_path / "tiny.yaml"
        settings = {"outdir": str(tmp_path / "runs"), "engine": {"kind": "deepspeed", "zero_stage": 1},
                    "train": TINY["train"] | {"checkpoint_ticks": 1, "keep_checkpoints": 9}}
        config.write_text(dump(TINY | settings))
        train_apart("--config", config)
        run = tmp_path / "runs" / "00000-tiny"
        whole = networks(run)
        for checkpoint in saved_checkpoints(run / "checkpoints")[1:]:
            shutil.rmtree(checkpoint)
        open_snapshot(run).path.unlink()
        train_apart("--resume", run)
        resumed = networks(run)
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)

    @pytest.mark.slow
    @pytest.mark.parametrize("changes", [
        # whose batch norms each see their own rank's batches
        pytest.param(BIGGAN | {"engine": {"kind": "deepspeed", "zero_stage": 2}}, id="biggan"),
        pytest.param({"engine": {"kind": "deepspeed", "zero_stage": 3, "zero_options": {"stage3_param_persistence_threshold": 0}},
                      "train": TINY["train"] | {"checkpoint_ticks": 1, "keep_checkpoints": 9}}, id="zero3"),
    ])
    def test_two_ranks_resume_bit_for_bit(self, tmp_path, changes):
        config = tmp_path / "tiny.yaml"
        config.write_text(dump(TINY | changes | {"outdir": str(tmp_path / "runs")}))
        start = ["torchrun", "--nproc_per_node", "2", "--master_port"]
        launch(*start, free_port(), SCRIPT, "--config", config)
        run = tmp_path / "runs" / "00000-tiny"
        whole = networks(run)
        for checkpoint in saved_checkpoints(run / "checkpoints")[1:]:
            shutil.rmtree(checkpoint)
        open_snapshot(run).path.unlink()
        launch(*start, free_port(), SCRIPT, "--resume", run)
        resumed = networks(run)
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)

    def test_an_error_on_two_ranks_ends_both_and_the_launcher_says_so(self, tmp_path):
        config = tmp_path / "tiny.yaml"
        config.write_text(dump(TINY | {"outdir": str(tmp_path / "runs")}))
        with pytest.raises(AssertionError, match="no multiple of model.mbstd_group"):
            launch("torchrun", "--nproc_per_node", "2", "--master_port", free_port(), SCRIPT, "--config", config, "train.batch=4")
        assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """Snapshots of one-step runs, by what is special about them."""
    folder = tmp_path_factory.mktemp("snapshots")
    one_step = TINY | {"outdir": str(folder / "runs"), "train": TINY["train"] | {"kimg": 0.008}}
    grey16 = folder / "grey16.zip"
    write_images(grey16, {f"{i}.png": Image.new("L", (16, 16), i) for i in range(16)})
    variants = {
        "digits": one_step,
        "narrow": one_step | {"model": TINY["model"] | {"generator_fraction": 0.5}},
        "unconditional": one_step | {"model": TINY["model"] | {"conditional": False}},
        "16px": one_step | {"images": {"path": str(grey16), "workers": 0},
                            "model": TINY["model"] | {"resolution": 16, "conditional": False}},
        "group8": one_step | {"model": TINY["model"] | {"mbstd_group": 8}},
    }
    paths = {}
    for name, config in variants.items():
        path = folder / f"{name}.yaml"
        path.write_text(dump(config | {"name": name}))
        train("--config", path)
        paths[name] = str(open_snapshot(next((folder / "runs").glob(f"*-{name}"))).path)
    return paths


def write_images(path: Path, images: dict[str, Image.Image | bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, image in images.items():
            with archive.open(name, "w") as file:
                file.write(image) if isinstance(image, bytes) else image.save(file, "PNG")


class TestBadInput:
    """One sentence that names the value and what was expected, a non-zero exit, nothing written."""

    def guided_by(self, checkpoint: str) -> dict:
        return {"guidance": {"weight": 0.1, "teachers": [{"checkpoint": checkpoint}]}}

    def refused(self, config: Path, tmp_path: Path, *words: str) -> None:
        sentence = refusal("--config", config)
        for word in words:
            assert word in sentence
        runs = tmp_path / "runs"
        assert not runs.exists() or not list(runs.iterdir())

    def test_missing_images(self, tiny, tmp_path):
        self.refused(tiny(images={"path": str(tmp_path / "none.zip")}), tmp_path, "none.zip", "does not exist")

    def test_empty_folder(self, tiny, tmp_path):
        (tmp_path / "empty").mkdir()
        self.refused(tiny(images={"path": str(tmp_path / "empty")}), tmp_path, "holds no images")

    def test_wrong_size(self, tiny, tmp_path):
        self.refused(tiny(model=TINY["model"] | {"resolution": 64}), tmp_path, "8x8", "64x64")

    def test_wrong_channels(self, tiny, tmp_path):
        self.refused(tiny(model=TINY["model"] | {"channels": 3}), tmp_path, "model.channels: 3", "have 1")

    def test_labels_asked_for_and_missing(self, tiny, tmp_path):
        write_images(tmp_path / "bare.zip", {"0.png": Image.new("L", (8, 8))})
        self.refused(tiny(images={"path": str(tmp_path / "bare.zip")}), tmp_path, "no dataset.json", "or train without labels, by model.conditional=false")

    def test_missing_teacher(self, tiny, tmp_path):
        self.refused(tiny(**self.guided_by(str(tmp_path / "t.safetensors"))), tmp_path, "t.safetensors", "no such file")

    def test_teacher_that_is_no_snapshot(self, tiny, tmp_path):
        (tmp_path / "t.safetensors").write_bytes(b"not a snapshot")
        self.refused(tiny(**self.guided_by(str(tmp_path / "t.safetensors"))), tmp_path, "not a snapshot of fastdgl")

    def test_teacher_of_another_resolution(self, tiny, tmp_path, snapshots):
        self.refused(tiny(**self.guided_by(snapshots["16px"])), tmp_path, "resolution 16", "8")

    def test_teacher_of_other_classes(self, tiny, tmp_path, snapshots):
        self.refused(tiny(**self.guided_by(snapshots["unconditional"])), tmp_path, "classes 0", "10")

    def test_teacher_whose_minibatch_groups_do_not_fit(self, tiny, tmp_path, snapshots):
        config = tiny(train=TINY["train"] | {"batch": 12}, **self.guided_by(snapshots["group8"]))
        self.refused(config, tmp_path, "train.batch: 12", "multiple of 8")

    def test_start_of_another_width(self, tiny, tmp_path, snapshots):
        self.refused(tiny(start=snapshots["narrow"]), tmp_path, "does not fit the network", "instead of")

    def test_batch_that_is_no_multiple_of_the_minibatch_group(self, tiny, tmp_path):
        self.refused(tiny(train=TINY["train"] | {"batch": 6}), tmp_path, "train.batch: 6", "mbstd_group")

    def test_output_that_cannot_be_written(self, tiny, tmp_path):
        (tmp_path / "file").write_text("precious")
        sentence = refusal("--config", tiny(outdir=str(tmp_path / "file")))
        assert "expected a folder" in sentence and (tmp_path / "file").read_text() == "precious"

    @pytest.mark.parametrize("workers", [0, 1])
    def test_corrupt_image_met_while_training(self, tiny, tmp_path, monkeypatch, workers):
        """Of 16 images, the sheet of samples shows four; the broken one is another."""
        monkeypatch.setattr("fastdgl.samples.grid_shape", lambda resolution: (2, 2))
        images = {f"{i:02d}.png": Image.new("L", (8, 8), i) for i in range(16)}
        write_images(tmp_path / "images.zip", images)
        config = tiny(images={"path": str(tmp_path / "images.zip"), "workers": workers}, model=TINY["model"] | {"conditional": False})
        sheet = SampleSheet(ImageDataset(tmp_path / "images.zip"), TINY["model"]["z_dim"], 0, torch.device("cpu"))
        broken = next(i for i in range(1, 16) if i not in sheet.real[:, 0, 0, 0])
        write_images(tmp_path / "images.zip", images | {f"{broken:02d}.png": b"\x89PNG broken"})
        assert f"{broken:02d}.png" in refusal("--config", config)
        assert (tmp_path / "runs" / "00000-tiny" / "reals.png").exists()

    def test_corrupt_image_that_may_be_skipped(self, tiny, tmp_path):
        images = {f"{i:02d}.png": Image.new("L", (8, 8), i) for i in range(16)}
        broken = {"05.png": b"\x89PNG broken"}
        skipping = {"path": str(tmp_path / "images.zip"), "workers": 0, "corrupt": "skip"}
        config = tiny(images=skipping, model=TINY["model"] | {"conditional": False})
        write_images(tmp_path / "images.zip", images | broken)
        train("--config", config)
        run = tmp_path / "runs" / "00000-tiny"
        assert re.findall("skipped: .*", (run / "log.txt").read_text()) == [
            f"skipped: 05.png in {tmp_path / 'images.zip'} cannot be decoded (UnidentifiedImageError: cannot identify image file); "
            "run `fastdgl dataset` to prepare the images"]
        assert statistics(run)[-1]["Data/skipped_files"]["mean"] == 1
        write_images(tmp_path / "images.zip", images | broken | {"06.png": b""})
        assert "2 of the 16 images" in refusal("--config", config)
        assert not list((tmp_path / "runs" / "00001-tiny").glob("network-snapshot-*"))

    def test_images_that_were_skipped_before_a_resume_are_counted_and_told_once(self, tiny, tmp_path, monkeypatch):
        # no sheet of samples has them
        monkeypatch.setattr("fastdgl.samples.grid_shape", lambda resolution: (2, 2))
        images = {f"{i:03d}.png": Image.new("L", (8, 8), i) for i in range(200)}
        write_images(tmp_path / "images.zip", images | {"007.png": b"", "033.png": b""})
        train("--config", tiny(images={"path": str(tmp_path / "images.zip"), "workers": 0, "corrupt": "skip"}, model=TINY["model"] | {"conditional": False},
                               train=TINY["train"] | {"kimg": 0.2, "tick_kimg": 0.04, "checkpoint_ticks": 1, "keep_checkpoints": 99}))
        run = tmp_path / "runs" / "00000-tiny"
        counted = [tick["Data/skipped_files"]["mean"] for tick in statistics(run)]
        assert counted == [0, 0, 1, 1, 2, 2]
        for checkpoint in saved_checkpoints(run / "checkpoints")[4:]:
            shutil.rmtree(checkpoint)
        train("--resume", run)
        assert [tick["Data/skipped_files"]["mean"] for tick in statistics(run)] == counted
        # what was trained twice is in log.txt twice
        told = re.findall(r"skipped: (\d+).png", (run / "log.txt").read_text())
        assert sorted(told.count(name) for name in ("007", "033")) == [1, 2]

    def test_divergence_stops_the_run_before_it_is_saved(self, tiny, tmp_path):
        sentence = refusal("--config", tiny(loss={"r1_gamma": 1e38}))
        assert "diverged" in sentence and "kimg" in sentence
        assert not list((tmp_path / "runs").glob("*/network-snapshot-*"))

    @pytest.mark.parametrize("num_fp16_res, ticks", [(0, 1), (1, 2)], ids=["fp32-at-once", "16-bit-in-the-second-tick"])
    def test_a_loss_that_is_not_finite_stops_the_run(self, tiny, tmp_path, monkeypatch, num_fp16_res, ticks):
        monkeypatch.setattr("fastdgl.steps.r1_penalty", lambda logits, images: logits.sum(dim=1) * 0 + float("inf"))
        monkeypatch.setattr("fastdgl.engines.TorchEngine.step", lambda self: self.optimizer.zero_grad())
        model = TINY["model"] | {"num_fp16_res": num_fp16_res, "low_precision": "bfloat16"}
        settings = TINY["train"] | {"tick_kimg": 0.008}
        assert "Loss/r1_penalty became inf" in refusal("--config", tiny(model=model, train=settings, loss={"r1_interval": 1}))
        assert len(statistics(tmp_path / "runs" / "00000-tiny")) == ticks

    def test_nothing_of_an_earlier_run_is_touched(self, tiny, tmp_path):
        train("--config", tiny())
        run = tmp_path / "runs" / "00000-tiny"
        before = {item: item.stat().st_mtime_ns for item in run.rglob("*") if item.is_file()}
        refusal("--config", tiny(loss={"r1_gamma": 1e38}))
        train("--config", tiny())
        assert {item: item.stat().st_mtime_ns for item in run.rglob("*") if item.is_file()} == before

    def test_resuming_what_has_no_checkpoint(self, tmp_path):
        assert "no training checkpoint" in refusal("--resume", tmp_path)

    def test_resuming_with_other_teachers(self, tiny, tmp_path, snapshots):
        train("--config", tiny())
        run = tmp_path / "runs" / "00000-tiny"
        teacher = f"guidance.teachers=[{{checkpoint: {snapshots['digits']}, mode: updated}}]"
        assert "teacher0" in refusal("--resume", run, teacher)

    def test_resuming_with_another_network(self, tiny, tmp_path):
        train("--config", tiny())
        sentence = refusal("--resume", tmp_path / "runs" / "00000-tiny", "model.generator_fraction=0.5")
        assert "cannot be loaded into this run" in sentence and "size mismatch" in sentence

    def test_resuming_with_images_of_another_kind(self, tiny, tmp_path):
        train("--config", tiny())
        labels = json.dumps({"labels": [["0.png", 0]]}).encode()
        write_images(tmp_path / "colours.zip", {"0.png": Image.new("RGB", (8, 8)), "dataset.json": labels})
        sentence = refusal("--resume", tmp_path / "runs" / "00000-tiny", f"images.path={tmp_path / 'colours.zip'}")
        assert "model.channels: 1" in sentence and "have 3" in sentence

    def test_resuming_in_another_precision(self, tiny, tmp_path, monkeypatch):
        train("--config", tiny())
        # that the engine itself is made is not needed to find out
        monkeypatch.setattr("fastdgl.assembly.make_engine", lambda module, *others: TorchEngine(module, torch.optim.Adam(module.parameters())))
        sentence = refusal("--resume", tmp_path / "runs" / "00000-tiny", "engine.kind=deepspeed", "engine.precision=bf16")
        assert "was saved with engine.precision fp32, this run has bf16; continue with fp32" in sentence

    def test_resuming_from_a_damaged_checkpoint(self, tiny, tmp_path):
        train("--config", tiny(train=TINY["train"] | {"kimg": 0.016, "checkpoint_ticks": 1}))
        run = tmp_path / "runs" / "00000-tiny"
        first, second = saved_checkpoints(run / "checkpoints")
        for file in ("D.pt", "state.pt"):
            (second / file).write_bytes((second / file).read_bytes()[:-100])
            sentence = refusal("--resume", run)
            assert f"{file}: cannot be read" in sentence and f"remove {second} to go on from {first}" in sentence
        shutil.rmtree(second)
        train("--resume", run)
        (saved_checkpoints(run / "checkpoints")[-1] / "state.pt").write_bytes(b"")
        shutil.rmtree(first)
        assert "there is no earlier checkpoint to go on from" in refusal("--resume", run)

    def test_resuming_a_stage_by_name(self, tmp_path):
        result = CliRunner().invoke(main, ["--resume", str(tmp_path), "--stage", "guided"])
        assert result.exit_code == 2 and "leave --stage out" in result.output

    def test_teacher_with_the_classes_in_another_order(self, tiny, tmp_path):
        for name, classes in (("ours", ["cat", "dog"]), ("theirs", ["dog", "cat"])):
            images = {f"{i}.png": Image.new("L", (8, 8), i) for i in range(4)}
            labels = {"labels": [[f"{i}.png", i % 2] for i in range(4)], "classes": classes}
            write_images(tmp_path / f"{name}.zip", images | {"dataset.json": json.dumps(labels).encode()})
        train("--config", tiny(name="teacher", images={"path": str(tmp_path / "theirs.zip"), "workers": 0}))
        teacher = str(open_snapshot(tmp_path / "runs" / "00000-teacher").path)
        sentence = refusal("--config", tiny(images={"path": str(tmp_path / "ours.zip"), "workers": 0}, **self.guided_by(teacher)))
        assert "its class 0 is 'dog', this run's is 'cat'" in sentence

    def test_misspelt_key(self, tiny, tmp_path):
        self.refused(tiny(train={"bacth": 8}), tmp_path, "train.bacth", "did you mean batch?")

    def test_unknown_stage(self, tiny):
        assert "teacher, student, guided" in refusal("--config", tiny(stages=STAGES), "--stage", "techer")

    def test_a_stage_whose_start_has_not_been_run(self, tiny):
        sentence = refusal("--config", tiny(stages=STAGES), "--stage", "guided")
        assert "no run of that stage" in sentence and "run it first" in sentence

    @pytest.mark.parametrize("arguments", [[], ["--config", "a.yaml", "--resume", "run"]], ids=["neither", "both"])
    def test_config_and_resume_exclude_each_other(self, arguments):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2 and "either --config FILE or --resume RUN_FOLDER" in result.output


@pytest.mark.slow
def test_training_through_the_interpreted_kernels_gives_the_references_losses(tmp_path):
    write_images(tmp_path / "images.zip", {f"{i}.png": Image.new("RGB", (8, 8), (i, 9 * i, 255 - i)) for i in range(8)})
    config = tmp_path / "tiny.yaml"
    model = {"resolution": 8, "z_dim": 8, "w_dim": 8, "mapping_layers": 2, "channel_base": 64, "channel_max": 8, "num_fp16_res": 0}
    config.write_text(dump(TINY | {"outdir": str(tmp_path / "runs"), "images": {"path": str(tmp_path / "images.zip"), "workers": 0},
                                   "model": model, "train": TINY["train"] | {"batch": 4, "kimg": 0.008, "tick_kimg": 0.004}}))
    for implementation in ("reference", "fastest"):
        launch(sys.executable, SCRIPT, "--config", config, f"name={implementation}", TRITON_INTERPRET="1", FASTDGL_IMPL=implementation)
    reference, kernels = (statistics(tmp_path / "runs" / name) for name in ("00000-reference", "00001-fastest"))
    for expected, got in zip(reference, kernels, strict=True):
        for name in expected:
            if name.startswith("Loss/"):
                assert got[name]["mean"] == pytest.approx(expected[name]["mean"], rel=1e-3, abs=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize(("config", "name"), [("quickstart", "digits"), ("biggan_digits", "biggan-digits")])
def test_the_digits_train_on_two_cpu_ranks_as_the_readme_says(tmp_path, config, name):
    output = launch("deepspeed", "--num_gpus", "2", "--master_port", free_port(), "fastdgl/train.py", "--config", f"configs/{config}.yaml",
                    f"outdir={tmp_path}", "train.kimg=0.256")
    assert "2 rank(s)" in output and [run.name for run in sorted(tmp_path.iterdir())] == [
        f"00000-{name}-teacher", f"00001-{name}-student", f"00002-{name}-guided"]


def test_what_the_readmes_link_to_is_there():
    for readme in (ROOT / "README.md", ROOT / "kernels" / "README.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", readme.read_text()):
            assert target.startswith("http") or (readme.parent / target).exists(), f"{readme}: {target}"
