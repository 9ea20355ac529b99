"""Teachers worth the name: averaged discriminators, learning rates that decay, the check before use, and how strongly a teacher pulls."""

import json
import math
import shutil
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from fastdgl import checkpoints, config as configs, ema, models
from fastdgl.checkpoints import CheckpointError, open_snapshot, saved_checkpoints
from fastdgl.config import ConfigError
from fastdgl.conversion import convert
from fastdgl.engines import end_run, make_engine
from fastdgl.guidance import guidance_loss, pulls
from fastdgl.images import ImageDataset
from fastdgl.losses import ADVERSARIAL
from fastdgl.teachers import check_teachers, teacher_scores

from ranks import on_ranks
from test_engine_states import ENGINES, allow_fp16
from tiny_networks import STYLEGAN2
from tiny_runs import DIGITS, TINY, dump, networks, refusal, same, statistics, train

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_the_slope_is_minus_the_derivative_of_the_generators_loss(name):
    logits = torch.linspace(-8, 8, 41, dtype=torch.float64).requires_grad_(True)
    derivative, = torch.autograd.grad(ADVERSARIAL[name].generator(logits).sum(), logits)
    torch.testing.assert_close(ADVERSARIAL[name].slope(logits), -derivative)


@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("dynamic", [False, True])
def test_the_pull_is_the_ratio_of_the_gradients_that_come_through_the_discriminators(name, dynamic):
    generator = torch.Generator().manual_seed(0)
    own, *scores = [(3 * torch.randn(16, 1, generator=generator, dtype=torch.float64)).requires_grad_(True) for _ in range(3)]
    loss = ADVERSARIAL[name]
    (loss.generator(own).mean() + 0.3 * guidance_loss(scores, dynamic, loss.generator).mean()).backward()
    found = pulls(scores, own, 0.3, dynamic, loss.slope)
    assert [float(pull) for pull in found] == pytest.approx([float(score.grad.sum() / own.grad.sum()) for score in scores])


def test_the_learning_rate_falls_to_zero_over_the_last_part_of_the_run():
    def factors(**settings) -> list[float]:
        return [configs.Optimizer(**settings).lr_factor(done) for done in (0, 0.5, 0.75, 0.9, 1)]

    assert factors() == [1] * 5
    assert factors(decay="linear", decay_fraction=0.5) == pytest.approx([1, 1, 0.5, 0.2, 0])
    assert factors(decay="linear", decay_fraction=1.0) == pytest.approx([1, 0.5, 0.25, 0.1, 0])
    assert factors(decay="cosine", decay_fraction=0.5) == pytest.approx([1, 1, 0.5, (1 - math.cos(0.2 * math.pi)) / 2, 0])


@pytest.mark.parametrize("text, sentence", [
    ("optimizer: {decay: step}", "optimizer.decay: expected 'none', 'linear' or 'cosine', got 'step'"),
    ("optimizer: {decay_fraction: 0}", "optimizer.decay_fraction: expected a number greater than 0, got 0"),
    ("guidance: {teachers: [{checkpoint: a, average: 1}]}", "guidance.teachers.0.average: expected true or false, got 1"),
    ("guidance: {teachers: [{checkpoint: a, check: ignore}]}", "guidance.teachers.0.check: expected 'reject' or 'warn', got 'ignore'"),
])
def test_settings_that_cannot_be_are_rejected(tmp_path, text, sentence):
    (tmp_path / "a.yaml").write_text("images: {path: digits}\nmodel: {resolution: 32, channels: 1}\n" + text)
    with pytest.raises(ConfigError) as error:
        configs.read(tmp_path / "a.yaml")
    assert sentence in str(error.value)


def step_at_rates(run, folder):
    """For each engine: whether a rate scaled by 0 leaves the parameters, and one scaled by 1/4 steps as if made with a quarter."""
    allow_fp16()
    found = {}
    for name, engine in ENGINES.items():
        def stepped(lr: float, factors: list[float]) -> list[torch.Tensor]:
            config = configs.from_dict(TINY | {"engine": engine}, "test")
            torch.manual_seed(0)
            module = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))
            made = make_engine(module, configs.Adam(lr=lr), 0, config, run)
            history = []
            for factor in factors:
                made.scale_lr(factor)
                x = torch.linspace(-1, 1, 8).reshape(2, 4).to(next(module.parameters()).dtype)
                made.backward(made.module(x).float().square().mean())
                made.step()
                history.append(torch.cat([p.flatten() for p in made.state_dict()["parameters"].values()]))
            return history

        scaled, small = stepped(0.25, [1, 0, 0.25, 0.25]), stepped(0.0625, [1, 1])
        quarter = stepped(0.25, [0.25, 0.25])
        found[name] = {"stands at 0": bool(torch.equal(scaled[0], scaled[1])), "goes on": not torch.equal(scaled[1], scaled[2]),
                       "as a smaller one": all(torch.equal(a, b) for a, b in zip(quarter, small))}
    if run.rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    end_run()


def test_every_engine_steps_at_the_scaled_rate(tmp_path):
    on_ranks(2, step_at_rates, str(tmp_path))
    found = json.loads((tmp_path / "found.json").read_text())
    assert found.keys() == ENGINES.keys()
    for name, holds in found.items():
        assert all(holds.values()), f"{name}: {holds}"


@pytest.fixture(scope="module")
def decayed(tmp_path_factory):
    """A run whose rates fall along a cosine, with a checkpoint each tick."""
    folder = tmp_path_factory.mktemp("decayed")
    settings = TINY["train"] | {"checkpoint_ticks": 1, "keep_checkpoints": 9, "snapshot_ticks": 1}
    (folder / "tiny.yaml").write_text(dump(TINY | {"outdir": str(folder / "runs"), "optimizer": {"decay": "cosine", "decay_fraction": 1.0}, "train": settings}))
    train("--config", folder / "tiny.yaml")
    return folder / "runs" / "00000-tiny"


def copied(run: Path, to: Path) -> Path:
    """A copy of a run as it was after its first checkpoint."""
    shutil.copytree(run, to)
    for later in saved_checkpoints(to / "checkpoints")[1:]:
        shutil.rmtree(later)
    return to


def test_a_decaying_run_resumes_bit_for_bit_with_its_averaged_discriminator(decayed, tmp_path):
    run = copied(decayed, tmp_path / "00000-tiny")
    open_snapshot(run).path.unlink()
    train("--resume", run)
    assert same(networks(decayed), networks(run)) and any(key.startswith("D_ema.") for key in networks(run))
    factors = [tick["Progress/lr_factor"]["mean"] for tick in statistics(run)]
    # six steps: the first alone, then three and two more
    expected = [(1 + math.cos(math.pi * i / 6)) / 2 for i in range(6)]
    assert factors == pytest.approx([expected[0], sum(expected[1:4]) / 3, sum(expected[4:]) / 2])


def test_a_checkpoint_of_before_goes_on_from_a_copy_of_d(decayed, tmp_path):
    run = copied(decayed, tmp_path / "00000-tiny")
    folder, = saved_checkpoints(run / "checkpoints")
    state = torch.load(folder / "state.pt", weights_only=True)
    at_checkpoint = torch.load(folder / "D.pt", weights_only=True)["parameters"]
    del state["student"]["D_ema"]
    torch.save(state, folder / "state.pt")
    train("--resume", run, "train.ema_kimg=1000000")
    found = networks(run)
    for name, value in at_checkpoint.items():
        torch.testing.assert_close(found["D_ema." + name], value, rtol=1e-4, atol=1e-6)
    assert not torch.equal(found["D_ema.b4.out.weight"], found["D.b4.out.weight"])


def test_d_is_averaged_as_g_is(decayed):
    """From the snapshots of two consecutive moments, one step apart, by the half-life of the config."""
    snapshots = [safetensors.torch.load_file(path) for path in checkpoints.saved_snapshots(decayed)]
    assert not torch.equal(snapshots[-1]["D_ema.b4.out.weight"], snapshots[-1]["D.b4.out.weight"])
    module, average = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = 0.5 * average.weight.detach() + 0.5 * module.weight.detach()
    ema.update(average, module, ema.beta_after(8, half_life=8))
    torch.testing.assert_close(average.weight, expected)


def test_without_the_setting_no_d_is_averaged_and_training_is_the_same(decayed, tmp_path):
    (tmp_path / "tiny.yaml").write_text(dump(TINY | {
        "outdir": str(tmp_path / "runs"), "optimizer": {"decay": "cosine", "decay_fraction": 1.0}, "train": TINY["train"] | {"ema_discriminator": False}}))
    train("--config", tmp_path / "tiny.yaml")
    plain, averaged = networks(tmp_path / "runs" / "00000-tiny"), networks(decayed)
    assert same(plain, {key: value for key, value in averaged.items() if not key.startswith("D_ema.")})
    snapshot = open_snapshot(tmp_path / "runs" / "00000-tiny")
    assert snapshot.names == ["G", "D", "G_ema"] and snapshot.teacher_name(average=True) == "D"
    with pytest.raises(CheckpointError, match="holds no averaged discriminator; expected a snapshot of a run with train.ema_discriminator"):
        snapshot.network("D_ema")


def test_a_stage_starts_from_the_averaged_discriminator(decayed, tmp_path):
    start = open_snapshot(decayed).path
    (tmp_path / "tiny.yaml").write_text(dump(TINY | {"outdir": str(tmp_path / "runs"), "start": str(start),
                                                     "train": TINY["train"] | {"kimg": 0.008, "ema_kimg": 1e9}}))
    train("--config", tmp_path / "tiny.yaml")
    began, there = networks(tmp_path / "runs" / "00000-tiny"), networks(decayed)
    for key in there:
        if key.startswith("D_ema.") and key.endswith("weight"):
            torch.testing.assert_close(began[key], there[key], rtol=1e-5, atol=1e-7)


def test_a_snapshot_says_what_it_holds(decayed, tmp_path):
    snapshot = open_snapshot(decayed)
    assert snapshot.names == ["G", "D", "G_ema", "D_ema"]
    assert (snapshot.teacher_name(average=True), snapshot.teacher_name(average=False)) == ("D_ema", "D")
    tensors = safetensors.torch.load_file(snapshot.path)
    with safetensors.safe_open(snapshot.path, framework="pt") as file:
        header = json.loads(file.metadata()["fastdgl"])

    def written(name: str, tensors: dict, **changes) -> Path:
        safetensors.torch.save_file(tensors, tmp_path / name, metadata={"fastdgl": json.dumps(header | changes)})
        return tmp_path / name

    lost = {key: value for key, value in tensors.items() if not key.startswith("D_ema.")}
    with pytest.raises(CheckpointError, match="D_ema in .*lost.safetensors: does not fit the network: .* is missing"):
        open_snapshot(written("lost.safetensors", lost)).network("D_ema")
    for i, nonsense in enumerate([1, "yes", None, []]):
        with pytest.raises(CheckpointError, match="is not a snapshot of fastdgl, or is damaged"):
            open_snapshot(written(f"{i}.safetensors", tensors, averaged_D=nonsense))
    header.pop("averaged_D")
    assert open_snapshot(written("old.safetensors", lost)).names == ["G", "D", "G_ema"]


def test_other_codebases_take_the_last_discriminator_and_are_told(tmp_path):
    config = configs.from_dict({"images": {"path": "digits"}, "model": STYLEGAN2}, "test")
    arguments = {"G": config.model.generator_arguments(0), "D": config.model.discriminator_arguments(0)}
    (G, G_ema), (D, D_ema) = ([make("stylegan2", arguments[name]) for _ in range(2)] for name, make in
                              (("G", models.generator), ("D", models.discriminator)))
    states = {"G": G.state_dict(), "G_ema": G_ema.state_dict(), "D": D.state_dict(), "D_ema": D_ema.state_dict()}
    checkpoints.write_snapshot(tmp_path / "a.safetensors", states, {"family": "stylegan2", "seen": 0, "classes": None, "averaged_D": True, **arguments})
    assert any("averaged discriminator is left out" in note for note in convert(tmp_path / "a.safetensors", tmp_path / "a.pt"))
    assert torch.equal(open_snapshot(tmp_path / "a.pt").state_dict("D")["b4.out.weight"], D.b4.out.weight)


@pytest.fixture(scope="module")
def opposed(decayed, tmp_path_factory):
    """Two teachers that differ in the sign of their logits: one that scores real images higher than its own fakes, and one lower."""
    folder, dataset = tmp_path_factory.mktemp("opposed"), ImageDataset(DIGITS, labels=True)
    snapshot = open_snapshot(decayed)
    states = {name: snapshot.state_dict(name) for name in ("G", "G_ema", "D")}
    header = {"family": snapshot.family, "seen": 0, "classes": snapshot.class_names, **snapshot.arguments}
    checkpoints.write_snapshot(folder / "one.safetensors", states, header)
    states["D"] = states["D"] | {key: -states["D"][key] for key in ("b4.out.weight", "b4.out.bias")}
    checkpoints.write_snapshot(folder / "other.safetensors", states, header)
    paths = [folder / "one.safetensors", folder / "other.safetensors"]
    found = {scores.tells_apart: (path, scores) for path in paths
             for scores in [teacher_scores(open_snapshot(path), configs.Teacher(checkpoint=str(path)), dataset, CPU)]}
    assert found.keys() == {True, False}
    return found


def config_with(path: Path, **teacher) -> configs.Config:
    return configs.from_dict(TINY | {"guidance": {"teachers": [{"checkpoint": str(path), **teacher}]}}, "test")


def test_a_teacher_that_tells_real_from_fake_is_taken(opposed):
    path, scores = opposed[True]
    dataset, before = ImageDataset(DIGITS, labels=True), torch.random.get_rng_state()
    found, = check_teachers(config_with(path), dataset, CPU)
    assert (found.real, found.fake, found.name) == (scores.real, scores.fake, "D") and found.real > found.fake
    assert "holds no averaged discriminator: its last one teaches" in found.note
    assert not check_teachers(config_with(path, average=False), dataset, CPU)[0].note
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_frozen_teacher_that_cannot_is_rejected_and_a_learning_one_is_not(opposed):
    path, scores = opposed[False]
    dataset = ImageDataset(DIGITS, labels=True)
    with pytest.raises(CheckpointError, match=r"guidance.teachers.0: .* scores real images .*, its own fakes .*, and so cannot tell them apart; expected"):
        check_teachers(config_with(path), dataset, CPU)
    for settings in ({"check": "warn"}, {"mode": "updated"}):
        found, = check_teachers(config_with(path, **settings), dataset, CPU)
        assert not found.tells_apart and found.real == scores.real


def test_scores_are_those_of_the_images_and_the_averaged_generator(opposed):
    path, scores = opposed[True]
    dataset, snapshot = ImageDataset(DIGITS, labels=True), open_snapshot(path)
    D, G = snapshot.network("D"), snapshot.network("G_ema")
    items = [dataset[i] for i in torch.linspace(0, len(dataset) - 1, 64, dtype=torch.float64).long().tolist()]
    real = torch.stack([torch.from_numpy(image) for image, _ in items]).float() / 127.5 - 1
    c = torch.stack([torch.from_numpy(label) for _, label in items])
    z = torch.randn(64, G.z_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        fake = torch.cat([G(x, y, noise_mode="const") for x, y in zip(z.split(8), c.split(8))])
        fake = (fake * 127.5 + 128).clamp(0, 255).to(torch.uint8).float() / 127.5 - 1
        for images, score in ((real, scores.real), (fake, scores.fake)):
            # eight at a time, in which each logit depends on those of its group
            assert score == pytest.approx(float(torch.cat([D(x, y) for x, y in zip(images.split(8), c.split(8))]).mean()), rel=1e-3, abs=1e-5)


def test_nan_does_not_pass_for_a_score(opposed):
    _, scores = opposed[True]
    broken = type(scores)(scores.path, scores.name, math.nan, scores.fake)
    assert not broken.tells_apart


def test_a_run_ends_before_it_begins_where_a_teacher_cannot_tell(opposed, tmp_path):
    path, _ = opposed[False]
    (tmp_path / "tiny.yaml").write_text(dump(TINY | {"outdir": str(tmp_path / "runs"), "guidance": {"teachers": [{"checkpoint": str(path)}]}}))
    assert "and so cannot tell them apart" in refusal("--config", tmp_path / "tiny.yaml")
    assert not (tmp_path / "runs").exists()
    # nor is an earlier stage trained first
    (tmp_path / "two.yaml").write_text(dump(TINY | {"outdir": str(tmp_path / "runs"), "stages": {
        "first": {}, "second": {"guidance": {"teachers": [{"checkpoint": str(path)}]}}}}))
    assert "and so cannot tell them apart" in refusal("--config", tmp_path / "two.yaml")
    assert not (tmp_path / "runs").exists()


def test_the_log_and_the_closing_table_have_the_scores_and_the_pull(opposed, tmp_path):
    path, scores = opposed[True]
    (tmp_path / "tiny.yaml").write_text(dump(TINY | {"outdir": str(tmp_path / "runs"), "guidance": {"teachers": [{"checkpoint": str(path)}]}}))
    output = train("--config", tmp_path / "tiny.yaml")
    run = tmp_path / "runs" / "00000-tiny"
    last = statistics(run)[-1]
    student, pull = last["Loss/scores/teacher0_fake"]["mean"], last["Guidance/teacher0_pull"]["mean"]
    assert 0 < pull < 1
    header, row = (next(line for line in output.splitlines() if line.startswith(start)) for start in ("run ", "tiny "))
    assert "teacher scores" in header and "pull" in header
    assert f"{scores.real:+.2f}/{scores.fake:+.2f}/{student:+.2f}" in row and f"{100 * pull:.1f}%" in row
    log = (run / "log.txt").read_text()
    assert f"scores real images {scores.real:+.3g}, its own fakes {scores.fake:+.3g}" in log and "note: " in log and "warning: " not in log


def test_the_averaged_discriminator_of_a_biggan_scores_as_a_network_does():
    config = configs.from_dict({"images": {"path": "digits"}, "model": {"family": "biggan", "resolution": 32, "channels": 1, "z_dim": 8, "generator_ch": 2,
                                                                        "discriminator_ch": 2, "hier": False, "shared_dim": 0, "attention": 0}}, "test")
    D = models.discriminator("biggan", config.model.discriminator_arguments(10))
    average = ema.averaged_copy(D)
    for parameter in D.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    D.train()(torch.randn(8, 1, 32, 32), torch.eye(10)[:8])
    ema.update(average, D, 0.5)
    assert average(torch.randn(4, 1, 32, 32), torch.eye(10)[:4]).isfinite().all()
    # vectors of power iteration are copied, not averaged: a mean of unit vectors is none
    for name, buffer in average.named_buffers():
        assert torch.equal(buffer, dict(D.named_buffers())[name])
