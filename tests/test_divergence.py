"""Runs whose numbers are numbers no more: who is told to be the culprit, and how often a run goes back by itself."""

from contextlib import nullcontext

import pytest
import torch

from fastdgl import config as configs, steps
from fastdgl.checkpoints import saved_checkpoints
from fastdgl.engines import end_run, start_run
from fastdgl.train import Diverged, Progress, check_finite

from ranks import on_ranks
from test_engine_states import Training
from tiny_runs import TINY, dump, during_steps, networks, refusal, same, statistics, train


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    settings = TINY["train"] | {"tick_kimg": 0.016, "checkpoint_ticks": 1}
    path.write_text(dump(TINY | {"outdir": str(tmp_path / "runs"), "train": settings}))
    return path


def poison(G):
    """What no loss shows yet."""
    G.synthesis.b8.conv0.weight.data[0, 0] = float("nan")


SENTENCE = "G's parameter synthesis.b8.conv0.weight became infinite or NaN, between 0.008 and 0.024 kimg, up to step 3: training has diverged"


def test_names_the_network_the_parameter_and_the_steps(config, tmp_path, monkeypatch):
    during_steps(poison, lambda step: step == 3, monkeypatch)
    sentence = refusal("--config", config)
    assert sentence.startswith(f"Error: {SENTENCE}; nothing of this tick was saved; resume from the last checkpoint with a lower learning rate")
    assert [folder.name for folder in saved_checkpoints(tmp_path / "runs" / "00000-tiny" / "checkpoints")] == ["0000000008"]


def test_a_run_goes_back_by_itself_and_on_with_other_random_inputs(config, tmp_path, monkeypatch):
    train("--config", config)
    with monkeypatch.context() as patch:
        during_steps(poison, lambda step: step == 3, patch)
        output = train("--config", config, "train.rollbacks=2")
    whole, run = tmp_path / "runs" / "00000-tiny", tmp_path / "runs" / "00001-tiny"
    assert f"{SENTENCE}; nothing of this tick was saved; back to {run / 'checkpoints' / '0000000008'}, 1 of 2 times (train.rollbacks)" in output
    assert [tick["Progress/kimg"]["mean"] for tick in statistics(run)] == [tick["Progress/kimg"]["mean"] for tick in statistics(whole)]
    assert all(value.isfinite().all() for value in networks(run).values()) and not same(networks(run), networks(whole))
    state = torch.load(saved_checkpoints(run / "checkpoints")[-1] / "state.pt")
    assert state["progress"]["rollbacks"] == 1


def test_a_run_goes_back_so_many_times_and_no_more(config, tmp_path, monkeypatch):
    # the third step of the run, in which the tick ends
    during_steps(poison, lambda step: step in (3, 5, 7), monkeypatch)
    assert SENTENCE in refusal("--config", config, "train.rollbacks=2")
    log = (tmp_path / "runs" / "00000-tiny" / "log.txt").read_text()
    assert "1 of 2 times" in log and "2 of 2 times" in log and "3 of 2" not in log


def test_there_must_be_a_checkpoint_to_go_back_to(config, monkeypatch):
    during_steps(poison, lambda step: step == 1, monkeypatch)
    assert "NaN, between 0 and 0.008 kimg, up to step 1" in refusal("--config", config, "train.rollbacks=2")


def diverge_on_one_rank(run) -> None:
    """A gradient that only rank 1 has overflowed, in ZeRO, whose step is left out; then a parameter of its own."""
    training = Training("zero2-fp32", run)
    student, progress = training.student, Progress(seen=8, iteration=1)

    def culprit():
        with pytest.raises(Diverged) as error:
            check_finite(training.config, student, {}, set(), 0, progress)
        return str(error.value)

    before = training.networks()
    with steps.learning(student.gan.D.module):
        x = training.latents.normal([4, 1, 32, 32]) * (float("nan") if run.rank == 1 else 1)
        student.gan.D.backward(student.gan.D.module(x, training.latents.classes(4)).mean())
        student.gan.D.step()
    assert all(torch.equal(value, before[key]) for key, value in training.networks().items())
    assert "1 step(s) of D were left out, in which a gradient was infinite or NaN, between 0 and 0.008 kimg" in culprit()
    student.gan.D.engine.skipped_steps = 0
    if run.rank == 1:
        poison(student.gan.G.module)
    assert "G's parameter synthesis.b8.conv0.weight" in culprit()
    end_run()


def test_all_ranks_find_the_same():
    on_ranks(2, diverge_on_one_rank)


def test_a_loss_scale_is_left_to_find_its_way():
    config = configs.from_dict(TINY | {"engine": {"precision": "fp16"}}, "test")

    class Student:
        networks = {}
        engines = {"G": type("Engine", (), {"skipped_steps": 3})}
        whole = nullcontext

    start_run()
    try:
        assert check_finite(config, Student, {}, set(), 0, Progress(seen=8)) == set()
    finally:
        end_run()
