"""Processes that check calls, and what is known of one that crashes or hangs: `worker` is the other end."""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from .._place import PACKAGE, command, environment
from .worker import COMPILED, DONE, READY

# of a job whose process did not answer
CRASHED, HUNG, OVER = "crashed", "hung", "over"


class PoolError(RuntimeError):
    """No process can check anything, in one sentence."""


class DeviceLost(PoolError):
    """A killed process still holds the GPU, or no other process can use it any more."""


@dataclass(frozen=True)
class Limits:
    """Seconds.

    Args:
        start: To import PyTorch and wake the GPU.
        compile: For a job with its compilation.
        run: For a job after its compilation.
        recover: For a killed process to end.
    """

    start: float = 180.0
    compile: float = 150.0
    run: float = 20.0
    recover: float = 20.0


# where kernels are interpreted: how long that takes depends on what else the machine does, and says nothing of a kernel
INTERPRETED = Limits(start=3600.0, compile=3600.0, run=3600.0)


class Pool:
    """Processes that do jobs, one job each at a time; a context manager.

    Args:
        device: Where the jobs run, "cuda:0" or "cpu".
        operators: The module that has the operators by name; by default this package.
        size: Processes side by side.
        limits: None for those of a GPU, or `INTERPRETED` on a CPU.
        until: When no further job starts, and when those that run are stopped, on `clock`; None for never.

    Raises:
        PoolError: From `outcomes`, where no process can start.
        DeviceLost: From `outcomes`, where a killed process still holds the GPU.
    """

    def __init__(
        self,
        device: str,
        operators: str = PACKAGE,
        size: int = 1,
        limits: Limits | None = None,
        until: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._settings = {"device": device, "operators": operators, "path": [p for p in sys.path if p]}
        self._limits = limits or (Limits() if torch.device(device).type == "cuda" else INTERPRETED)
        self._size, self._until, self._clock = size, until, clock
        self._events: queue.Queue = queue.Queue()
        self._workers: list[_Worker] = []
        self._killed = False

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *error) -> None:
        for worker in self._workers:
            worker.end()

    def outcomes(self, jobs: Sequence[dict], skip: Callable[[dict], bool] = lambda job: False) -> Iterator[tuple[dict, dict]]:
        """Do the jobs and yield each with {"outcome": ..., "words": ...} as it is done; a job left out is not yielded.

        Args:
            skip: Asked right before a job starts, whether it is left out.
        """
        waiting = deque(jobs)
        while True:
            now = self._clock()
            if self._until is not None and now >= self._until:
                for job in waiting:
                    yield job, {"outcome": OVER, "words": "the time was over"}
                waiting.clear()
            while waiting and skip(waiting[0]):
                waiting.popleft()
            idle = [w for w in self._workers if w.ready and w.job is None]
            if not waiting and all(w.job is None for w in self._workers):
                return
            if waiting and idle:
                idle[0].take(waiting.popleft(), now, self._limits)
                continue
            if waiting and len(self._workers) < min(self._size, len(waiting)):
                self._workers.append(_Worker(self._settings, self._events, now, self._limits))
                continue
            busy = [w for w in self._workers if w.job is not None or not w.ready]
            deadline = min(w.deadline for w in busy)
            if self._until is not None and waiting:
                deadline = min(deadline, self._until)
            try:
                worker, message = self._events.get(timeout=max(deadline - self._clock(), 0.01))
            except queue.Empty:
                for late in [w for w in busy if self._clock() >= w.deadline]:
                    yield from self._lose(late, HUNG)
                continue
            if worker not in self._workers:
                continue
            if message is None:
                yield from self._lose(worker, CRASHED)
            elif message["kind"] == READY:
                worker.ready, worker.deadline = True, float("inf")
            elif message["kind"] == COMPILED:
                worker.deadline = self._clock() + self._limits.run
            elif message["kind"] == DONE:
                job, worker.job, worker.deadline = worker.job, None, float("inf")
                lost = message.pop("lost")
                message.pop("kind")
                if lost:
                    message = {"outcome": CRASHED, "words": message.get("words") or "the GPU does not answer any more"}
                    self._workers.remove(worker)
                    self._end(worker)
                yield job, message

    def _lose(self, worker: "_Worker", outcome: str) -> Iterator[tuple[dict, dict]]:
        self._workers.remove(worker)
        job, seconds, ready = worker.job, self._clock() - worker.since, worker.ready
        self._end(worker)
        words = worker.last_words()
        if not ready:
            what = f"took more than {self._limits.start:g} s to start" if outcome == HUNG else "could not start"
            sentence = f"a process to check the kernels in {what}{f': {words}' if words else ''}"
            if self._killed:
                raise DeviceLost(f"the GPU cannot be used after a kernel was stopped: {sentence}")
            if any(w.ready for w in self._workers):
                # the others go on
                self._size = len(self._workers)
                return
            raise PoolError(sentence)
        self._killed = True
        if job is not None:
            said = f"it did not end within {seconds:.0f} s" if outcome == HUNG else f"its process died with exit status {worker.status}"
            yield job, {"outcome": outcome, "words": f"{said}{f': {words}' if words and outcome == CRASHED else ''}"}

    def _end(self, worker: "_Worker") -> None:
        if not worker.end(self._limits.recover):
            raise DeviceLost(f"a stopped kernel still holds the GPU after {self._limits.recover:g} s")


class _Worker:
    """One process, as its parent sees it."""

    def __init__(self, settings: dict, events: queue.Queue, now: float, limits: Limits):
        self.job: dict | None = None
        self.ready, self.since, self.deadline = False, now, now + limits.start
        self.status: int | None = None
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            command("certify.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment(),
            text=True,
        )
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()
        self._say(settings)

    def take(self, job: dict, now: float, limits: Limits) -> None:
        """Start a job."""
        self.job, self.since, self.deadline = job, now, now + limits.compile
        self._say(job)

    def end(self, patience: float = 20.0) -> bool:
        """Kill the process. Return whether it ended."""
        self._process.kill()
        try:
            self.status = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return False
        return True

    def last_words(self) -> str:
        """Return the last line it wrote to standard error."""
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(self._errors.tell() - 4000, 0))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return " ".join(lines[-1].split())[:300] if lines else ""

    def _listen(self, events: queue.Queue) -> None:
        for line in self._process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                # a line that is cut off by its end
                break
            events.put((self, message))
        # what it died of is known after it has ended
        self.status = self._process.wait()
        events.put((self, None))

    def _say(self, message: dict) -> None:
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except OSError:
            # it has ended, and is found out by its silence
            pass


def processes(device: torch.device) -> int:
    """Return how many processes check side by side: compiling takes most of the time."""
    return 1 if device.type != "cuda" else max(1, min(4, (os.cpu_count() or 2) // 2))
