"""What tests with several ranks share."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fastdgl.engines import Run, start_run

ROOT = Path(__file__).resolve().parents[1]


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


@contextmanager
def training(world_size: int, output: Path, *arguments: str | Path) -> Iterator[list[subprocess.Popen]]:
    """fastdgl/train.py on ranks without a launcher, that what is measured be theirs; whatever is left of them is killed.

    Args:
        output: File for what they print.
    """
    shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1",
              "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    with open(output, "w") as file:
        ranks = [subprocess.Popen([sys.executable, ROOT / "fastdgl" / "train.py", *arguments], stdout=file, stderr=file,
                                  env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(world_size)]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
