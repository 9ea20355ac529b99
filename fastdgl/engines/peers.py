"""Who of the ranks has died or hangs. Each writes a beat into the store in which the ranks have met, and reads those of the others."""

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

PACKAGE = Path(__file__).resolve().parents[1]
BEAT = 1.0  # seconds from one to the next
ANSWER = 6.0  # seconds in which a rank that lives is heard of again, on a machine with much else to do
WAITING = "waits for the others"
GAVE_UP = "has found out too"


@dataclass
class Answer:
    """The last that was heard of a rank.

    place: Where its main thread stood.
    since: When this rank first read that beat, seconds on its own clock.
    """

    beat: int
    host: str
    place: str
    since: float


class Peers:
    """The ranks of a run, as they answer. Made by all ranks together.

    A thread beats and listens. It ends the process when a rank has been silent for too long: a process that waits in a
    collective cannot, and under NCCL the one that is ended for waiting is not told for whom.

    Args:
        store: In which all ranks meet; this makes a connection of its own to it.
        timeout: Seconds of silence after which a rank is given up.

    Raises:
        torch.distributed.DistError: Not all ranks came within the store's own timeout.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, timeout: float) -> None:
        self.rank, self.timeout = rank, timeout
        # a connection serves one thread at a time, and the process group may keep the other busy for long
        self._store = dist.PrefixStore("peers", store).clone()
        self._keys = [str(peer) for peer in range(world_size)]
        self._stopped, self._speaking, self._gave_up = threading.Event(), threading.Lock(), False
        self._beat(0)
        self._store.wait(self._keys)
        self._answers = self._read()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Fall silent."""
        self._stopped.set()
        self._thread.join(BEAT)

    def end(self, error: Exception) -> NoReturn:
        """End this process over `error` of a collective, with a sentence that names the ranks to blame."""
        self._gave_up = True
        # whoever lives is heard of in the meantime; the last beat of who does not may be read a beat later than it was written
        time.sleep(ANSWER + 2 * BEAT)
        self._say(f"{self._blame(ANSWER)} ({in_short(error)})")

    def _listen(self) -> None:
        beat = 0
        while not self._stopped.wait(BEAT):
            beat += 1
            try:
                self._beat(beat)
                heard = self._read()
            except RuntimeError:
                # the store went with rank 0 or its launcher; the next collective fails too, and finds that nobody answers
                return
            self._answers = [new if new.beat != old.beat else old for old, new in zip(self._answers, heard)]
            if self._silent(self.timeout) and not self._stopped.is_set():
                self._say(self._blame(self.timeout))

    def _beat(self, beat: int) -> None:
        self._store.set(str(self.rank), json.dumps([beat, socket.gethostname(), GAVE_UP if self._gave_up else main_thread_stands()]))

    def _read(self) -> list[Answer]:
        now = time.monotonic()
        return [Answer(*json.loads(text), now) for text in self._store.multi_get(self._keys)]

    def _silent(self, seconds: float) -> list[int]:
        """The ranks not heard of for so long, but for those that have ended over it; this one too, where the store does not answer."""
        now = time.monotonic()
        return [rank for rank, answer in enumerate(self._answers) if now - answer.since > seconds and answer.place != GAVE_UP]

    def _blame(self, seconds: float) -> str:
        silent = self._silent(seconds)
        if self.rank in silent:
            return (f"{self._name(0)} has not been heard of for {seconds:g} s, nor has the store in which the ranks meet, which it or its "
                    f"launcher keeps: it has died or hangs, or its machine cannot be reached")
        if silent:
            return (f"{' and '.join(map(self._name, silent))} not heard of for {seconds:g} s: died or hanging, or on a machine that "
                    f"cannot be reached")
        elsewhere = [f"{self._name(rank)} {answer.place}" for rank, answer in enumerate(self._answers) if answer.place not in (WAITING, GAVE_UP)]
        return f"the ranks have waited too long for each other: {', '.join(elsewhere) or 'all of them wait'}"

    def _name(self, rank: int) -> str:
        return f"rank {rank} on {self._answers[rank].host}"

    def _say(self, sentence: str) -> NoReturn:
        """Print it and end the process, at once: whatever else would be left waits for the ranks that are gone."""
        # never released: of two threads, one speaks
        self._speaking.acquire()
        print(f"Error (rank {self.rank}): {sentence}; start again with --resume RUN_FOLDER", file=sys.stderr, flush=True)
        os._exit(1)


def in_short(error: Exception) -> str:
    """What a collective failed of: the first sentence, without the line of gloo's source that comes before it."""
    text = " ".join(str(error).split())
    return (text.partition("] ")[2] or text).partition(". ")[0]


def patience(timeout: float) -> timedelta:
    """How long a collective may wait: longer than a rank may be silent, which is then named before others fail."""
    return timedelta(seconds=timeout + ANSWER)


def main_thread_stands() -> str:
    """The innermost line of fastdgl that the main thread is at, or that it waits in a collective."""
    frame = sys._current_frames()[threading.main_thread().ident]
    summaries = traceback.StackSummary.extract(traceback.walk_stack(frame), lookup_lines=False)
    if any(Path(*dist.__path__) in Path(line.filename).parents for line in summaries):
        return WAITING
    ours = [line for line in summaries if PACKAGE in Path(line.filename).parents]
    if not ours:
        return "stands outside of fastdgl"
    return f"stands in {Path(ours[0].filename).relative_to(PACKAGE.parent)}:{ours[0].lineno} ({ours[0].name})"


@contextmanager
def watched(peers: Peers | None) -> Iterator[None]:
    """A run of several ranks; should a collective fail because another rank has died or hangs, a sentence that names it ends the process.

    Args:
        peers: None where a rank is alone.
    """
    if peers is None:
        yield
        return
    try:
        yield
        # who fails to come is still to be named
        dist.barrier()
        peers.stop()
        # rank 0 may take the store with it, and nobody must be at it then
        dist.barrier()
    except RuntimeError as error:
        # gloo's errors are of no type of their own
        if not isinstance(error, dist.DistError) and "gloo/transport" not in str(error):
            raise
        peers.end(error)
    finally:
        peers.stop()
