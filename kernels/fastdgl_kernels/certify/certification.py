"""Certifying a device: check every call, blame what contains a fault, time what is right, keep the verdict."""

import datetime
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from .. import _dispatch
from .._place import COMMAND
from . import cases, timing, verdict as verdicts
from .calls import CONTAINS, IMPLEMENTATIONS, Call
from .pool import CRASHED, HUNG, OVER, DeviceLost, Pool, PoolError, processes
from .verdict import PENDING, RIGHT, SKIPPED, WRONG, Result, Timing, Verdict, VerdictError

BUDGET = 60.0
# seconds in which another process that certifies the same device is looked at again
LOOK_AGAIN = 0.5


class CertificationError(RuntimeError):
    """A device that cannot be certified, in one sentence."""


def certify(
    device: torch.device | str = "cuda",
    calls: Iterable[Call] | None = None,
    budget: float = BUDGET,
    *,
    force: bool = False,
    operators: Sequence[str] | None = None,
    patience: float = 0.0,
    report: Callable[[str], None] = lambda sentence: None,
    pool: Callable[..., Pool] = Pool,
    size: int | None = None,
) -> Verdict:
    """Prove the kernels on a device and keep the verdict, from then on read by "auto".

    What an earlier call has settled is not checked again; what does not fit into the budget is left for the next call.

    Args:
        device: A GPU; or "cpu" with TRITON_INTERPRET=1, where a verdict changes nothing.
        calls: What `recording` has noted; None for the general cases alone.
        budget: Seconds after which no further check starts.
        force: Begin again, without an earlier verdict.
        operators: The names of those to check; None for all.
        patience: Seconds to wait for another process that certifies this device.
        report: Called with what happens, a line each.
        pool: Makes the processes that check, see `Pool`.
        size: How many of them; None for as many as suit the machine.

    Raises:
        CertificationError: There is no such device, Triton cannot run on it, no process can start on it, or another
            process is certifying it.
    """
    device = _indexed(torch.device(device))
    if (reason := _dispatch.why_not_triton(device)) is not None:
        raise CertificationError(f"the kernels cannot be certified on {device}: {reason}")
    machine = verdicts.machine(device)
    start = time.monotonic()
    with _alone(machine, patience, start) as waited:
        # whoever was waited for has left a verdict
        known = None if force and not waited else verdicts.read(machine)[0]
        planned = [call for call in _planned(calls, device.type == "cpu") if operators is None or call.operator in operators]
        found = _found(device, planned, known, start + budget, report, pool, size)
        try:
            report(f"verdict kept in {verdicts.write(found)}")
        except VerdictError as error:
            report(f"{error}; it holds for this process only")
    _dispatch.use(device, found)
    return found


def _indexed(device: torch.device) -> torch.device:
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise CertificationError(f"{device} cannot be certified: PyTorch {torch.__version__} sees no CUDA GPU here")
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise CertificationError(f"there is no {device}: this machine has {torch.cuda.device_count()} GPU(s)")
    return torch.device("cuda", index)


def _planned(calls: Iterable[Call] | None, interpreted: bool) -> list[Call]:
    """Return what to check and time, each distinct call once, the operators inside of others first."""
    calls = cases.typical() if calls is None and not interpreted else calls or ()
    planned = [*calls, *cases.general(interpreted)]
    return sorted(dict.fromkeys(planned), key=lambda call: list(IMPLEMENTATIONS).index(call.operator))


def _found(
    device: torch.device,
    planned: Sequence[Call],
    known: Verdict | None,
    until: float,
    report: Callable[[str], None],
    pool: Callable[..., Pool],
    size: int | None,
) -> Verdict:
    blame, halted = Blame(), ""
    results = {(r.call, r.implementation): r for r in (known.results if known else ()) if r.outcome != PENDING}
    for r in results.values():
        if r.outcome == WRONG:
            blame.add(r.operator, r.implementation, r.dtype, r.layout, r.words)
    checks = dict.fromkeys((call.with_samples(), name) for call in planned for name in IMPLEMENTATIONS[call.operator])
    jobs = [
        {"kind": "check", "call": call.to_json(), "implementation": name}
        for call, name in checks
        if (call.id, name) not in results
    ]
    described = {call.id: call for call, _ in checks}

    def is_blamed(job: dict) -> bool:
        call = Call.from_json(job["call"])
        return blame.reason(call.operator, job["implementation"], call.dtype, call.layout) is not None

    report(f"{len(jobs)} checks of {len(described)} calls on {device}")
    try:
        with pool(str(device), size=size or processes(device), until=until) as workers:
            for job, outcome in workers.outcomes(jobs, is_blamed):
                call, name = Call.from_json(job["call"]), job["implementation"]
                result = _judged(call, name, outcome)
                if result.outcome == WRONG:
                    # what crashes or hangs is not trusted with other numbers either
                    whole = outcome["outcome"] in (CRASHED, HUNG)
                    form = None if outcome["outcome"] != WRONG else call.layout
                    blame.add(call.operator, name, None if whole else call.dtype, form, result.words)
                    report(f"{name} is wrong: {call}: {result.words}")
                results[call.id, name] = result
        timings = list(known.timings if known else ())
        if blame.right_somewhere(results.values()):
            with pool(str(device), size=1, until=until) as alone:
                timings += _timed(device, alone, planned, blame, results, {(t.operator, t.layer) for t in timings}, report)
    except DeviceLost as error:
        halted, timings = f"none of the kernels may run: {error}", []
        report(halted)
    except PoolError as error:
        raise CertificationError(f"the kernels cannot be certified on {device}: {error}") from None

    # what was not looked at: inside of a fault it is wrong, else it waits for the next time
    for call, name in checks:
        reason = blame.reason(call.operator, name, call.dtype, call.layout)
        if reason is not None:
            results[call.id, name] = _result(call, name, WRONG, reason)
        elif (call.id, name) not in results:
            results[call.id, name] = _result(call, name, PENDING, "not checked yet")
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return Verdict(verdicts.machine(device), date, results.values(), timings, halted)


def _judged(call: Call, name: str, outcome: dict) -> Result:
    kind, words = outcome["outcome"], outcome.get("words", "")
    if kind == RIGHT:
        return _result(call, name, RIGHT, "")
    if kind in (OVER, SKIPPED):
        return _result(call, name, PENDING if kind == OVER else SKIPPED, words)
    return _result(call, name, WRONG, words or kind)


def _result(call: Call, name: str, outcome: str, words: str) -> Result:
    return Result(call.id, call.operator, call.dtype, call.layout, name, outcome, words[:600])


def _timed(
    device: torch.device,
    pool: Pool,
    planned: Sequence[Call],
    blame: "Blame",
    results: dict[tuple[str, str], Result],
    known: set[tuple[str, str]],
    report: Callable[[str], None],
) -> Iterator[Timing]:
    """Yield the times of the layers of which two implementations are right, the reference being one."""
    right = {(r.operator, r.dtype, r.layout, r.implementation) for r in results.values() if r.outcome == RIGHT}
    jobs = []
    for call in planned:
        names = [
            name
            for name in IMPLEMENTATIONS[call.operator]
            if (call.operator, call.dtype, call.layout, name) in right
            and blame.reason(call.operator, name, call.dtype, call.layout) is None
        ]
        if names and not call.misaligned:
            done = [layer for operator, layer in known if operator == call.operator]
            jobs.append({"kind": "time", "call": call.to_json(), "implementations": [*names, "reference"], "known": done})
    if not jobs or not _dispatch.is_gpu(device):
        return
    report(f"timing up to {len(jobs)} layers")
    seen = set(known)
    for job, outcome in pool.outcomes(jobs):
        call, layer = Call.from_json(job["call"]), outcome.get("layer")
        if outcome["outcome"] != RIGHT or (call.operator, layer) in seen:
            continue
        seen.add((call.operator, layer))
        best, us = timing.fastest(outcome["samples"], outcome["default"])
        us = {name: round(n, 3) for name, n in us.items()}
        yield Timing(call.operator, call.dtype, call.layout, layer, best, us)


class Blame:
    """What may not run: operators that were found at fault, and all that contain them."""

    def __init__(self):
        self._faults: list[tuple[str, str, str | None, str | None, str]] = []

    def add(self, operator: str, implementation: str, dtype: str | None, layout: str | None, words: str) -> None:
        """Blame an implementation of an operator, and those of all operators that contain it.

        Args:
            dtype, layout: Where; None for everywhere. Operators that contain it may change the layout: they are blamed in all.
        """
        self._faults.append((operator, implementation, dtype, layout, words))
        for outer, inner in CONTAINS.items():
            if operator in inner:
                # a convolution of our own is in what is called "triton" alone
                own = implementation == "triton" and len(IMPLEMENTATIONS[operator]) > 1
                for name in ("triton",) if own else IMPLEMENTATIONS[outer]:
                    self._faults.append((outer, name, dtype, None, f"{operator}, which is inside of it, is wrong: {words}"))

    def reason(self, operator: str, implementation: str, dtype: str, layout: str) -> str | None:
        """Return why an implementation may not run, or None."""
        for blamed, name, of_dtype, of_layout, words in self._faults:
            if (blamed, name) == (operator, implementation) and of_dtype in (None, dtype) and of_layout in (None, layout):
                return words
        return None

    def right_somewhere(self, results: Iterable[Result]) -> bool:
        """Return whether anything is left that may run."""
        return any(
            r.outcome == RIGHT and self.reason(r.operator, r.implementation, r.dtype, r.layout) is None for r in results
        )


@contextmanager
def _alone(machine: dict[str, str], patience: float, start: float) -> Iterator[bool]:
    """Certify in one process of a machine at a time. Give whether another one was waited for.

    Raises:
        CertificationError: Another process is at it for longer than `patience`.
    """
    try:
        import fcntl
    except ImportError:
        # where there are no locks, the last verdict counts
        yield False
        return
    try:
        file = verdicts.path(machine).with_suffix(".lock")
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = file.open("w")
    except (OSError, VerdictError):
        # where nothing can be kept, nobody is in the way
        yield False
        return
    with stream:
        waited = False
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= start + patience:
                    raise CertificationError(
                        f"another process is certifying this machine ({file}); run `{COMMAND}` when it has ended"
                    ) from None
                waited = True
                time.sleep(LOOK_AGAIN)
            except OSError:
                # a file system without locks
                break
        yield waited
