"""Runs that are killed, again and again, end as if nobody had touched them."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from fastdgl.checkpoints import open_snapshot, saved_checkpoints

from ranks import fork, free_port
from tiny_runs import TINY, dump, networks, same, statistics

KILLS = int(os.environ.get("FASTDGL_KILLS", "50"))
SETTINGS = TINY | {"train": TINY["train"] | {"kimg": 0.24, "tick_kimg": 0.016, "image_ticks": 4, "snapshot_ticks": 0, "checkpoint_ticks": 1}}
# ranks, and what carries the run
WAYS = {"one-process": (1, {"kind": "torch"}), "two-ranks": (2, {"kind": "deepspeed", "zero_stage": 2})}
CHECKPOINT = {"G.pt", "D.pt", "state.pt"}


def run_main(rank: int, world_size: int, port: int, log: Path, arguments: list[str], killed_at: str | None) -> None:
    """What a launcher starts: train.py as one of the ranks, which says in `log` how it ended."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 1)
    os.dup2(1, 2)
    if killed_at is not None and rank == 0:
        PLACES[killed_at]()
    from fastdgl.train import main
    main(arguments)


def kill_before(module, name: str, when) -> None:
    """Have this process killed where it calls `module.name` with arguments for which `when` is true."""
    function = getattr(module, name)

    def killing(*arguments, **options):
        if when(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    setattr(module, name, killing)


def second(folder: Path) -> bool:
    """Whether this is of the second checkpoint of a run, after 24 images."""
    return Path(folder).name.startswith("0000000024")


PLACES = {
    "in-the-middle-of-a-save": lambda: kill_before(torch, "save", lambda state, file: second(Path(file.name).parent) and "/D.pt" in file.name),
    "before-the-rename": lambda: kill_before(os, "replace", lambda source, target: second(target)),
    "after-the-rename": lambda: kill_before(shutil, "rmtree", lambda folder, *options: Path(folder).name == "0000000008.tmp"),
}


LEFT = {"in-the-middle-of-a-save": "0000000024.tmp", "before-the-rename": "0000000024.tmp", "after-the-rename": "0000000008.tmp"}


class Runs:
    """Runs of one config on so many ranks, in processes of their own."""

    def __init__(self, folder: Path, way: str, **changes):
        self.folder, (self.world_size, engine) = folder, WAYS[way]
        self.config, self.log = folder / "tiny.yaml", folder / "log"
        self.config.write_text(dump(SETTINGS | {"engine": engine, "outdir": str(folder / "runs")} | changes))

    def start(self, run: Path | None = None, killed_at: str | None = None) -> list:
        arguments = ["--config", str(self.config)] if run is None else ["--resume", str(run)]
        port = free_port()
        return [fork(run_main, rank, self.world_size, port, self.log, arguments, killed_at) for rank in range(self.world_size)]

    def finish(self, run: Path | None = None) -> Path:
        processes = self.start(run)
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * self.world_size, self.log.read_text()[-4000:]
        return run or self.newest()

    def folders(self) -> set[Path]:
        return set((self.folder / "runs").glob("*"))

    def newest(self) -> Path:
        return max(self.folders())


def checked(run: Path | None) -> Path | None:
    """The run, if it has a checkpoint to go on from, of which the newest is whole."""
    checkpoints = saved_checkpoints(run / "checkpoints") if run is not None else []
    if not checkpoints:
        return None
    assert {file.name for file in checkpoints[-1].iterdir()} == CHECKPOINT
    for file in checkpoints[-1].iterdir():
        torch.load(file, weights_only=True)
    return run


def losses(run: Path) -> list[dict]:
    return [{name: stat for name, stat in tick.items() if name.startswith(("Loss/", "Progress/"))} for tick in statistics(run)]


def assert_as_if_untouched(run: Path, whole: Path) -> None:
    assert open_snapshot(run).seen == open_snapshot(whole).seen
    assert same(networks(run), networks(whole))
    # each tick is told once, and as it was
    assert losses(run) == losses(whole)
    assert not list(run.rglob("*.tmp"))


SHORT = {"train": SETTINGS["train"] | {"kimg": 0.04, "image_ticks": 0, "keep_checkpoints": 1}}


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("untouched"), "one-process", **SHORT).finish()


@pytest.mark.parametrize("place", PLACES)
def test_a_run_killed_at_its_most_delicate_goes_on(tmp_path, untouched, place):
    runs = Runs(tmp_path, "one-process", **SHORT)
    process, = runs.start(killed_at=place)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    run = checked(runs.newest())
    assert (run / "checkpoints" / LEFT[place]).exists()
    assert saved_checkpoints(run / "checkpoints")[-1].name == ("0000000024" if place == "after-the-rename" else "0000000008")
    assert_as_if_untouched(runs.finish(run), untouched)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_runs_killed_at_random_end_as_if_untouched(tmp_path, way):
    runs = Runs(tmp_path, way)
    began = time.perf_counter()
    whole = runs.finish()
    # so that most kills come in training and saving, and some before and after
    longest = (time.perf_counter() - began) * 0.6
    random.seed(0)
    killed = finished = resumed = 0
    run = None
    while killed < KILLS or run is not None:
        resumed += run is not None
        before = runs.folders()
        processes = runs.start(run)
        deadline = time.monotonic() + (random.uniform(0, longest) if killed < KILLS else 600)
        while time.monotonic() < deadline and any(process.is_alive() for process in processes):
            time.sleep(0.01)
        alive = [process for process in processes if process.is_alive()]
        # a launcher kills them one after the other
        random.shuffle(alive)
        for process in alive:
            process.kill()
        for process in processes:
            process.join()
        run = run or max(runs.folders() - before, default=None)
        codes = {process.exitcode for process in processes}
        if codes == {0}:
            finished += 1
            assert_as_if_untouched(run, whole)
            run = None
            continue
        # of the ranks that lose the others to the kill, some end by an error
        assert alive and codes <= {-signal.SIGKILL, 0, 1}, runs.log.read_text()[-4000:]
        killed += 1
        run = checked(run)
    print(f"{way}: {killed} kills, {resumed} resumes, {finished} runs finished, {time.perf_counter() - began:.0f} s")
    assert finished
