"""SIGTERM and SIGINT during training: the step is finished first, and all ranks stop after the same one."""

import os
import signal
import time
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

from .engines import Run
from .engines.launchers import deepspeed_command

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# a scheduler signals all processes of a job, and its launcher then signals the ranks once more
ONE_REQUEST = 5  # seconds


class StopRequest:
    """Inside, the first SIGTERM or SIGINT to any rank is a request to stop; one more than ONE_REQUEST later ends that process at once.

        with StopRequest(run) as stop:
            while training:
                ...
                if stop.agreed():
                    ...

    That the `deepspeed` command is gone, which started this rank's launcher, is a request as well: a signal ends the
    command alone, and its ranks do not hear of it (0.19.8). A request that comes too late for any step is delivered again
    at the end, as the signal that it was.
    """

    def __init__(self, run: Run):
        self.run = run
        self.received: int | None = None
        self._since = 0.0
        # on a GPU: the ranks' answer after the last step, on its way to the host
        self._answer: tuple[torch.Tensor, torch.cuda.Event] | None = None

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self._request(number, signal.Signals(number).name)
        elif time.monotonic() > self._since + ONE_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _request(self, number: int, reason: str) -> None:
        self.received, self._since = number, time.monotonic()
        if self.run.rank == 0:
            # not print: the signal may have come in the middle of one
            os.write(2, f"\n{reason}: stopping after this step, with a checkpoint; "
                        f"a signal after {ONE_REQUEST} seconds ends at once, without\n".encode())

    def agreed(self, at_once: bool = False) -> bool:
        """Whether a rank has been asked to stop: the same answer on every rank. All call it after every step.

        On several ranks this is an all-reduce of four bytes. On GPUs the answer is that of the call before, so that no
        rank waits for its GPU to know it.

        Args:
            at_once: Wait for it, where no step hides the wait.
        """
        if self.received is None and self.run.command is not None and deepspeed_command() != self.run.command:
            self._request(signal.SIGTERM, "the deepspeed command has ended")
        if self.run.world_size == 1:
            return self.received is not None
        asked = torch.full([], int(self.received is not None), dtype=torch.int32, device=self.run.device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        if self.run.device.type == "cpu":
            return bool(asked)
        before, self._answer = self._answer, to_host(asked)
        if at_once:
            before = self._answer
        if before is None:
            return False
        answer, arrived = before
        arrived.synchronize()
        return bool(answer)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.received is not None and kind is None:
            os.kill(os.getpid(), self.received)


def to_host(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
    """A copy of a CUDA tensor that the host may read once the event has come."""
    copy = torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return copy, arrived
