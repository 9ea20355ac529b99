"""Runs whose numbers are numbers no more: who is told to be the culprit, and how often a run goes back by itself."""

import copy
import re
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastdgl import config as configs, steps
from fastdgl.checkpoints import saved_checkpoints
from fastdgl.engines import TorchEngine, end_run, start_run
from fastdgl.train import Diverged, Progress, check_finite

from ranks import on_ranks
from test_engine_states import Training, allow_fp16
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


def test_a_resumed_run_that_has_gone_back_more_often_than_it_now_may_goes_back_no_more(config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        during_steps(poison, lambda step: step in (3, 5), patch)
        train("--config", config, "train.rollbacks=2")
    run = tmp_path / "runs" / "00000-tiny"
    during_steps(poison, lambda step: True, monkeypatch)
    assert "resume from the last checkpoint" in refusal("--resume", run, "train.rollbacks=1", "train.kimg=0.096")


def test_there_must_be_a_checkpoint_to_go_back_to(config, monkeypatch):
    during_steps(poison, lambda step: step == 1, monkeypatch)
    sentence = refusal("--config", config, "train.rollbacks=2")
    assert "NaN, between 0 and 0.008 kimg, up to step 1" in sentence and "start again with a lower learning rate" in sentence


def poisoned(run) -> None:
    """Of each network that a checkpoint holds, a parameter or a buffer."""
    training = Training("torch", run)
    student = training.student
    culprits = {"G's parameter synthesis.b4.const": student.gan.G.module.synthesis.b4.const, "D's parameter b4.out.bias": student.gan.D.module.b4.out.bias,
                "G's buffer mapping.w_avg": student.gan.G.module.mapping.w_avg, "G_ema's buffer mapping.w_avg": student.average.mapping.w_avg,
                "D_ema's parameter b4.out.bias": student.average_D.b4.out.bias}
    for culprit, tensor in culprits.items():
        before = tensor.detach().clone()
        tensor.data.flatten()[0] = float("inf")
        with pytest.raises(Diverged, match=f"^{culprit} became infinite or NaN, between"):
            check_finite(training.config, student, {}, set(), 0, Progress(seen=8))
        tensor.data.copy_(before)
    teacher = copy.deepcopy(student.gan.D.module)
    student.gan.updated_teachers = [TorchEngine(teacher, torch.optim.Adam(teacher.parameters()))]
    student.gan.updated_teachers[0].module.b4.out.bias.data[0] = float("nan")
    with pytest.raises(Diverged, match="^teacher0's parameter b4.out.bias became infinite or NaN"):
        check_finite(training.config, student, {}, set(), 0, Progress(seen=8))
    end_run()


def test_all_that_is_saved_is_looked_at():
    on_ranks(1, poisoned)


def overflow_for_long(run) -> None:
    """More overflows than there are loss scales, in every ZeRO stage: each step is left out, and the process lives."""
    allow_fp16()
    for stage in (0, 1, 2, 3):
        training = Training(f"zero{stage}-fp16", run)
        D = training.student.gan.D
        before = training.networks()
        for _ in range(40):
            with steps.learning(D.module):
                D.backward(D.module(training.latents.normal([4, 1, 8, 8]) * float("nan"), training.latents.classes(4)).mean())
                D.step()
        assert D.skipped_steps == 40 and same(before, training.networks())
    end_run()


def test_a_loss_scale_at_its_lowest_ends_no_process():
    on_ranks(1, overflow_for_long)


def diverge_on_one_rank(run) -> None:
    """A gradient that only rank 1 has overflowed, in ZeRO 2, where it reaches the parameters of both; then a parameter of its own."""
    training = Training("zero2-fp32", run)
    student, progress = training.student, Progress(seen=8, iteration=1)

    def culprit():
        with pytest.raises(Diverged) as error:
            check_finite(training.config, student, {}, set(), 0, progress)
        return str(error.value)

    before = student.gan.D.state_dict()
    with steps.learning(student.gan.D.module):
        x = training.latents.normal([4, 1, 8, 8]) * (float("nan") if run.rank == 1 else 1)
        student.gan.D.backward(student.gan.D.module(x, training.latents.classes(4)).mean())
        student.gan.D.step()
    # the host does not wait for the GPU to look for it: the parameters are looked at when the tick ends, before anything is saved
    assert student.gan.D.skipped_steps == 0
    assert re.match(r"D's parameter \S+ became infinite or NaN \(and \d+ more\), between 0 and 0.008 kimg", culprit())
    student.gan.D.load_state_dict(before)
    if run.rank == 1:
        poison(student.gan.G.module)
    assert "G's parameter synthesis.b8.conv0.weight" in culprit()
    end_run()


def test_all_ranks_find_the_same():
    on_ranks(2, diverge_on_one_rank)


def test_a_loss_scale_is_left_to_find_its_way():
    config = configs.from_dict(TINY | {"engine": {"precision": "fp16"}}, "test")

    class Student:
        average, average_D = nn.Identity(), None
        engines = {"G": SimpleNamespace(skipped_steps=3, module=nn.Identity(), whole=nullcontext)}

    start_run()
    try:
        assert check_finite(config, Student, {}, set(), 0, Progress(seen=8)) == set()
    finally:
        end_run()
