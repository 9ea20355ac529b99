"""Input made to do harm, by hypothesis: the same every time, a few of it in each run of the tests and much of it in the slow ones."""

import contextlib
import os
import resource
import signal
import struct
import traceback
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

# far more than anything takes that comes to an end
HANG = 120  # seconds
# how often as many inputs slow tests try
TIMES = int(os.environ.get("FASTDGL_HOSTILE", "1"))


def examples(few: int, many: int) -> pytest.MarkDecorator:
    """How many inputs a test tries: `few`, and `many` where slow tests run."""
    return pytest.mark.parametrize("examples", [pytest.param(few, id="few"), pytest.param(many * TIMES, id="many", marks=pytest.mark.slow)])


def for_all(strategy: st.SearchStrategy, examples: int, check: Callable) -> None:
    """Call `check` with so many values of `strategy`. It fails with the simplest value that makes `check` raise, or not come back."""

    def patiently(value) -> None:
        with not_for_ever():
            check(value)

    profile = settings(max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    profile(given(strategy)(patiently))()


@contextlib.contextmanager
def not_for_ever() -> Iterator[None]:
    """Raise TimeoutError inside after HANG seconds."""

    def give_up(*_) -> None:
        raise TimeoutError(f"did not come back in {HANG} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(HANG)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# numbers that sizes, counts and offsets are checked against too late
EXTREMES = [struct.pack(order + kind, value & (2 ** (8 * size) - 1)) for order in "<>" for kind, size in zip("BHIQ", (1, 2, 4, 8))
            for value in (0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), -1, -2)]


@st.composite
def damaged(draw: Callable, files: list[bytes]) -> bytes:
    """One of the files, with one to four faults: bytes changed, cut off, put in, left out or repeated, numbers at their limits."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 4))):
        end = max(len(data) - 1, 0)
        # headers lie at both ends
        at = draw(st.one_of(st.integers(0, min(end, 64)), st.integers(max(end - 64, 0), end), st.integers(0, end)))
        fault = draw(st.sampled_from(["change", "extreme", "cut", "insert", "remove", "repeat"]))
        length = draw(st.integers(1, 16))
        if fault == "change":
            data[at:at + 1] = bytes([draw(st.integers(0, 255))])
        elif fault == "extreme":
            number = draw(st.sampled_from(EXTREMES))
            data[at:at + len(number)] = number
        elif fault == "cut":
            del data[at:]
        elif fault == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=length))
        elif fault == "remove":
            del data[at:at + length]
        else:
            data[at:at] = data[at:at + length] * 3
    return bytes(data)


def one_sentence(error: BaseException) -> None:
    """What an error says is one line that a terminal does not obey."""
    said = str(error)
    assert said and said.isprintable(), repr(said)


def bounded(action: Callable[[], object], seconds: int = 10, memory: int = 2 * 2**30) -> None:
    """Call `action` in a process of its own, which may take so much processor time, and so much memory besides what this one has.

    Raises:
        AssertionError: It raised something, took more, or crashed.
    """
    answer, said = os.pipe()
    child = os.fork()
    if child == 0:
        # a process that was forked has no threads to share work with
        torch.set_num_threads(1)
        os.close(answer)
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            with open("/proc/self/statm") as file:
                taken = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (taken + memory, taken + memory))
            used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
            resource.setrlimit(resource.RLIMIT_CPU, (int(used) + seconds, int(used) + seconds))
            # what sleeps takes no processor time
            signal.alarm(HANG)
            action()
        except MemoryError:
            os.write(said, b"took too much memory")
        except BaseException:
            os.write(said, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(0)
    os.close(said)
    with os.fdopen(answer, "rb") as file:
        told = file.read().decode(errors="replace")
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"ended by signal {status & 127}"
    assert not told, told
