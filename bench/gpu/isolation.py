"""Work in processes of its own: what crashes or hangs there takes nothing else with it. Knows nothing of GPUs."""

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from .errors import told

# called in the process: the items by name, and whether after one of them the process is good for the next
Open = Callable[..., tuple[Mapping[str, Callable[[], dict]], Callable[[], bool]]]

# to import PyTorch and start a GPU, on a machine that does other things
START_S = 180.0


def results(
    open: Open,
    arguments: tuple,
    names: Iterable[str],
    *,
    until: float,
    end: float,
    limit_s: float,
    workers: int = 1,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[str, dict]]:
    """What the items return, as they do; {"error": ...} for those that fail, crash or take too long, {"skipped": ...} for the rest.

    Args:
        open: A function of a module, which the processes import.
        until: By the clock, when the last item may start.
        end: By the clock, when those still running are stopped.
        limit_s: Seconds that an item may take.
        workers: Processes side by side.
    """
    waiting, running = deque(names), []
    try:
        while waiting or any(w.name for w in running):
            if clock() >= until:
                yield from ((name, {"skipped": "the time of this part was over"}) for name in waiting)
                waiting.clear()
            while waiting and len(running) < workers:
                running.append(_Worker.started(open, arguments, clock))
            for worker in [w for w in running if w.ready and not w.name and waiting]:
                worker.take(waiting.popleft(), clock)
            expected = [w for w in running if w.name or not w.ready]
            if not expected:
                continue
            soonest = min(w.since + w.allowed(limit_s) for w in expected)
            wait([w.pipe for w in expected], timeout=max(0.0, min(soonest, end, until if waiting else end) - clock()))
            for worker in expected:
                outcome = worker.outcome(clock, limit_s, end)
                if outcome is None:
                    continue
                if worker.lost:
                    running.remove(worker)
                    worker.stop()
                if worker.done is not None:
                    name, worker.done = worker.done, None
                    yield name, outcome
                elif "error" in outcome:
                    # it could not start; the others may have
                    workers -= 1
                    if workers == 0:
                        yield from ((name, outcome) for name in waiting)
                        waiting.clear()
    finally:
        for worker in running:
            worker.stop()


@dataclass
class _Worker:
    process: multiprocessing.Process
    pipe: Connection
    since: float
    ready: bool = False
    name: str | None = None
    done: str | None = None
    lost: bool = False

    @classmethod
    def started(cls, open: Open, arguments: tuple, clock: Callable[[], float]) -> "_Worker":
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(open, arguments, theirs))
        process.start()
        # the end of the process shall be the end of the pipe
        theirs.close()
        return cls(process, ours, clock())

    def take(self, name: str, clock: Callable[[], float]) -> None:
        self.name, self.since = name, clock()
        try:
            self.pipe.send(name)
        except OSError:
            # it ended after its last item, and is found out when its answer is read
            pass

    def allowed(self, limit_s: float) -> float:
        return limit_s if self.ready else START_S

    def outcome(self, clock: Callable[[], float], limit_s: float, end: float) -> dict | None:
        """What came of the item it works on, or of its start; None if nothing yet."""
        try:
            if self.pipe.poll():
                answer = self.pipe.recv()
                self.lost = answer.pop("lost", False)
                self.ready, self.done, self.name = True, self.name, None
                return answer
        except (EOFError, OSError):
            self.process.join(5)
            return self._gone(f"its process died, with exit code {self.process.exitcode}")
        if clock() >= end:
            return self._gone("stopped: the time of the run was over")
        if clock() >= self.since + self.allowed(limit_s):
            return self._gone(f"stopped: it took more than {self.allowed(limit_s):.0f} s")
        return None

    def _gone(self, words: str) -> dict:
        self.lost, self.done, self.name = True, self.name, None
        return {"error": words}

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(open: Open, arguments: tuple, pipe: Connection) -> None:
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        items, sound = open(*arguments)
    except Exception as error:
        pipe.send({"error": told(error), "lost": True})
        return
    pipe.send({})
    while True:
        try:
            name = pipe.recv()
        except EOFError:
            return
        start = time.perf_counter()
        try:
            answer = items[name]()
        except Exception as error:
            answer = {"error": told(error)}
        lost = not sound()
        pipe.send(answer | {"seconds": round(time.perf_counter() - start, 2), "lost": lost})
        if lost:
            return


def _end_with_the_parent() -> None:
    """Whatever the item does: who is killed leaves nothing behind on the GPU."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
