"""A verdict: which implementations are right on one machine, and which of them is the fastest. It lives in a JSON file.

Reading never starts the GPU and never raises: anything odd is no verdict and one sentence.
"""

import datetime
import hashlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from math import isfinite
from pathlib import Path

import torch

from .._place import ROOT

FORMAT = 1
# bytes; a verdict of every layer of a large network has a tenth
LARGEST_FILE = 4 * 2**20
SHIPPED = Path(__file__).parent / "verdicts"

RIGHT, WRONG, PENDING, SKIPPED = "right", "wrong", "pending", "skipped"
KERNELS = ("triton", "cudnn")
LAYOUTS = ("NCHW", "NHWC")
# say where Triton keeps its files, and not what it compiles
PLACES = ("TRITON_CACHE_DIR", "TRITON_HOME", "TRITON_DUMP_DIR")


class VerdictError(ValueError):
    """A file that holds no verdict for this machine; the message is one sentence."""


@dataclass(frozen=True)
class Result:
    """What came of one call under one implementation.

    Args:
        call: Identifies the call, see `calls.Call.id`.
        operator, dtype, layout: Its class: "bias_act", "float16", "NHWC" or "NCHW".
        implementation: "triton" or "cudnn".
        outcome: RIGHT; WRONG; PENDING where the budget ended first; SKIPPED where the GPU's memory is too small to check it.
        words: Why it is not right; empty if it is.
    """

    call: str
    operator: str
    dtype: str
    layout: str
    implementation: str
    outcome: str
    words: str = ""


@dataclass(frozen=True)
class Timing:
    """How long the right implementations of a layer take.

    Args:
        layer: As `calls.layer` spells it.
        fastest: The implementation to take.
        us: Median microseconds of value and gradients, by implementation.
    """

    operator: str
    dtype: str
    layout: str
    layer: str
    fastest: str
    us: Mapping[str, float]


class Verdict:
    """Which implementations are right on a machine, and which is the fastest.

    Args:
        machine: See `machine`.
        date: When it was made, ISO 8601.
        results: One for each call and implementation.
        timings: One for each timed layer.
        halted: Why nothing may run, such as a GPU that did not answer any more; else empty.
    """

    def __init__(
        self,
        machine: Mapping[str, str],
        date: str,
        results: Iterable[Result],
        timings: Iterable[Timing] = (),
        halted: str = "",
    ):
        self.machine, self.date, self.halted = dict(machine), date, halted
        self.results, self.timings = tuple(results), tuple(timings)
        self._faults: dict[tuple[str, str, str, str], str] = {}
        judged = [r for r in self.results if r.outcome != SKIPPED]
        for r in sorted(judged, key=lambda r: (RIGHT, PENDING, WRONG).index(r.outcome)):
            # the worst comes last, and stays
            self._faults[r.operator, r.dtype, r.layout, r.implementation] = "" if r.outcome == RIGHT else r.words or r.outcome
        self._fastest = {(t.operator, t.layer): t for t in self.timings}

    @property
    def day(self) -> str:
        """The date without the time."""
        return self.date[:10]

    @property
    def complete(self) -> bool:
        """Whether no result is pending."""
        return all(r.outcome != PENDING for r in self.results)

    def why_not(self, operator: str, dtype: str, layout: str, implementation: str) -> str | None:
        """Return the reason the implementation may not run, or None if it was found right."""
        if self.halted:
            return self.halted
        fault = self._faults.get((operator, dtype, layout, implementation))
        if fault is None:
            return f"the verdict of {self.day} has not checked it for {dtype} {layout}"
        return f"the verdict of {self.day} says: {fault}" if fault else None

    def right(self) -> set[tuple[str, str, str, str]]:
        """Return operator, dtype, layout and implementation of all that may run."""
        return set() if self.halted else {key for key, fault in self._faults.items() if not fault}

    def timing(self, operator: str, layer: str) -> Timing | None:
        """Return the times of a layer, or None if it was not timed."""
        return self._fastest.get((operator, layer))

    @property
    def any_timings(self) -> bool:
        """Whether there is a time at all."""
        return bool(self._fastest)

    def to_json(self) -> dict:
        """Return plain data that `from_json` takes."""
        return {
            "format": FORMAT,
            "machine": self.machine,
            "date": self.date,
            "halted": self.halted,
            "results": [asdict(r) for r in self.results],
            "timings": [asdict(t) for t in self.timings],
        }

    @staticmethod
    def from_json(data: object) -> "Verdict":
        """Return the verdict that `data` describes.

        Raises:
            VerdictError: It is anything else, in however small a part.
        """
        _check_keys(data, {"format", "machine", "date", "halted", "results", "timings"}, "a verdict")
        if type(data["format"]) is not int or data["format"] != FORMAT:
            raise VerdictError(f"it is in format {data['format']!r:.20}, this package reads format {FORMAT}")
        if not isinstance(data["machine"], dict) or not all(isinstance(v, str) for v in data["machine"].values()):
            raise VerdictError("its machine is not described by texts")
        for key in ("date", "halted"):
            if not isinstance(data[key], str):
                raise VerdictError(f"its {key} is {data[key]!r:.50}, expected a text")
        try:
            datetime.datetime.fromisoformat(data["date"])
        except ValueError:
            raise VerdictError(f"its date is {data['date']!r:.50}, expected one in ISO 8601") from None
        for key in ("results", "timings"):
            if not isinstance(data[key], list):
                raise VerdictError(f"its {key} are {type(data[key]).__name__}, expected a list")
        results = [_result(entry) for entry in data["results"]]
        timings = [_timing(entry) for entry in data["timings"]]
        return Verdict(data["machine"], data["date"], results, timings, data["halted"])


def combine(verdicts: Iterable[Verdict]) -> Verdict:
    """Return what all machines of a run may take: right where it is right on each, as fast as the first says."""
    first, *others = verdicts
    results, timings = list(first.results), []
    for other in others:
        known = {(r.operator, r.dtype, r.layout, r.implementation) for r in other.results}
        # a class that the other has not seen may not run either
        results += [
            Result(r.call, r.operator, r.dtype, r.layout, r.implementation, PENDING, "another machine of the run has not checked it")
            for r in first.results
            if (r.operator, r.dtype, r.layout, r.implementation) not in known
        ]
        results += [r for r in other.results if r.outcome not in (RIGHT, SKIPPED)]
    halted = next((v.halted for v in (first, *others) if v.halted), "")
    joint = Verdict(first.machine, first.date, results, (), halted)
    allowed = joint.right()
    for t in first.timings:
        if t.fastest == "reference" or (t.operator, t.dtype, t.layout, t.fastest) in allowed:
            timings.append(t)
    return Verdict(first.machine, first.date, results, timings, halted)


def differences(a: Verdict, b: Verdict) -> list[str]:
    """Return, in words, what may run by `a` and not by `b` and the other way round, and layers whose fastest differs."""
    words = [f"{' '.join(key)} runs by the first only" for key in sorted(a.right() - b.right())]
    words += [f"{' '.join(key)} runs by the second only" for key in sorted(b.right() - a.right())]
    for t in a.timings:
        other = b.timing(t.operator, t.layer)
        if other is not None and other.fastest != t.fastest:
            words.append(f"{t.operator} {t.layer} runs as {t.fastest!r} by the first, as {other.fastest!r} by the second")
    return words


def machine(device: torch.device) -> dict[str, str]:
    """Return all that a verdict depends on: GPU, driver, versions, Triton's environment, and this package's sources."""
    facts = {"gpu": "cpu", "capability": "", "driver": ""}
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        facts = {"gpu": torch.cuda.get_device_name(device), "capability": f"{major}.{minor}", "driver": _driver()}
    environment = {k: v for k, v in sorted(os.environ.items()) if k.startswith("TRITON_") and k not in PLACES}
    return facts | {
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()) if device.type == "cuda" else "",
        "triton": _version("triton"),
        "environment": json.dumps(environment, sort_keys=True),
        "sources": _sources(),
    }


def key(machine: Mapping[str, str]) -> str:
    """Return the name of a machine's verdict, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps([FORMAT, dict(machine)], sort_keys=True).encode()).hexdigest()


def folder() -> Path:
    """Return where verdicts are kept: $XDG_CACHE_HOME/fastdgl_kernels, by default ~/.cache/fastdgl_kernels.

    Raises:
        VerdictError: There is no home directory.
    """
    root = os.environ.get("XDG_CACHE_HOME") or ""
    # the specification says to ignore a relative one
    if not os.path.isabs(root):
        try:
            root = Path.home() / ".cache"
        except RuntimeError:
            raise VerdictError("there is no home directory: set XDG_CACHE_HOME to a folder that can be written") from None
    return Path(root) / "fastdgl_kernels"


def path(machine: Mapping[str, str]) -> Path:
    """Return the file of a machine's verdict.

    Raises:
        VerdictError: There is no home directory.
    """
    return folder() / f"{key(machine)}.json"


def read(machine: Mapping[str, str]) -> tuple[Verdict | None, str]:
    """Return the verdict for a machine, or None and one sentence that says why there is none."""
    name, reason = f"{key(machine)}.json", ""
    try:
        file = folder() / name
        return _load(file, machine), ""
    except VerdictError as error:
        reason = str(error)
    except FileNotFoundError:
        reason = "this machine has no verdict yet"
    except OSError as error:
        reason = f"{file}: cannot be read: {error.strerror or error}"
    try:
        return _load(SHIPPED / name, machine), ""
    except (VerdictError, OSError):
        return None, reason


def write(verdict: Verdict) -> Path:
    """Write a verdict where `read` finds it; the file appears whole or not at all.

    Raises:
        VerdictError: It cannot be written; nothing is left behind.
    """
    file = path(verdict.machine)
    unfinished = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(dir=file.parent, prefix=f"{file.name}.", suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(verdict.to_json(), stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, file)
    except OSError as error:
        if unfinished is not None and os.path.exists(unfinished):
            os.unlink(unfinished)
        raise VerdictError(
            f"{file}: the verdict cannot be kept: {error.strerror or error}; make the folder writable, or set "
            f"XDG_CACHE_HOME to one that is"
        ) from None
    return file


def forget(machine: Mapping[str, str]) -> bool:
    """Remove a machine's verdict from the cache. Return whether there was one.

    Raises:
        VerdictError: It cannot be removed.
    """
    file = path(machine)
    try:
        file.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise VerdictError(f"{file}: cannot be removed: {error.strerror or error}") from None
    return True


def _load(file: Path, machine: Mapping[str, str]) -> Verdict:
    # a pipe would be waited for, and a device has no end
    if not file.is_file():
        if file.exists():
            raise VerdictError(f"{file}: is no verdict: it is no file")
        raise FileNotFoundError(file)
    with file.open("rb") as stream:
        content = stream.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise VerdictError(f"{file}: is no verdict: it has more than {LARGEST_FILE} bytes")
    try:
        data = json.loads(content.decode(), parse_constant=_no_number)
        verdict = Verdict.from_json(data)
    except VerdictError as error:
        raise VerdictError(f"{file}: is no verdict of ours: {error}") from None
    except (ValueError, RecursionError):
        raise VerdictError(f"{file}: is no verdict: it is damaged") from None
    if verdict.machine != dict(machine):
        raise VerdictError(f"{file}: is the verdict of another machine")
    return verdict


def _no_number(text: str):
    raise VerdictError(f"{text} is no number")


def _check_keys(data: object, expected: set[str], what: str) -> None:
    if not isinstance(data, dict) or set(data) != expected:
        raise VerdictError(f"{what} has the keys {', '.join(sorted(expected))}, and this has others")


def _result(entry: object) -> Result:
    _check_keys(entry, {field.name for field in fields(Result)}, "a result")
    if not all(isinstance(value, str) and len(value) <= 2000 for value in entry.values()):
        raise VerdictError("a result is not described by texts")
    if entry["outcome"] not in (RIGHT, WRONG, PENDING, SKIPPED):
        raise VerdictError(f"an outcome is {entry['outcome']!r:.50}, expected {RIGHT!r}, {WRONG!r}, {PENDING!r} or {SKIPPED!r}")
    if entry["implementation"] not in KERNELS or entry["layout"] not in LAYOUTS:
        raise VerdictError(f"a result is of {entry['implementation']!r:.50} on {entry['layout']!r:.50}, which is unknown")
    return Result(**entry)


def _timing(entry: object) -> Timing:
    _check_keys(entry, {field.name for field in fields(Timing)}, "a timing")
    us = entry["us"]
    if not all(isinstance(value, str) and len(value) <= 2000 for name, value in entry.items() if name != "us"):
        raise VerdictError("a timing is not described by texts")
    if not isinstance(us, dict) or not all(type(n) in (int, float) and isfinite(n) and n >= 0 for n in us.values()):
        raise VerdictError("the times of a timing are no numbers")
    if not set(us) <= {"reference", *KERNELS} or entry["fastest"] not in us:
        raise VerdictError(f"the fastest is {entry['fastest']!r:.50}, which has no time, or a time is of an unknown implementation")
    return Timing(**entry)


def _driver() -> str:
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8", errors="replace") as stream:
            return stream.readline().strip()
    except OSError:
        # under WSL and in some containers there is no such file
        return f"CUDA driver {torch._C._cuda_getDriverVersion()}"


@cache
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@cache
def _sources() -> str:
    """Return a digest of this package's Python files."""
    digest = hashlib.sha256()
    for file in sorted(ROOT.rglob("*.py")):
        digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()
