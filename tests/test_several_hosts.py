"""Training on two machines: two Linux network namespaces, each with its own host name, loopback and end of a virtual cable."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from ranks import free_port
from tiny_runs import ROOT, SCRIPT, TINY, dump, launch, of_launchers, statistics, train

FIRST = "10.77.0.1"

# what a launcher does, for ranks that need not wait for one to be imported
NONE = ("env", "LOCAL_RANK=0", "WORLD_SIZE=2", f"MASTER_ADDR={FIRST}", "MASTER_PORT=29500")
TORCHRUN = ("torchrun", "--nnodes", "2", "--nproc_per_node", "1")
DEEPSPEED = ("deepspeed", "--hostfile", "hostfile", "--no_ssh")


@pytest.fixture(scope="module")
def hosts():
    """For each host, the command by which another enters it."""
    if missing := [tool for tool in ("unshare", "nsenter", "ip", "hostname") if not shutil.which(tool)]:
        pytest.skip(f"two hosts are made by {', '.join(missing)}, which this machine does not have")
    namespaces = subprocess.Popen(["unshare", "--user", "--map-root-user", "--net", "--uts", "sh", ROOT / "tests" / "two_hosts.sh"],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    processes = namespaces.stdout.readline().split()
    if not processes:
        pytest.skip(f"network namespaces are not permitted here: {namespaces.communicate()[1].strip()}")
    yield [["nsenter", "--target", process, "--user", "--net", "--uts", "--preserve-credentials"] for process in processes]
    namespaces.communicate()


def start(hosts, launcher: Sequence[str], *arguments, folder: Path, elsewhere: Path | None = None,
          interface: str = "cable") -> list[subprocess.Popen]:
    """The launcher on each host, in `folder`, or on the second host `elsewhere`."""
    environment = of_launchers() | {"GLOO_SOCKET_IFNAME": interface}
    launchers = []
    for rank, (enter, place) in enumerate(zip(hosts, (folder, elsewhere or folder))):
        (place / "hostfile").write_text("host-a slots=1\nhost-b slots=1\n")
        meeting = [f"RANK={rank}", sys.executable] if launcher == NONE else [
            "--node_rank", str(rank), "--master_addr", FIRST, "--master_port", "29500"]
        launchers.append(subprocess.Popen([*enter, *launcher, *meeting, SCRIPT, *arguments], cwd=place, env=environment,
                                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    return launchers


def outputs(launchers: Sequence[subprocess.Popen], succeed: bool = True) -> list[str]:
    """What each has printed; all must succeed, or all fail."""
    texts = [launcher.communicate(timeout=600)[0] for launcher in launchers]
    assert [launcher.returncode == 0 for launcher in launchers] == [succeed] * len(launchers), texts
    return texts


def end(launchers: Sequence[subprocess.Popen]) -> None:
    """With all that they have started, should any of it be left."""
    for launcher in launchers:
        for process in [*below(launcher), launcher]:
            process.kill()
        launcher.communicate()


def below(launcher: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(launcher.pid).children(recursive=True) if launcher.poll() is None else []


def losses(run: Path) -> list[dict[str, float]]:
    return [{name: stat["mean"] for name, stat in tick.items() if name.startswith("Loss/")} for tick in statistics(run)]


def write_config(folder: Path, **changes) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(dump(TINY | {"outdir": "runs"} | changes))
    return path


def test_two_hosts_train_as_one_process_does(hosts, tmp_path):
    config = write_config(tmp_path)
    first, second = outputs(start(hosts, NONE, "--config", config, folder=tmp_path))
    assert "batch 8 on 2 rank(s)" in first and "rank(s)" not in second
    # files are written once, by the first rank
    assert [run.name for run in (tmp_path / "runs").iterdir()] == ["00000-tiny"]
    train("--config", config, f"outdir={tmp_path}", "name=alone")
    for together, alone in zip(losses(tmp_path / "runs" / "00000-tiny"), losses(tmp_path / "00000-alone"), strict=True):
        assert together == pytest.approx(alone, rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "on_one_host"), [
    pytest.param(TORCHRUN, ["torchrun", "--nproc_per_node", "2"], id="torchrun"),
    pytest.param(DEEPSPEED, ["deepspeed", "--num_gpus", "2"], id="deepspeed"),
])
def test_two_hosts_give_the_losses_of_two_ranks_on_one(hosts, tmp_path, launcher, on_one_host):
    config = write_config(tmp_path, engine={"kind": "deepspeed", "zero_stage": 1})
    outputs(start(hosts, launcher, "--config", config, folder=tmp_path))
    run = tmp_path / "runs" / "00000-tiny"
    assert list((tmp_path / "runs").iterdir()) == [run]
    launch(*on_one_host, "--master_port", free_port(), SCRIPT, "--config", config, f"outdir={tmp_path}", "name=one-host")
    assert losses(run) == losses(tmp_path / "00000-one-host")
    assert sorted(file.name for file in run.iterdir() if "tfevents" not in file.name) == sorted(
        file.name for file in (tmp_path / "00000-one-host").iterdir() if "tfevents" not in file.name)
    # every rank's part of the checkpoint has come to where the run can go on from
    outputs(start(hosts, launcher, "--resume", run, "train.kimg=0.072", folder=tmp_path))
    assert statistics(run)[-1]["Progress/kimg"]["mean"] == 0.072


@pytest.mark.slow
def test_a_run_folder_that_a_host_cannot_see_is_refused(hosts, tmp_path):
    """Here the two are in different folders, as if on different disks."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    texts = outputs(start(hosts, TORCHRUN, "--config", write_config(tmp_path), folder=tmp_path, elsewhere=elsewhere), succeed=False)
    assert "is not there for rank 1 on host-b; outdir must be a folder that all machines share" in texts[1]


@pytest.mark.slow
def test_hosts_that_cannot_reach_each_other_hear_what_to_set(hosts, tmp_path):
    """Over the loopback, each host finds itself alone."""
    config = write_config(tmp_path, engine={"kind": "torch", "timeout": 10})
    texts = outputs(start(hosts, NONE, "--config", config, folder=tmp_path, interface="lo"), succeed=False)
    assert "cannot connect to each of them" in "".join(texts) and "GLOO_SOCKET_IFNAME=eth0" in "".join(texts)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, DEEPSPEED], ids=lambda launcher: launcher[0])
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=lambda fault: fault.name)
def test_a_rank_lost_on_one_host_ends_both(hosts, tmp_path, launcher, fault):
    """A stopped rank is ended by nobody on its own host: there, the launcher still waits for it."""
    config = write_config(tmp_path, train=TINY["train"] | {"kimg": 1000, "tick_kimg": 0.008},
                          engine={"kind": "deepspeed", "timeout": 10})
    launchers = start(hosts, launcher, "--config", config, folder=tmp_path)
    try:
        stats = tmp_path / "runs" / "00000-tiny" / "stats.jsonl"
        while not stats.exists() or len(stats.read_text().splitlines()) < 3:
            assert all(launcher.poll() is None for launcher in launchers), launchers[0].communicate()[0]
            time.sleep(0.2)
        trainer, = (process for process in below(launchers[1]) if not process.children())
        trainer.send_signal(fault)
        text = launchers[0].communicate(timeout=300)[0]
        assert launchers[0].returncode != 0
        assert "Error (rank 0): rank 1 on host-b not heard of for" in text
        if fault == signal.SIGKILL:
            launchers[1].communicate(timeout=300)
            assert launchers[1].returncode != 0
    finally:
        end(launchers)
