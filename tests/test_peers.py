"""A rank that dies or hangs ends the others, who name it."""

import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import free_port

from fastdgl.engines import first_rank_decides, start_run
from fastdgl.engines.peers import ANSWER, watched

TIMEOUT = 7.0  # seconds, of hanging ranks; dead ones are found out at once
FAULTS = ("killed", "stopped", "first-killed", "first-stopped", "sleeping", "last-killed", "nobody")


def run_rank(rank: int, port: int, fault: str, output: Path) -> None:
    """Exchange numbers until the fault, which befalls rank 1 or the first one."""
    os.dup2(os.open(output, os.O_CREAT | os.O_WRONLY), 2)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    run = start_run(3600.0 if fault.endswith("killed") else TIMEOUT)
    victim = 0 if fault.startswith("first") else 1
    with watched(run.peers):
        for _ in range(3):
            dist.all_reduce(torch.ones(1))
        if rank == victim and fault.endswith("killed") and fault != "last-killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == victim and fault.endswith("stopped"):
            os.kill(os.getpid(), signal.SIGSTOP)
        if fault == "sleeping":
            first_rank_decides(lambda: time.sleep(3600))
        dist.all_reduce(torch.ones(1))
        # when all is done, and nobody is waited for but at the very end
        if rank == victim and fault == "last-killed":
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """Of every fault: how the rank that it spared ended, and what that said. None has to be ended by hand."""
    folder = tmp_path_factory.mktemp("peers")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fastdgl.engines"])
    ranks = {}
    for fault in FAULTS:
        port = free_port()
        ranks[fault] = [context.Process(target=run_rank, args=(rank, port, fault, folder / f"{fault}-{rank}")) for rank in range(2)]
        for process in ranks[fault]:
            process.start()
    ended = {}
    for fault, both in ranks.items():
        spared = 1 if fault.startswith("first") or fault == "sleeping" else 0
        # a test that hangs would never tell; this is no measure of how long it takes
        both[spared].join(300)
        ended[fault] = both[spared].exitcode, (folder / f"{fault}-{spared}").read_text()
        for process in both:
            process.kill()
    return ended


HOST = socket.gethostname()


@pytest.mark.parametrize("fault, sentence", [
    ("killed", f"Error (rank 0): rank 1 on {HOST} not heard of for {ANSWER:g} s: died or hanging"),
    ("last-killed", f"Error (rank 0): rank 1 on {HOST} not heard of for {ANSWER:g} s: died or hanging"),
    ("stopped", f"Error (rank 0): rank 1 on {HOST} not heard of for {TIMEOUT:g} s: died or hanging"),
    ("first-killed", f"Error (rank 1): rank 0 on {HOST} has not been heard of for"),
    ("first-stopped", f"Error (rank 1): rank 0 on {HOST} has not been heard of for"),
    ("sleeping", f"Error (rank 1): the ranks have waited too long for each other: rank 0 on {HOST} stands in fastdgl/engines/__init__.py:"),
])
def test_a_lost_rank_ends_the_others_who_name_it(ends, fault, sentence):
    code, said = ends[fault]
    assert code == 1
    assert sentence in said and said.count("Error (rank") == 1 and "Traceback" not in said
    assert "start again with --resume" in said


def test_ranks_that_are_well_end_without_a_word(ends):
    assert ends["nobody"] == (0, "")
