import contextlib
import io
import json
import math
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import on_ranks

from fastdgl import journal
from fastdgl.engines import end_run
from fastdgl.journal import Journal, RunFolderError, Statistics, format_time, new_run_folder

ROOT = Path(__file__).resolve().parents[1]

# as scripts that plot other people's log.txt have it
TICK_LINE = re.compile(
    r"tick\s+(\d+)\s+kimg\s+([\d.]+)\s+time\s+(.*?)\s+sec/tick\s+([\d.]+)\s+sec/kimg\s+([\d.]+)"
    r"\s+maintenance\s+([\d.]+)\s+cpumem\s+([\d.]+)\s+gpumem\s+([\d.]+)"
)
SAMPLE = (
    "tick 1    kimg 20.0    time 1h 19m 08s  sec/tick 4711.9 sec/kimg 235.59 maintenance 7.7   cpumem 5.54  gpumem 10.88\n"
    "     reserved 20.23 augment 0.188"
)


class Clock:
    """Stands for time.perf_counter, and stands still until told."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(journal.time, "perf_counter", clock)
    return clock


@pytest.fixture
def quiet(monkeypatch):
    """A journal without TensorBoard, which takes a second to import."""
    monkeypatch.setattr(Journal, "_tensorboard", lambda self, start_images: None)


def stats_lines(folder):
    def no_such_word(word):
        raise ValueError(f"{word} is not JSON")

    return [json.loads(line, parse_constant=no_such_word) for line in (folder / "stats.jsonl").read_text().splitlines()]


# Run folders


def test_run_folders_are_numbered_in_turn(tmp_path):
    outdir = tmp_path / "runs" / "faces"
    assert new_run_folder(outdir, "ffhq-gpus8") == outdir / "00000-ffhq-gpus8"
    assert new_run_folder(outdir, "other").name == "00001-other"
    assert all(path.is_dir() for path in outdir.iterdir())


def test_the_number_continues_after_the_highest(tmp_path):
    for name in ["00003-a", "00017", "2024-results", "notes", "123456x"]:
        (tmp_path / name).mkdir()
    assert new_run_folder(tmp_path, "a").name == "00018-a"
    (tmp_path / "99999-a").mkdir()
    assert [new_run_folder(tmp_path, "a").name for _ in range(2)] == ["100000-a", "100001-a"]


@pytest.mark.parametrize("taken", ["00000-mine", "00000-theirs"], ids=["same-name", "other-name"])
def test_a_number_taken_meanwhile_is_not_taken_twice(tmp_path, monkeypatch, taken):
    look = journal.next_number

    def look_while_another_run_starts(outdir):
        number = look(outdir)
        (outdir / taken).mkdir(exist_ok=True)
        return number

    monkeypatch.setattr(journal, "next_number", look_while_another_run_starts)
    assert new_run_folder(tmp_path, "mine").name == "00001-mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [taken, "00001-mine"]


def test_runs_that_start_at_once_get_a_number_each(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda i: new_run_folder(tmp_path, f"run{i}"), range(24)))
    assert len({folder.name[:5] for folder in folders}) == 24
    assert sorted(folders) == sorted(tmp_path.iterdir())


def test_says_why_there_is_no_run_folder(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="file: it is a file, expected a folder"):
        new_run_folder(tmp_path / "file", "a")
    with pytest.raises(RunFolderError, match="cannot make a run folder in .*file/below: Not a directory"):
        new_run_folder(tmp_path / "file" / "below", "a")
    with pytest.raises(RunFolderError, match="a run cannot be called 'a/b'"):
        new_run_folder(tmp_path, "a/b")

    def denied(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(RunFolderError, match=f"^cannot make a run folder in {tmp_path}: Permission denied$"):
        new_run_folder(tmp_path, "a")


# Statistics


def test_mean_and_std_are_those_of_all_values_together():
    rng = np.random.RandomState(0)
    parts = [np.asarray(rng.randn(*shape) * 3 + 100) for shape in [(7,), (1,), (2, 3, 5), ()]]
    statistics = Statistics()
    for part in parts:
        statistics.record("x", torch.as_tensor(part))
    values = np.concatenate([np.ravel(part) for part in parts])
    stat = statistics.collect()["x"]
    assert stat["num"] == len(values)
    assert stat["mean"] == pytest.approx(values.mean(), rel=1e-12)
    assert stat["std"] == pytest.approx(values.std(), rel=1e-9)


def test_a_constant_has_no_spread():
    statistics = Statistics()
    # the mean of squares of 0.7, ten times, is below the square of the mean by rounding
    for _ in range(10):
        statistics.record("x", 0.7)
    assert statistics.collect()["x"] == pytest.approx({"num": 10, "mean": 0.7, "std": 0.0}, rel=1e-15, abs=1e-8)


@pytest.mark.parametrize("values", [torch.tensor([1, 2]), torch.tensor([True, False]), torch.ones(1).half(), 2, 0.1], ids=str)
def test_takes_any_kind_of_number(values):
    statistics = Statistics()
    statistics.record("x", values)
    # exactly: a Python float must not pass through fp32
    assert statistics.collect()["x"]["mean"] == np.mean(np.asarray(values), dtype=np.float64)


def test_collect_starts_afresh_and_leaves_out_what_received_nothing():
    statistics = Statistics()
    statistics.record("b", 1.0)
    statistics.record("a", 2.0)
    statistics.record("empty", torch.empty(0))
    assert list(statistics.collect()) == ["a", "b"]
    statistics.record("a", 5.0)
    assert statistics.collect() == {"a": {"num": 1, "mean": 5.0, "std": 0.0}}
    assert statistics.collect() == {}


def test_recording_keeps_no_graph():
    statistics = Statistics()
    x = torch.ones(3, requires_grad=True)
    statistics.record("x", x * 2)
    statistics.record("x", x * 4)
    assert not any(totals.requires_grad for totals in statistics._totals.values())
    assert statistics.collect()["x"]["mean"] == 3.0


def test_recording_mixes_with_inference_mode():
    statistics = Statistics()
    with torch.inference_mode():
        statistics.record("x", torch.ones(2))
    statistics.record("x", torch.zeros(2))
    assert statistics.collect()["x"]["mean"] == 0.5


def test_recording_never_waits_for_the_device():
    # a tensor on "meta" has no values: whoever asks for one, by item() or by a copy, fails
    statistics = Statistics()
    statistics.record("x", torch.empty(3, device="meta"))
    statistics.record("x", torch.empty(5, 2, device="meta", requires_grad=True))
    statistics.record("x", 1.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA, which alone reports waiting")
def test_recording_never_waits_for_cuda():
    statistics = Statistics("cuda")
    x = torch.arange(4.0, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        statistics.record("x", x)
        statistics.record("x", x[0])
        statistics.record("x", 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert statistics.collect()["x"] == pytest.approx({"num": 6, "mean": 7 / 6, "std": math.sqrt(15 / 6 - (7 / 6) ** 2)})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA, whose memory is reported")
def test_gpu_memory_is_the_peak_of_this_tick():
    written = Journal(None, total_images=100, device="cuda")
    torch.empty(2**30, dtype=torch.uint8, device="cuda")
    first, second = written.tick(10, 0, 0.0), written.tick(20, 1, 0.0)
    assert 1.0 <= first["Resources/peak_gpu_mem_gb"]["mean"] < 1.5
    assert second["Resources/peak_gpu_mem_gb"]["mean"] < 0.5


def record_on_one_of_two(run, out):
    rank = run.rank
    with open(out / f"{rank}.txt", "w") as printed, contextlib.redirect_stdout(printed):
        written = Journal(out / "run", total_images=10, rank=rank, progress=False)
        names = ["a", "b"] if rank == 0 else ["b", "a"]
        for name in names:
            written.record(name, values_of(rank, name))
        written.record("only/0" if rank == 0 else "only/1", 7.0)
        stats = written.tick(10, 0, 0.0)
        written.close()
    shared = {name: stat for name, stat in stats.items() if not name.startswith(("Progress", "Timing", "Resources"))}
    (out / f"{rank}.json").write_text(json.dumps(shared))
    end_run()


def values_of(rank, name):
    return torch.arange(3 + 4 * rank, dtype=torch.float64) ** 2 + (100 if name == "b" else 0)


def test_two_ranks_report_the_pooled_values_and_one_of_them_writes(tmp_path):
    (tmp_path / "run").mkdir()
    on_ranks(2, record_on_one_of_two, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second and list(first) == ["a", "b", "only/0", "only/1"]
    for name in ["a", "b"]:
        pooled = torch.cat([values_of(0, name), values_of(1, name)]).numpy()
        expected = {"num": len(pooled), "mean": pooled.mean(), "std": pooled.std()}
        assert first[name] == pytest.approx(expected, rel=1e-9)
    assert first["only/1"] == {"num": 1, "mean": 7.0, "std": 0.0}

    printed, nothing = ((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    assert nothing == "" and printed.startswith("tick") and printed.count("\n") == 2
    assert len((tmp_path / "run" / "log.txt").read_text().splitlines()) == 2
    assert stats_lines(tmp_path / "run")[0]["a"] == first["a"]
    assert len(list((tmp_path / "run").glob("events.out.tfevents*"))) == 1


# The journal


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (45.4, "45s"), (59.6, "1m 00s"), (185, "3m 05s"), (3599, "59m 59s"), (4748, "1h 19m 08s"),
        (86399, "23h 59m 59s"), (86400, "1d 00h 00m"), (2 * 86400 + 3 * 3600 + 12 * 60 + 59, "2d 03h 12m"),
    ],
)
def test_time_reads_as_people_say_it(seconds, text):
    assert format_time(seconds) == text


def test_the_tick_line_is_the_one_of_the_field(tmp_path, capsys, clock, quiet, monkeypatch):
    monkeypatch.setattr(journal, "peak_gpu_memory", lambda device: (10.88, 20.23))
    monkeypatch.setattr(journal.psutil.Process, "memory_info", lambda self: type("", (), {"rss": 5.54 * 2**30}))
    written = Journal(tmp_path, total_images=25_000_000, elapsed=28.4)
    clock.now += 4711.86 + 7.7
    written.tick(20_000, 1, 7.7, augment=0.188)
    line = capsys.readouterr().out
    assert line == SAMPLE + "\n"
    assert (tmp_path / "log.txt").read_text() == line
    assert TICK_LINE.search(line)


@pytest.mark.parametrize("tick, kimg, seconds, maintenance, memory", [
    (0, 0.064, 1.0, 0.0, 0.4), (99_999, 250_000, 9e6, 99_999.9, 999.99), (12_345, 25_000, 360_000, 1234.5, 139.9),
])
def test_no_line_of_a_tick_is_wider_than_120_columns(capsys, monkeypatch, clock, tick, kimg, seconds, maintenance, memory):
    monkeypatch.setattr(journal, "peak_gpu_memory", lambda device: (memory, memory))
    monkeypatch.setattr(journal.psutil.Process, "memory_info", lambda self: type("", (), {"rss": memory * 2**30}))
    written = Journal(None, total_images=10**9, elapsed=seconds)
    written.record("Loss/G/loss", -12.345)
    written.record("Loss/D/loss", 123.456)
    clock.now += 99_999.9 + maintenance
    written.tick(round(kimg * 1000), tick, maintenance)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 120
    words = ["tick", "kimg", "time", "sec/tick", "sec/kimg", "maintenance", "cpumem", "gpumem", "reserved", "augment", "G/loss", "D/loss"]
    assert [word for word in said.split() if word in words] == words
    assert TICK_LINE.match(said.splitlines()[0])


def test_the_time_to_go_is_said_after_the_first_whole_tick(capsys, clock):
    written = Journal(None, total_images=100_000)
    for tick, (seen, seconds) in enumerate([(64, 60), (4064, 144), (8064, 144)]):
        clock.now += seconds
        stats = written.tick(seen, tick, 0.0)
        # 36 seconds a kimg
        assert ("hours) to go" in capsys.readouterr().out) == (tick == 1)
        if tick:
            assert stats["Timing/hours_left"]["mean"] == pytest.approx((100 - seen / 1000) * 36 / 3600)


def test_the_bar_names_the_stage(monkeypatch):
    seen = []
    monkeypatch.setattr(journal, "tqdm", lambda **options: seen.append(options["desc"]))
    for stage in ("guided 3/3", "student 1/2", ""):
        Journal(None, total_images=10, stage=stage)
    assert seen == ["guided 3/3", "student 1/2", None]


def test_losses_close_the_tick_line(capsys):
    written = Journal(None, total_images=10)
    written.record("Loss/D/loss", torch.tensor([0.986, 0.988]))
    written.record("Loss/G/loss", 1.234)
    written.record("Loss/r1_penalty", 1.0)
    written.tick(10, 0, 0.0)
    line = capsys.readouterr().out
    assert line.endswith(" augment 0.000 G/loss 1.234 D/loss 0.987\n")
    assert TICK_LINE.match(line)[1] == "0"


def test_maintenance_is_no_part_of_the_training_time(clock):
    written = Journal(None, total_images=100_000, start_images=10_000)
    clock.now += 50.0
    first = written.tick(14_000, 3, 10.0)
    clock.now += 90.0
    second = written.tick(16_000, 4, 30.0)
    assert (first["Timing/sec_per_tick"]["mean"], first["Timing/sec_per_kimg"]["mean"]) == (40.0, 10.0)
    assert (second["Timing/sec_per_tick"]["mean"], second["Timing/sec_per_kimg"]["mean"]) == (60.0, 30.0)
    assert (second["Timing/maintenance_sec"]["mean"], second["Timing/total_sec"]["mean"]) == (30.0, 140.0)


def test_a_tick_without_images_and_more_maintenance_than_time_still_parses(capsys, clock):
    written = Journal(None, total_images=100)
    clock.now += 1.0
    written.tick(0, 0, 2.0)
    assert TICK_LINE.match(capsys.readouterr().out)[5] == "0.00"


def test_each_tick_is_one_object_in_stats_jsonl(tmp_path, monkeypatch, clock, quiet):
    monkeypatch.setattr(journal.time, "time", lambda: 1_700_000_000.5)
    written = Journal(tmp_path, total_images=100_000)
    written.record("Loss/scores/fake", torch.tensor([1.0, 3.0]))
    clock.now += 8.0
    returned = written.tick(4000, 1, 0.0, augment=0.25)
    (line,) = stats_lines(tmp_path)
    assert line.pop("timestamp") == 1_700_000_000.5
    assert line == returned
    assert line["Loss/scores/fake"] == {"num": 2, "mean": 2.0, "std": 1.0}
    assert line["Timing/sec_per_kimg"] == {"num": 1, "mean": 2.0, "std": 0.0}
    assert {name: line[name]["mean"] for name in line if name.startswith("Progress")} == {
        "Progress/tick": 1, "Progress/kimg": 4.0, "Progress/augment": 0.25,
    }
    assert {name for name in line if name.startswith(("Timing", "Resources"))} == {
        "Timing/sec_per_tick", "Timing/sec_per_kimg", "Timing/total_sec", "Timing/maintenance_sec", "Timing/hours_left",
        "Resources/cpu_mem_gb", "Resources/peak_gpu_mem_gb", "Resources/peak_gpu_mem_reserved_gb",
    }
    assert 0.01 < line["Resources/cpu_mem_gb"]["mean"] < 100


def test_what_is_not_a_number_is_null_in_json_and_nan_in_print(tmp_path, capsys, quiet):
    written = Journal(tmp_path, total_images=10)
    written.record("Loss/G/loss", torch.tensor([1.0, math.nan]))
    written.record("Loss/D/loss", math.inf)
    returned = written.tick(10, 0, 0.0)
    (line,) = stats_lines(tmp_path)
    assert line["Loss/G/loss"] == {"num": 2, "mean": None, "std": None}
    assert line["Loss/D/loss"]["mean"] is None
    assert math.isnan(returned["Loss/G/loss"]["mean"])
    assert capsys.readouterr().out.endswith("G/loss nan D/loss inf\n")


def test_a_resumed_run_continues_the_files_and_the_time(tmp_path, clock, quiet):
    first = Journal(tmp_path, total_images=100_000)
    first.message("first")
    clock.now += 60.0
    elapsed = first.tick(4000, 0, 0.0)["Timing/total_sec"]["mean"]
    first.close()
    clock.now += 5000.0
    second = Journal(tmp_path, total_images=100_000, start_images=4000, elapsed=elapsed)
    clock.now += 60.0
    second.tick(8000, 1, 0.0)
    second.close()
    log = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split()[0] for line in log] == ["first", "tick", "reserved", "tick", "reserved"]
    assert TICK_LINE.match(log[3])[3] == "2m 00s"
    assert TICK_LINE.match(log[3])[5] == "15.00"
    assert [line["Progress/kimg"]["mean"] for line in stats_lines(tmp_path)] == [4.0, 8.0]


def test_other_ranks_neither_print_nor_write(tmp_path, capsys):
    written = Journal(tmp_path, total_images=100, rank=1)
    written.message("text")
    written.write_options("training_options.json", {})
    written.record("x", 1.0)
    written.advance(10)
    assert written.tick(10, 0, 0.0)["x"]["mean"] == 1.0
    written.close()
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")


def test_without_a_folder_it_only_prints(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = Journal(None, total_images=100)
    written.message("text")
    written.write_options("training_options.json", {})
    written.tick(10, 0, 0.0)
    written.close()
    assert not list(tmp_path.iterdir())
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_options_are_written_whole_or_not_at_all(tmp_path, quiet):
    written = Journal(tmp_path, total_images=100)
    written.write_options("training_options.json", {"batch_size": 16})
    with (tmp_path / "training_options.json").open() as reader:
        written.write_options("training_options.json", {"batch_size": 32, "data": "ffhq.zip"})
        assert json.load(reader) == {"batch_size": 16}
    with pytest.raises(TypeError):
        written.write_options("training_options.json", {"batch_size": object()})
    assert json.loads((tmp_path / "training_options.json").read_text()) == {"batch_size": 32, "data": "ffhq.zip"}
    assert [path.name for path in tmp_path.iterdir()] == ["training_options.json"]


# The bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_shows_speed_and_time_left_and_gives_way_to_the_tick_line(monkeypatch):
    # one terminal for both, as a person has it
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    written = Journal(None, total_images=1000, start_images=200)
    written.advance(300)
    written.tick(500, 0, 0.0)
    written.close()
    frames = re.split(r"[\r\n]", terminal.getvalue())
    assert any(re.search(r"20%.*200/1\.00k.*img/s", frame) for frame in frames)
    assert any(re.search(r"50%.*500/1\.00k.*<.*img/s", frame) for frame in frames)
    # the bar is wiped before, and the line ends before it comes back
    line = next(i for i, frame in enumerate(frames) if frame.startswith("tick"))
    assert frames[line - 1].strip() == ""
    assert TICK_LINE.match(frames[line]) and "img/s" not in frames[line]


@pytest.mark.parametrize(
    ("stderr", "settings"),
    [(io.StringIO, {}), (Terminal, {"progress": False}), (Terminal, {"rank": 1})],
    ids=["no-terminal", "not-wanted", "rank-1"],
)
def test_there_is_no_bar(monkeypatch, stderr, settings):
    stream = stderr()
    monkeypatch.setattr(sys, "stderr", stream)
    written = Journal(None, total_images=1000, **settings)
    written.advance(300)
    written.close()
    assert stream.getvalue() == ""


# what comes after a tick

def test_what_is_computed_after_a_tick_joins_its_line(tmp_path, quiet):
    written = Journal(tmp_path, total_images=10_000)
    for tick, seen in enumerate([4096, 8192]):
        written.tick(seen, tick, 0.0)
        written.amend(seen, {"Metrics/fid50k_full": 10.0 - tick, "Metrics/is50k_mean": math.nan})
    lines = stats_lines(tmp_path)
    assert [line["Progress/tick"]["mean"] for line in lines] == [0, 1]
    assert [line["Metrics/fid50k_full"] for line in lines] == [{"num": 1, "mean": 10.0, "std": 0.0}, {"num": 1, "mean": 9.0, "std": 0.0}]
    assert lines[0]["Metrics/is50k_mean"]["mean"] is None


def test_where_the_line_of_the_tick_is_gone_another_says_when(tmp_path, quiet):
    written = Journal(tmp_path, total_images=10_000, start_images=8192)
    written.amend(8192, {"Metrics/fid50k_full": 9.0})
    line, = stats_lines(tmp_path)
    assert line["Progress/kimg"]["mean"] == 8.192 and line["Metrics/fid50k_full"]["mean"] == 9.0


# TensorBoard


def test_scalars_reach_tensorboard_by_images_seen(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written = Journal(tmp_path, total_images=10_000)
    for tick, seen in enumerate([64, 4096, 8192]):
        written.record("Loss/G/loss", float(tick))
        written.tick(seen, tick, 0.0)
    # resumed at 4096: what came after is shown once, from the second run
    resumed = Journal(tmp_path, total_images=10_000, start_images=4096)
    resumed.record("Loss/G/loss", 5.0)
    resumed.tick(8192, 2, 0.0)
    written.close()
    resumed.close()

    events = EventAccumulator(str(tmp_path)).Reload()
    points = events.Scalars("Loss/G/loss")
    assert [(point.step, point.value) for point in points] == [(64, 0.0), (4096, 1.0), (8192, 5.0)]
    times = [line["timestamp"] for line in stats_lines(tmp_path)]
    assert [point.wall_time for point in points] == times
    assert "Progress/kimg" in events.Tags()["scalars"]


def test_what_is_computed_after_a_tick_reaches_the_same_step(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written = Journal(tmp_path, total_images=10_000)
    written.tick(4096, 0, 0.0)
    written.amend(4096, {"Metrics/fid50k_full": 5.5})
    written.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(point.step, point.value) for point in events.Scalars("Metrics/fid50k_full")] == [(4096, 5.5)]


def test_says_once_that_tensorboard_is_missing_and_goes_on(tmp_path, capsys, monkeypatch):
    # None in sys.modules is how Python is told that a module is not there
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    written = Journal(tmp_path, total_images=100)
    written.tick(10, 0, 0.0)
    written.tick(20, 1, 0.0)
    written.close()
    assert capsys.readouterr().out.count("TensorBoard is not installed") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "stats.jsonl"]


def test_importing_the_module_does_not_import_tensorboard():
    ask = "import sys, fastdgl.journal; print([m for m in sys.modules if 'tensorboard' in m])"
    answer = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
