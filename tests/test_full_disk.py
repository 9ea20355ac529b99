"""Runs whose disk fills: they end by a sentence with the file and the room there is, and go on once there is room."""

import errno
import os
import subprocess
from pathlib import Path

import pytest
import torch

from fastdgl.checkpoints import saved_checkpoints
from fastdgl.journal import Journal

from tiny_runs import TINY, dump, networks, refusal, same, statistics, train

SETTINGS = TINY | {"train": TINY["train"] | {"tick_kimg": 0.016, "checkpoint_ticks": 1, "keep_checkpoints": 9, "kimg": 0.032}}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(dump(SETTINGS | {"outdir": str(tmp_path / "runs")}))
    return path


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half(state, file):
    """torch.save, until there is no room."""
    file.write(b"half")
    full()


# of the second tick, in each file of the journal
SECOND_TICK = {"stats.jsonl": '"Progress/tick": {"num": 1, "mean": 1,', "log.txt": "tick 1 "}


def fill_up(what: str, monkeypatch) -> str:
    """Let the disk be full for one kind of file from the second tick on; returns how such a file is called."""
    if what == "checkpoint":
        save = torch.save
        monkeypatch.setattr(torch, "save", lambda state, file: (half if file.name.endswith("0000000024.tmp/D.pt") else save)(state, file))
        return "checkpoints/0000000024.tmp/D.pt"
    if what == "TensorBoard":
        from torch.utils.tensorboard import SummaryWriter
        flush, times = SummaryWriter.flush, []
        monkeypatch.setattr(SummaryWriter, "flush", lambda self: times.append(None) or (full if len(times) == 2 else flush)(self))
        return "events.out.tfevents"
    append = Journal._append

    def appending(self, name, line):
        with monkeypatch.context() as patch:
            if name == what and SECOND_TICK[what] in line:
                patch.setattr("builtins.open", full)
            append(self, name, line)

    monkeypatch.setattr(Journal, "_append", appending)
    return what


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that never lacked room."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(dump(SETTINGS | {"outdir": str(folder)}))
    train("--config", folder / "tiny.yaml")
    return folder / "00000-tiny"


@pytest.mark.parametrize("what", ["checkpoint", "stats.jsonl", "log.txt", "TensorBoard"])
def test_a_run_ends_by_a_sentence_and_goes_on_once_there_is_room(config, tmp_path, monkeypatch, whole, what):
    with monkeypatch.context() as patch:
        name = fill_up(what, patch)
        sentence = refusal("--config", config)
    run = tmp_path / "runs" / "00000-tiny"
    assert sentence.startswith(f"Error: {run / name}: cannot be written: No space left on device; ") and "MiB free" in sentence
    checkpoint, = saved_checkpoints(run / "checkpoints")
    assert checkpoint.name == "0000000008" and not list(run.rglob("*.tmp"))
    if what in ("checkpoint", "stats.jsonl"):
        train("--resume", run)
        assert same(networks(run), networks(whole)) and len(statistics(run)) == len(statistics(whole))
    if what == "checkpoint":
        assert sentence.endswith(f"the checkpoint before it, {checkpoint}, is whole")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a disk of memory cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_disk_that_is_really_full(config, small_disk: Path, whole):
    """At whatever it is that first finds no room."""
    run = small_disk / "00000-tiny"
    sentences = set()
    for room in range(0, 400_000, 50_000):
        subprocess.run(["find", small_disk, "-mindepth", "1", "-delete"], check=True)
        train("--config", config, f"outdir={small_disk}", "train.kimg=0.008")
        with open(small_disk / "filling", "wb") as filling:
            filling.write(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize - room))
        sentence = refusal("--resume", run, "train.kimg=0.032")
        sentences.add(sentence.split(": ")[1].rpartition("/")[2])
        assert "No space left on device" in sentence and "MiB free" in sentence
        (small_disk / "filling").unlink()
        train("--resume", run, "train.kimg=0.032")
        assert same(networks(run), networks(whole))
    assert len(sentences) > 1, sentences
