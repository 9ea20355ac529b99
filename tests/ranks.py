"""What tests with several ranks share."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from fastdgl.engines import Run, start_run

ROOT = Path(__file__).resolve().parents[1]
PATHS = os.pathsep.join(str(ROOT / folder) for folder in (".", "kernels", "tests"))


def free_port() -> int:
    """A port on which nothing listens now, for the ranks to meet at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def join(rank: int, world_size: int, port: int) -> Run:
    """Make this process one of the ranks that meet at `port`."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return start_run()


def fork(function: Callable, *arguments) -> BaseProcess:
    """A process that calls `function`, forked from one that has imported everything and done nothing: it is there at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fastdgl.train", "fastdgl.engines.zero", "torch.utils.tensorboard", "pytest", "click.testing"])
    before = dict(os.environ)
    # which is where that process looks for modules, and how many threads it has
    os.environ |= {"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ |= before
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def on_ranks(world_size: int, function: Callable, *arguments) -> None:
    """Call `function(run, *arguments)` on so many ranks at once."""
    port = free_port()
    finish([fork(_joined, rank, world_size, port, function, *arguments) for rank in range(world_size)])


def finish(processes: Sequence[BaseProcess]) -> None:
    """Wait for processes, all of which must come to a good end."""
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(processes)


def _joined(rank: int, world_size: int, port: int, function: Callable, *arguments) -> None:
    function(join(rank, world_size, port), *arguments)
