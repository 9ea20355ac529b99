"""SIGTERM and SIGINT: a run that is asked to stop saves itself, on all ranks after the same step, and goes on bit for bit."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastdgl import interruption
from fastdgl.checkpoints import open_snapshot, saved_checkpoints
from fastdgl.engines import Run, end_run
from fastdgl.engines.launchers import deepspeed_command
from fastdgl.interruption import StopRequest

from ranks import free_port, on_ranks
from tiny_runs import ROOT, SCRIPT, TINY, dump, during_steps, networks, of_launchers, same, train

SIGNALS = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(dump(TINY | {"outdir": str(tmp_path / "runs")}))
    return path


def test_a_run_asked_to_stop_saves_itself_and_goes_on_bit_for_bit(config, tmp_path, monkeypatch):
    train("--config", config)
    before = [signal.getsignal(each) for each in SIGNALS]
    with monkeypatch.context() as patch:
        during_steps(lambda G: os.kill(os.getpid(), signal.SIGINT), lambda step: step == 3, patch)
        output = train("--config", config)
    whole, run = tmp_path / "runs" / "00000-tiny", tmp_path / "runs" / "00001-tiny"
    assert f"stopped as asked after 0.024 kimg, with a checkpoint; go on with --resume {run}" in output
    assert "stopped as asked" in (run / "log.txt").read_text()
    assert [folder.name for folder in saved_checkpoints(run / "checkpoints")] == ["0000000024"]
    assert not list(run.glob("network-snapshot-*"))
    assert [signal.getsignal(each) for each in SIGNALS] == before
    train("--resume", run)
    assert same(networks(run), networks(whole))


def test_no_further_stage_is_begun(config, tmp_path, monkeypatch):
    config.write_text(dump(TINY | {"outdir": str(tmp_path / "runs"), "stages": {"first": {}, "second": {}}}))
    # the last step of the first stage
    during_steps(lambda G: os.kill(os.getpid(), signal.SIGTERM), lambda step: step == 6, monkeypatch)
    assert "stopped as asked after 0.048 kimg, the end of this run" in train("--config", config)
    assert [run.name for run in (tmp_path / "runs").iterdir()] == ["00000-tiny-first"]
    assert networks(tmp_path / "runs" / "00000-tiny-first")


def test_processes_that_read_images_read_on(config, tmp_path, monkeypatch):
    def signal_readers(G):
        readers = multiprocessing.active_children()
        assert readers
        for reader in readers:
            for number in SIGNALS:
                os.kill(reader.pid, number)

    during_steps(signal_readers, lambda step: step == 1, monkeypatch)
    # more batches than are read ahead
    train("--config", config, "images.workers=1", "train.kimg=0.096")
    assert networks(tmp_path / "runs" / "00000-tiny")


def ended_by(*signals: signal.Signals) -> int:
    """The signal that ends a process which gets `signals` while it trains, and is never asked whether to stop; 0 for none."""
    child = os.fork()
    if child == 0:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        with StopRequest(Run(0, 1, torch.device("cpu"))):
            for each in signals:
                os.kill(os.getpid(), each)
            os.write(1, b"alive")
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_second_signal_ends_at_once(capfd, monkeypatch, number):
    monkeypatch.setattr(interruption, "ONE_REQUEST", 0)
    assert ended_by(number, number) == number
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_that_the_launcher_got_and_passes_on_too_is_one_request(capfd, number):
    ended_by(number, number, signal.SIGTERM)
    out, err = capfd.readouterr()
    assert out == "alive" and err.count("stopping after this step") == 1


RANK = """
import sys, time, torch
from fastdgl.engines import Run
from fastdgl.engines.launchers import deepspeed_command
from fastdgl.interruption import StopRequest

with StopRequest(Run(0, 1, torch.device("cpu"), command=deepspeed_command())) as stop:
    print("training", flush=True)
    for step in range(600):
        if stop.agreed():
            print("stopped", flush=True)
            stop.received = None
            break
        time.sleep(0.1)
"""
START = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_ranks_whose_deepspeed_command_has_been_ended_are_asked_to_stop(tmp_path, number):
    (tmp_path / "deepspeed").write_text(START)
    process = subprocess.Popen([sys.executable, tmp_path / "deepspeed", "-c", START, "-c", RANK], env=of_launchers(),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "training\n"
    process.send_signal(number)
    # the rank has these pipes too, and holds them open
    out, err = process.communicate(timeout=60)
    assert out == "stopped\n" and "the deepspeed command has ended: stopping after this step" in err


def test_a_process_that_no_deepspeed_command_has_started_has_none():
    assert deepspeed_command() is None


def test_a_signal_that_comes_after_the_last_step_is_not_lost():
    assert ended_by(signal.SIGTERM) == signal.SIGTERM and ended_by() == 0


def stop_on_one_rank(run: Run, folder: Path) -> None:
    with StopRequest(run) as stop:
        for step in range(9):
            if run.rank == 1 and step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            if stop.agreed():
                break
        (folder / str(run.rank)).write_text(str(step))
        stop.received = None
    end_run()


def test_all_ranks_stop_after_the_step_in_which_one_was_asked(tmp_path):
    on_ranks(2, stop_on_one_rank, tmp_path)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["4", "4"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [
    pytest.param(["deepspeed", "--num_gpus", "2"], id="deepspeed"),
    pytest.param(["torchrun", "--nproc_per_node", "2"], id="torchrun"),
])
# a user's kill, and a scheduler's, which signals every process of the job
@pytest.mark.parametrize("signalled", ["launcher", "all"])
def test_a_launcher_that_is_terminated_leaves_a_checkpoint_to_go_on_from(config, tmp_path, launcher, signalled):
    def command(*arguments):
        return [Path(sys.executable).parent / launcher[0], *launcher[1:], "--master_port", str(free_port()), SCRIPT, *arguments, "train.kimg=0.8"]

    run = tmp_path / "runs" / "00000-tiny"
    process = subprocess.Popen(command("--config", config), env=of_launchers(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               start_new_session=True)
    while process.poll() is None and not (run / "stats.jsonl").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM) if signalled == "launcher" else os.killpg(process.pid, signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert f"with a checkpoint; go on with --resume {run}" in output
    checkpoint, = saved_checkpoints(run / "checkpoints")
    assert int(checkpoint.name) < 800
    subprocess.run(command("--resume", run), env=of_launchers(), cwd=ROOT, check=True, timeout=300)
    assert open_snapshot(run).seen == 800
