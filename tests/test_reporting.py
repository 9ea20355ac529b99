"""`fastdgl report`: that its numbers are those of the networks, what it says of what is missing, and that the page stands alone."""

import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny_networks import BIGGAN, STYLEGAN2, save
from tiny_runs import of_launchers

from fastdgl.checkpoints import BEST_NAME, keep_as_best, open_snapshot
from fastdgl.cli import main
from fastdgl.drawing import latents
from fastdgl.models.cost import macs, parameter_count
from fastdgl.reporting import charts, command, measurements, sections
from fastdgl.reporting.document import Cell, Document, Section, Table, Text
from fastdgl.samples import draw

NAME = "network-snapshot-000001.safetensors"
STUDENT = STYLEGAN2 | {"generator_fraction": 0.5}
HOSTILE = "</style></script><script>alert(1)</script><img src=x onerror=alert(1)>"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Snapshots of tiny networks, each in a folder of its own, which no test changes."""
    folder = tmp_path_factory.mktemp("networks")
    save(folder / "teacher" / NAME, STYLEGAN2, 0, None)
    save(folder / "student" / NAME, STUDENT, 0, None)
    save(folder / "short" / NAME, STUDENT | {"z_dim": 4}, 0, None)
    save(folder / "classes" / NAME, STUDENT, 3, ("cat", "dog", "eel"))
    save(folder / "reordered" / NAME, STUDENT, 3, ("dog", "cat", "eel"))
    save(folder / "biggan" / NAME, BIGGAN, 3, None)
    return folder


@pytest.fixture
def runs(networks, tmp_path):
    """Copies of teacher and student, beside which files can be put."""
    for name in ("teacher", "student"):
        shutil.copytree(networks / name, tmp_path / "runs" / name)
    return tmp_path / "runs"


def report(folder, out, *arguments, teacher="teacher", students=("student",)):
    chosen = [argument for student in students for argument in ("--student", str(folder / student))]
    result = CliRunner().invoke(main, ["report", "--teacher", str(folder / teacher), *chosen, "--outdir", str(out), "--seeds", "0-2",
                                       *([] if "--rounds" in arguments else ["--rounds", "0"]), *arguments])
    assert isinstance(result.exception, (SystemExit, type(None))), result.exception
    return result


def pages(folder, out, *arguments, **networks):
    """The text of the HTML page, its source, and the Markdown."""
    result = report(folder, out, *arguments, **networks)
    assert result.exit_code == 0, result.output
    source = (out / "report.html").read_text(encoding="utf-8")
    return Page(source), source, (out / "report.md").read_text(encoding="utf-8")


class Page(HTMLParser):
    """What a browser would make of a page: its elements, its text, the cells of its tables by the name of their row."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.words, self.rows, self.inside = [], [], {}, []
        self.feed(source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside.append(tag)
        if tag == "tr":
            self.row = []
        if tag in ("th", "td"):
            self.row.append([])

    def handle_endtag(self, tag):
        if tag == "tr":
            self.rows[self.row[0][0] if self.row[0] else ""] = self.row[1:]
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if self.inside and self.inside[-1] != "style":
            self.words.append(data)
        if {"th", "td"} & set(self.inside):
            self.row[-1].append(data)


def metric_line(**changes):
    line = {"results": {"fid1k_full": 12.0}, "metric": "fid1k_full", "snapshot_pkl": NAME, "timestamp": 1.0, "detector": "digits.pt",
            "detector_sha256": "ab" * 32, "resizing": "none", "data": "digits", "num_real": 5000, "num_fake": 1000}
    return json.dumps(line | changes) + "\n"


def write_metric(folder, *lines, name="fid1k_full"):
    (folder / f"metric-{name}.jsonl").write_text("".join(lines))


def statistics(kimg, **means):
    line = {"Progress/kimg": {"num": 1, "mean": kimg, "std": 0.0}, "Progress/tick": {"num": 1, "mean": kimg, "std": 0.0}}
    return json.dumps(line | {name.replace("_", "/"): {"num": 1, "mean": mean, "std": 0.0} for name, mean in means.items()}) + "\n"


def test_the_page_needs_no_other_file_and_runs_nothing(runs, tmp_path):
    (runs / "student" / "stats.jsonl").write_text(statistics(0, Loss_G_loss=9.0) + statistics(1, Loss_G_loss=1.0) + statistics(2, Loss_G_loss=2.0))
    page, source, _ = pages(runs, tmp_path / "out")
    tags = [tag for tag, _ in page.elements]
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & set(tags)
    assert "svg" in tags and tags.count("img") == 2
    for _, attributes in page.elements:
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        assert not [name for name in attributes if name in ("href", "srcset", "xlink:href") or name.startswith("on")]
    assert "://" not in source and "url(" not in source and "@import" not in source
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in [attributes for tag, attributes in page.elements if tag == "meta"]
    assert "prefers-color-scheme:dark" in source and "@media print" in source


def test_numbers_are_those_of_the_networks(networks, tmp_path):
    page, _, _ = pages(networks, tmp_path / "out")
    snapshots = [open_snapshot(networks / name) for name in ("teacher", "student")]
    G = [snapshot.network("G_ema") for snapshot in snapshots]
    z, c = torch.empty(1, 8), torch.empty(1, 0)
    parameters, products = [parameter_count(g) for g in G], [macs(g, z, c) for g in G]
    assert [cell[0] for cell in page.rows["parameters of G"]] == [f"{count:,}" for count in parameters]
    assert [cell[0] for cell in page.rows["MACs of G"]] == [f"{count / 1e6:,.2f} M" for count in products]
    assert page.rows["parameters of G"][1][1] == f"{parameters[1] / parameters[0]:.2f} × teacher"
    assert page.rows["MACs of G"][1][1] == f"{products[1] / products[0]:.2f} × teacher"
    assert [cell[0] for cell in page.rows["snapshot on disk"]] == [f"{(networks / name / NAME).stat().st_size / 1e6:.2f} MB" for name in ("teacher", "student")]
    held = [sum(t.nbytes for t in g.state_dict().values()) for g in G]
    assert [cell[0] for cell in page.rows["averaged generator"]] == [f"{count / 1e6:.2f} MB" for count in held]
    assert f"has {parameters[1] / parameters[0]:.0%} of the teacher’s parameters and needs {products[1] / products[0]:.0%}" in page.text


def test_both_pages_say_the_same(runs, tmp_path):
    write_metric(runs / "teacher", metric_line())
    page, _, markdown = pages(runs, tmp_path / "out")
    for name, cells in page.rows.items():
        line = next(line for line in markdown.splitlines() if line.startswith(f"| {name}"))
        for cell in cells:
            assert cell[0] in line
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", markdown):
        content = (tmp_path / "out" / name).read_bytes()
        assert content.startswith(b"\x89PNG") or ElementTree.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
    assert "| --- | --- | --- |" in markdown
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.html", "report.md", "ratios.svg", "samples-0-teacher.png", "samples-0-student.png"}


@torch.no_grad()
def test_images_are_those_of_the_seeds(networks, tmp_path):
    pages(networks, tmp_path / "out", "--seeds", "4,0-8", "--trunc", "0.7")
    G = open_snapshot(networks / "student").network("G_ema")
    expected = draw(G, latents(G, [4, *range(9)], 0.7), torch.zeros(10, 0), 0.7)
    for row, seeds in (("0", slice(0, 8)), ("1", slice(8, 10))):
        sheet = np.asarray(Image.open(tmp_path / "out" / f"samples-{row}-student.png"))
        images = sheet.reshape(16, 8, 16, 3).swapaxes(0, 1)
        assert np.array_equal(images[:len(expected[seeds])], expected[seeds])


def test_classes_are_drawn_in_turn_or_as_they_are_chosen(networks, tmp_path):
    page, _, _ = pages(networks, tmp_path / "all", teacher="classes", students=["classes"])
    assert "student: seeds 0, 1, 2; classes cat, dog, eel" in page.text and "the same z and class" in page.text
    page, _, _ = pages(networks, tmp_path / "one", "--class", "eel", teacher="classes", students=["classes"])
    assert "student: seeds 0, 1, 2; classes eel, eel, eel" in page.text


@pytest.mark.parametrize(("teacher", "student", "options", "sentence"), [
    ("teacher", "short", [], "draws from z of 8 numbers and the student from z of 4"),
    ("teacher", "classes", [], "The teacher has no classes and the student 3"),
    ("classes", "reordered", [], "class 0 is 'cat' to the teacher and 'dog' to the student"),
    ("classes", "biggan", [], "draws images of 16x16, RGB, 3 classes, and the student of 32x32, RGB, 3 classes"),
    ("classes", "biggan", ["--trunc", "0.5"], "do not draw from the same z"),
])
def test_what_makes_a_comparison_unequal_is_said(networks, tmp_path, teacher, student, options, sentence):
    page, _, markdown = pages(networks, tmp_path / "out", *options, teacher=teacher, students=[student])
    assert sentence in page.text and sentence in markdown
    assert "In each column all networks draw from the same z" not in page.text


def test_missing_metrics_and_curves_are_said(runs, tmp_path):
    write_metric(runs / "teacher", metric_line(snapshot_pkl="network-snapshot-000009.safetensors"))
    page, _, _ = pages(runs, tmp_path / "out")
    assert "The teacher was not evaluated; 1 lines beside it are of other snapshots." in page.text
    assert f"fastdgl evaluate --network {runs / 'student' / NAME} --data DATA" in page.text
    assert "What that cost in quality is not known: the teacher and the student were not evaluated." in page.text
    assert "No curves of the teacher:" in page.text and "No curves of the student:" in page.text
    assert "Not measured: the report was asked for with --rounds 0." in page.text


def test_comparable_numbers_share_a_row_and_the_last_counts(runs, tmp_path):
    write_metric(runs / "teacher", metric_line())
    write_metric(runs / "student", metric_line(results={"fid1k_full": 15.5}, timestamp=9.0), metric_line(results={"fid1k_full": 99.0}, timestamp=2.0))
    page, _, _ = pages(runs, tmp_path / "out")
    assert [cell[0] for cell in page.rows["fid1k_full"]] == ["12", "15.5"]
    assert page.rows["fid1k_full"][1][1] == "teacher +3.5"
    assert "fid1k_full goes from 12 to 15.5 (lower is better)." in page.text
    assert "Not comparable" not in page.text


@pytest.mark.parametrize(("change", "what"), [
    ({"detector_sha256": "cd" * 32}, "detector"), ({"resizing": "to 299"}, "resizing"), ({"data": "other"}, "real images"),
    ({"num_real": 4999}, "number of real images"), ({"num_fake": 999}, "number of fakes"), ({"detector_sha256": None}, "detector"),
])
def test_numbers_made_otherwise_are_flagged_and_kept_apart(runs, tmp_path, change, what):
    write_metric(runs / "teacher", metric_line())
    write_metric(runs / "student", metric_line(results={"fid1k_full": 15.5}, **change))
    _, source, markdown = pages(runs, tmp_path / "out")
    assert f"Not comparable: fid1k_full of the teacher and of the student. Not the same, or not said: {what}." in Page(source).text
    rows = [line for line in markdown.splitlines() if line.startswith("| fid1k_full")]
    assert len(rows) == 2 and "| 12 | – |" in rows[0] and "| – | 15.5 |" in rows[1]
    assert "cannot be compared" in Page(source).text and "goes from" not in source


def test_lines_of_unknown_origin_are_never_compared_though_equal(runs, tmp_path):
    line = json.dumps({"results": {"fid50k_full": 3.0}, "metric": "fid50k_full", "snapshot_pkl": NAME, "timestamp": 1}) + "\n"
    for name in ("teacher", "student"):
        write_metric(runs / name, line, name="fid50k_full")
    page, _, _ = pages(runs, tmp_path / "out")
    assert "Not comparable: fid50k_full" in page.text and "goes from" not in page.text


def test_the_best_snapshot_of_a_run_has_the_metrics_of_that_it_is_a_copy_of(runs, tmp_path):
    keep_as_best(runs / "student" / NAME, {"number": "fid1k_full", "value": 15.5})
    (runs / "student" / NAME).unlink()
    write_metric(runs / "teacher", metric_line())
    write_metric(runs / "student", metric_line(results={"fid1k_full": 15.5}))
    page, _, _ = pages(runs, tmp_path / "out", students=[f"student/{BEST_NAME}"])
    assert [cell[0] for cell in page.rows["fid1k_full"]] == ["12", "15.5"] and "student, 1 kimg" in page.text


def test_damaged_lines_are_counted_and_left_out(runs, tmp_path):
    write_metric(runs / "student", metric_line(), '{"results": {"fid', "\n[1]\n", metric_line(results={"fid1k_full": "low"}), '{"results": {}}\n')
    (runs / "student" / "stats.jsonl").write_text(statistics(1, Loss_G_loss=1.0) + "\xff\n[]\n" + '{"Progress/kimg": 3}\n' + statistics(4, Loss_G_loss=2.0) + '{"Pro')
    page, _, _ = pages(runs, tmp_path / "out")
    assert "4 lines in metric-*.jsonl beside the student could not be read" in page.text
    assert "Loss of G" in page.text


def test_curves_have_gaps_where_a_run_had_no_number(runs, tmp_path):
    lines = [statistics(0, Loss_G_loss=50.0), *(statistics(kimg, Loss_G_loss=value, Metrics_fid1k=5.0)
                                                for kimg, value in enumerate([1.0, 2.0, None, 3.0, 2.5], start=1))]
    (runs / "teacher" / "stats.jsonl").write_text("".join(lines))
    pages(runs, tmp_path / "out")
    loss = (tmp_path / "out" / "curve-0.svg").read_text()
    path = re.search(r'class="line stroke0" d="(M[\d. ]+L[^"]+)"', loss)[1]
    assert path.count("M") == 2 and path.count("L") == 2
    assert "50" not in re.findall(r">([\d.-]+)</text>", loss)
    assert "fid1k" in (tmp_path / "out" / "report.md").read_text()


def test_hostile_names_are_shown_as_text(networks, tmp_path):
    folder = tmp_path / "runs"
    for name in ("teacher", "student"):
        shutil.copytree(networks / name, folder / name)
    folder = folder.rename(tmp_path / "a'\"><script>x&`|*[b](javascript:1)\u202e\n<b>")
    for name in ("teacher", "student"):
        (folder / name / "stats.jsonl").write_text("".join(statistics(kimg, Loss_G_loss=1.0) for kimg in (1, 2)).replace("Loss/G/loss", "Metrics/" + HOSTILE))
        write_metric(folder / name, metric_line(results={HOSTILE: 1.0}, detector=HOSTILE, data=HOSTILE, resizing=HOSTILE), name="x")
    page, source, markdown = pages(folder, tmp_path / "out")
    assert "\u202e" not in source + markdown
    assert not [tag for tag, _ in page.elements if tag == "script"]
    assert [attributes["src"][:5] for tag, attributes in page.elements if tag == "img"] == ["data:"] * 2
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert HOSTILE in page.text
    assert "<script" not in markdown and "<img" not in markdown and "](javascript" not in markdown.replace("\\]", "")
    for file in (tmp_path / "out").glob("*.svg"):
        assert not [element for element in ElementTree.parse(file).iter() if element.tag.endswith("script")]


def test_text_of_any_kind_is_shown_as_it_is():
    table = Table("a < b", [Cell("$x"), Cell("|", ["<i>"])], [[Cell("a|b"), Cell("`c`")]])
    document = Document("$title & <b>", "${body}", [Text("*no*")], [Section("s", [table, Text("[a](b)", warning=True)])], "now")
    page = Page(document.as_html())
    for text in ("$title & <b>", "${body}", "*no*", "[a](b)", "a < b", "<i>"):
        assert text in page.text
    assert "a\\|b" in document.as_markdown() and "&lt;i&gt;" in document.as_markdown() and "**\\[a\\](b)**" in document.as_markdown()


@pytest.mark.parametrize(("arguments", "students", "sentence"), [
    (["--rounds", "1"], ["student"], "of one round there is no spread"),
    (["--seeds", "0-64"], ["student"], "asks for 65 images of each network; expected at most 64"),
    ([], ["student"] * 5, "5 students are given; expected at most 4"),
    (["--class", "3"], ["student"], "--class 3: the teacher has no classes"),
    ([], ["nowhere"], "no such file"),
])
def test_a_wrong_call_is_told_what_was_expected(networks, tmp_path, arguments, students, sentence):
    result = report(networks, tmp_path / "out", *arguments, students=students)
    assert result.exit_code != 0 and sentence in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_to_is_named(networks, tmp_path):
    (tmp_path / "out").write_text("")
    result = report(networks, tmp_path / "out")
    assert result.exit_code == 1 and f"{tmp_path / 'out'}: File exists; no report was written" in result.output


class Clocked(torch.nn.Module):
    """Draws nothing, and takes seconds of a clock that the test owns."""

    z_dim, c_dim = 2, 0

    def __init__(self, name, seconds, calls, clock):
        super().__init__()
        self.name, self.seconds, self.calls, self.clock = name, seconds, calls, clock

    def sample_z(self, seed):
        return torch.zeros(1, 2)

    def sample_images(self, z, c):
        self.calls.append(self.name)
        self.clock[0] += self.seconds + len(self.calls) * 1e-6


def test_networks_draw_in_turns_after_a_warm_up():
    calls, clock = [], [0.0]
    networks = [Clocked("a", 4.0, calls, clock), Clocked("b", 1.0, calls, clock)]
    a, b = measurements.latencies(networks, 3, CPU, 4, clock=lambda: clock[0])
    assert calls == ["a", "b"] * measurements.WARM_UPS + ["a", "b", "b", "a"] * 2
    assert a.median == pytest.approx(4, abs=1e-3) and b.median == pytest.approx(1, abs=1e-3)
    assert a.low < a.median < a.high and not a.as_spread_as(b)


def test_time_and_memory_are_shown_with_their_ratio(networks, tmp_path, monkeypatch):
    def peak(path, batch, device):
        if path.parent.name == "short":
            raise measurements.DoesNotFit("the process that drew was ended")
        return {"teacher": 8_000_000, "student": 2_000_000}[path.parent.name] * batch

    monkeypatch.setattr(command, "peak_memory", peak)
    monkeypatch.setattr(command, "latencies", lambda networks, batch, device, rounds: [
        measurements.Latency(batch / (i + 1), batch / (i + 1) - 0.01, batch / (i + 1) + 0.01) for i in range(len(networks))])
    page, _, _ = pages(networks, tmp_path / "out", "--rounds", "7", students=["student", "short"])
    assert [cell[0] for cell in page.rows["time of 16 images"]] == ["16.00 s", "8,000.0 ms", "not measured"]
    assert page.rows["time of 16 images"][1][1:] == ["0.50 × teacher", "7,990.0 ms to 8,010.0 ms"]
    assert page.rows["memory for 1 image"][1] == ["2.00 MB", "0.25 × teacher"]
    assert "Memory of student 2 at batch 16 was not measured: the process that drew was ended." in page.text
    assert "takes 50% of the time for 1 image, and 50% of the time for 16 images." in page.text
    assert f"PyTorch {torch.__version__}" in page.text and "median of 7" in page.text


def test_a_difference_within_the_spread_is_called_that(networks, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "peak_memory", lambda *_: 1)
    monkeypatch.setattr(command, "latencies", lambda networks, *_: [measurements.Latency(1.0, 0.5, 2.0), measurements.Latency(0.8, 0.4, 0.9)])
    page, _, _ = pages(networks, tmp_path / "out", "--rounds", "2")
    assert "takes 80% of the time for 1 image, which is within the spread" in page.text


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak memory of a process")
def test_peak_memory_grows_with_the_batch(tmp_path):
    model = STYLEGAN2 | {"resolution": 64, "channel_base": 1024, "channel_max": 16}
    save(tmp_path / "large" / NAME, model, 0, None)
    one, many = (measurements.peak_memory(tmp_path / "large" / NAME, batch, CPU) for batch in (1, 33))
    # two copies of the features at 64x64 that are alive at once are the least
    assert many - one > 32 * 2 * 16 * 64 * 64 * 4
    assert many < 2**30


def test_what_does_not_tell_memory_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(measurements, "STATUS", tmp_path / "none")
    with pytest.raises(measurements.MeasurementError, match="does not tell the peak memory"):
        measurements.resident("VmRSS")
    monkeypatch.setattr(measurements, "CLEAR", tmp_path / "none" / "clear_refs")
    with pytest.raises(measurements.MeasurementError, match="the peak of loading would pass for that of drawing"):
        measurements.forget_peak()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 17), (5, 5), (0, 0), (1e-9, 3e-9), (-1e6, 1e6), (0.99, 1.01)])
def test_ticks_are_round_and_enclose(low, high):
    marks = charts.ticks(low, high)
    assert 3 <= len(marks) <= 8 and marks[0] <= low and marks[-1] >= high
    steps = np.diff(marks)
    assert np.allclose(steps, steps[0]) and float(f"{steps[0]:.0e}") == pytest.approx(steps[0])


def test_large_images_are_reduced():
    image = np.full((1024, 1024, 1), 7, np.uint8)
    assert sections.small(image).shape == (512, 512, 1) and (sections.small(image) == 7).all()
    assert sections.small(image[:64, :64]).shape == (64, 64, 1)


def test_the_installed_package_has_the_template():
    script = "from fastdgl.reporting.document import TEMPLATE; print(TEMPLATE.is_file())"
    root = Path(__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", script], cwd=root, env={"PYTHONPATH": f"{root}:{root / 'kernels'}"}, capture_output=True, text=True)
    assert run.stdout.strip() == "True", run.stderr


MEASURED = """
import sys, torch
from pathlib import Path
from fastdgl.reporting import measurements
modules = []
resident = measurements.resident
measurements.resident = lambda what: modules.append(set(sys.modules)) or resident(what)
measurements.peak_in_this_process(Path(sys.argv[1]), 2, "cpu", 1)
print(*sorted(modules[-1] - modules[0]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak memory of a process")
def test_peak_memory_counts_no_module_of_python(tmp_path):
    """What PyTorch imports when it is first asked for it was most of a small network's memory."""
    save(tmp_path / "a" / NAME, STYLEGAN2, 0, None)
    save(tmp_path / "b" / NAME, BIGGAN, 3, None)
    for name in ("a", "b"):
        run = subprocess.run([sys.executable, "-c", MEASURED, tmp_path / name / NAME], env=of_launchers(), capture_output=True, text=True)
        assert run.returncode == 0 and run.stdout.split() == [], run.stdout + run.stderr
