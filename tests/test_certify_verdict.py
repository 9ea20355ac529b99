"""Verdict files: read, written, and what is odd about them."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from certified import MACHINE, certified
from fastdgl_kernels.certify import verdict as verdicts
from fastdgl_kernels.certify.verdict import Result, Timing, Verdict, VerdictError, combine, differences

TIMING = Timing("bias_act", "float16", "NHWC", "lrelu 64>64 @64 N=8 float16 NHWC", "triton", {"reference": 4.0, "triton": 2.0})


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(verdicts, "SHIPPED", tmp_path / "shipped")
    return tmp_path / "cache" / "fastdgl_kernels"


def test_what_is_written_is_read_again(cache):
    written = certified(timings=[TIMING], wrong=["upfirdn2d"])
    file = verdicts.write(written)
    found, reason = verdicts.read(MACHINE)
    assert file.parent == cache and file.name == f"{verdicts.key(MACHINE)}.json"
    assert found.to_json() == written.to_json() and reason == ""
    assert found.why_not("bias_act", "float16", "NHWC", "triton") is None
    assert found.why_not("upfirdn2d", "float16", "NHWC", "triton") == "the verdict of 2026-11-30 says: of upfirdn2d"
    assert "has not checked it for float64" in found.why_not("bias_act", "float64", "NHWC", "triton")
    assert [item.name for item in cache.iterdir()] == [file.name]


@pytest.mark.parametrize("change", MACHINE | {"torch": "2.0"})
def test_another_machine_has_another_verdict(change):
    verdicts.write(certified())
    found, reason = verdicts.read(MACHINE | {change: "another"})
    assert found is None and reason == "this machine has no verdict yet"


def test_all_that_a_verdict_depends_on_is_in_its_key(monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "/one")
    before = verdicts.machine(torch.device("cpu"))
    assert {"gpu", "capability", "driver", "torch", "cuda", "cudnn", "triton", "environment", "sources"} == set(before)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/another")
    assert verdicts.machine(torch.device("cpu")) == before
    monkeypatch.setenv("TRITON_F32_DEFAULT", "tf32")
    assert verdicts.key(verdicts.machine(torch.device("cpu"))) != verdicts.key(before)


def test_the_sources_count(monkeypatch, tmp_path):
    (tmp_path / "a.py").write_text("1")
    monkeypatch.setattr(verdicts, "ROOT", tmp_path)
    first = verdicts._sources.__wrapped__()
    (tmp_path / "a.py").write_text("2")
    assert verdicts._sources.__wrapped__() != first


def test_one_fault_of_a_class_is_the_class():
    results = [Result(call, "bias_act", "float16", "NHWC", "triton", outcome, words)
               for call, outcome, words in (("a", "wrong", "errs"), ("b", "right", ""), ("c", "pending", "not checked yet"))]
    for order in (results, results[::-1]):
        assert Verdict(MACHINE, "2026-11-30", order).why_not("bias_act", "float16", "NHWC", "triton").endswith("errs")
    assert Verdict(MACHINE, "2026-11-30", results[1:]).why_not("bias_act", "float16", "NHWC", "triton").endswith("not checked yet")


def without(key):
    return lambda data: {k: v for k, v in data.items() if k != key}


def changed(part, **changes):
    return lambda data: data | {part: [data[part][0] | changes]}


ODD = {
    "empty": b"",
    "truncated": lambda text: text[: len(text) // 2],
    "no text": b"\xff\xfe\x00",
    "no object": b"[]",
    "deep": b"[" * 100_000,
    "a number of many digits": b'{"format": ' + b"9" * 5000 + b"}",
    "huge": lambda text: text[:-1] + b" " * verdicts.LARGEST_FILE + b"}",
    "newer": lambda data: data | {"format": verdicts.FORMAT + 1},
    "a truth value for its format": lambda data: data | {"format": True},
    "a part missing": without("results"),
    "a part too many": lambda data: data | {"also": 1},
    "another machine": lambda data: data | {"machine": {"gpu": "another"}},
    "a machine of numbers": lambda data: data | {"machine": {"gpu": 1}},
    "no date": lambda data: data | {"date": "yesterday"},
    "results that are none": lambda data: data | {"results": {"a": 1}},
    "a result with a part missing": lambda data: data | {"results": [without("words")(data["results"][0])]},
    "a result of another outcome": changed("results", outcome="certainly"),
    "a result of another implementation": changed("results", implementation="rm -rf"),
    "a result of a number": changed("results", operator=3),
    "a result of many words": changed("results", words="x" * 3000),
    "a time below zero": changed("timings", us={"reference": -1.0, "triton": 1.0}),
    "a time that is none": changed("timings", us={"reference": float("nan"), "triton": 1.0}),
    "a time without end": changed("timings", us={"reference": 1e999, "triton": 1.0}),
    "the fastest without a time": changed("timings", fastest="cudnn"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_anything_odd_is_no_verdict_and_one_sentence(kind, capfd):
    file, odd = verdicts.write(certified(timings=[TIMING])), ODD[kind]
    if isinstance(odd, bytes):
        file.write_bytes(odd)
    elif kind in ("truncated", "huge"):
        file.write_bytes(odd(file.read_bytes()))
    else:
        file.write_text(json.dumps(odd(json.loads(file.read_text()))))
    found, reason = verdicts.read(MACHINE)
    assert found is None and reason.startswith(f"{file}: is ") and "\n" not in reason and len(reason) < 400
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["folder", "pipe", "unreadable", "dangling link"])
def test_what_is_no_file_is_no_verdict(kind, cache):
    cache.mkdir(parents=True)
    file = verdicts.path(MACHINE)
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "dangling link":
        file.symlink_to(cache / "nothing")
    else:
        verdicts.write(certified())
        file.chmod(0)
        if os.access(file, os.R_OK):
            pytest.skip("this user may read everything")
    found, reason = verdicts.read(MACHINE)
    assert found is None and reason and "\n" not in reason


def test_a_folder_that_cannot_be_written_leaves_one_sentence(monkeypatch, tmp_path):
    # a file where the folder would be: even the superuser cannot write into it
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(VerdictError, match="the verdict cannot be kept: Not a directory; make the folder writable, or set XDG_CACHE_HOME"):
        verdicts.write(certified())
    assert verdicts.read(MACHINE)[0] is None


def test_a_write_that_fails_leaves_the_old_verdict_and_no_other_file(monkeypatch, cache):
    file = verdicts.write(certified())
    before = file.read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(verdicts.os, "fsync", full)
    with pytest.raises(VerdictError, match="No space left on device"):
        verdicts.write(certified(wrong=["bias_act"]))
    assert file.read_bytes() == before and list(cache.iterdir()) == [file]


def test_without_a_home_there_is_no_verdict(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(verdicts.Path, "home", homeless)
    assert verdicts.read(MACHINE) == (None, "there is no home directory: set XDG_CACHE_HOME to a folder that can be written")
    with pytest.raises(VerdictError, match="there is no home directory"):
        verdicts.write(certified())


def test_a_relative_cache_is_ignored(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert verdicts.folder() == Path.home() / ".cache" / "fastdgl_kernels"


def test_a_shipped_verdict_is_read_where_there_is_no_other(tmp_path):
    file = verdicts.write(certified(wrong=["bias_act"]))
    (tmp_path / "shipped").mkdir()
    file.rename(tmp_path / "shipped" / file.name)
    found, reason = verdicts.read(MACHINE)
    assert found.why_not("bias_act", "float16", "NHWC", "triton") and reason == ""
    # one's own goes first; a damaged one is left alone
    verdicts.write(certified())
    assert verdicts.read(MACHINE)[0].why_not("bias_act", "float16", "NHWC", "triton") is None
    file.write_text("{")
    assert verdicts.read(MACHINE)[0].why_not("bias_act", "float16", "NHWC", "triton")


def test_readers_never_see_half_a_verdict():
    stop, odd = threading.Event(), []
    verdicts.write(certified())

    def reads():
        while not stop.is_set():
            found, reason = verdicts.read(MACHINE)
            if found is None:
                odd.append(reason)

    reader = threading.Thread(target=reads)
    reader.start()
    for i in range(20):
        verdicts.write(certified(wrong=["bias_act"] if i % 2 else []))
    stop.set()
    reader.join()
    assert odd == []


def test_forgetting_removes_it(cache):
    verdicts.write(certified())
    assert verdicts.forget(MACHINE) and not verdicts.forget(MACHINE)
    assert list(cache.iterdir()) == []


READS = """
import sys
import torch
from fastdgl_kernels._dispatch import verdict_of
assert not any("certify" in name for name in sys.modules)
verdict_of(torch.device("cpu"))
read = {name.rpartition(".")[2] for name in sys.modules if name.startswith("fastdgl_kernels.certify.")}
assert read == {"calls", "verdict"}, read
"""


def test_reading_imports_no_processes_and_no_checks():
    run = subprocess.run([sys.executable, "-c", READS], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


class TestSeveralMachines:
    def test_a_kernel_runs_where_all_find_it_right(self):
        joint = combine([certified(wrong=["bias_act"], timings=[TIMING]), certified(wrong=["upfirdn2d"]), certified()])
        for operator, runs in (("bias_act", False), ("upfirdn2d", False), ("scale_shift_act", True)):
            assert (joint.why_not(operator, "float16", "NHWC", "triton") is None) == runs
        # the time of what may not run is not kept
        assert joint.timings == () and combine([certified(timings=[TIMING]), certified()]).timings == (TIMING,)

    def test_what_one_of_them_has_not_checked_does_not_run(self):
        few = certified()
        few = Verdict(MACHINE, few.date, [r for r in few.results if r.operator != "bias_act"])
        for pair in ((certified(), few), (few, certified())):
            assert combine(pair).why_not("bias_act", "float16", "NHWC", "triton") is not None

    def test_one_that_has_none_runs_none(self):
        assert combine([certified(), certified(halted="the GPU hangs")]).right() == set()

    def test_differences_are_told(self):
        slow = Timing(*[getattr(TIMING, n) for n in ("operator", "dtype", "layout", "layer")], "reference", TIMING.us)
        told = differences(certified(wrong=["filtered_lrelu"], timings=[TIMING]), certified(timings=[slow]))
        assert "filtered_lrelu float16 NHWC triton runs by the second only" in told
        assert "bias_act lrelu 64>64 @64 N=8 float16 NHWC runs as 'triton' by the first, as 'reference' by the second" in told
        assert differences(certified(), certified()) == []
