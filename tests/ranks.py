"""What tests with several ranks share."""

import os
import socket

import torch

from fastdgl.engines import Run, start_run


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
