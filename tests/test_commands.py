"""What a person types and is told: the commands of `fastdgl`, their help, and what to do instead of what cannot be done."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from tiny_networks import STYLEGAN2, save
from tiny_runs import TINY, dump, refusal, train

from fastdgl import cli, doctor
from fastdgl.checkpoints import open_snapshot
from fastdgl.train import main as train_main

from ranks import ROOT


def fastdgl(*arguments):
    return CliRunner().invoke(cli.main, [str(a) for a in arguments])


@pytest.mark.parametrize("module", ["fastdgl", "fastdgl.cli"])
def test_a_module_is_the_program(module):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    result = subprocess.run([sys.executable, "-m", module, "--help"], env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.split()[2:] == fastdgl("--help").output.split()[2:] and result.stdout.startswith("Usage: fastdgl ")


def test_summaries_are_whole_and_those_of_the_commands():
    text = " ".join(fastdgl("--help").output.split())
    for name, (_, _, summary) in cli.COMMANDS.items():
        command = cli.main.get_command(None, name)
        said = " ".join(command.help.split())
        assert said.startswith(summary) and f"{name} {summary}" in text and summary.endswith(".")
    assert "..." not in text.partition("Commands:")[2]


@pytest.mark.parametrize("typed, meant", [("trian", "did you mean train?"), ("eval", "did you mean evaluate?"), ("genrate", "did you mean generate?"),
                                          ("dataset_tool", "did you mean dataset?"), ("xyz", "expected one of train, dataset")])
def test_a_command_that_is_none_leads_to_one(typed, meant):
    result = fastdgl(typed)
    assert result.exit_code == 2 and meant in result.output


def test_train_is_the_program_of_train_py(tmp_path):
    config = tmp_path / "a.yaml"
    config.write_text(dump(TINY))
    printed = [CliRunner().invoke(main, [*first, "--config", str(config), "-n", "train.batch=4"]) for main, first in
               ((cli.main, ["train"]), (train_main, []), (cli.main, ["--local_rank=0", "train"]))]
    assert {result.output for result in printed} == {printed[0].output} and yaml.safe_load(printed[0].output)["train"]["batch"] == 4


@pytest.mark.parametrize("arguments, said", [
    (["--batch", "16"], "did you mean train.batch=... or metrics.batch=...?"),
    (["--gamma=10"], "did you mean loss.r1_gamma=...?"),
    (["--train.batch=16"], "did you mean train.batch=...?"),
    (["--fp32=1"], "did you mean model.num_fp16_res=0?"),
    (["--wobble=1"], "docs/config.md has them all"),
])
def test_an_option_for_a_value_of_the_config_leads_to_its_key(arguments, said):
    result = fastdgl("train", "--config", "a.yaml", *arguments)
    assert result.exit_code == 2 and said in " ".join(result.output.split())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two classes of folders, which has ended."""
    folder = tmp_path_factory.mktemp("run")
    images(folder / "photos", ("cats", "dogs"))
    output = train("--config", config(folder, folder / "photos"), "train.kimg=0.048")
    return folder, next((folder / "runs").iterdir()), output


def images(folder, classes, vectors=False):
    for i in range(8):
        path = folder / (classes[i % len(classes)] if classes else "") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 30 * i, np.uint8)).save(path)
    if vectors:
        labels = [[f"{i}.png", [i / 8, 1 - i / 8]] for i in range(8)]
        (folder / "dataset.json").write_text(json.dumps({"labels": labels}))


def config(folder, path, **changes):
    file = folder / "config.yaml"
    file.write_text(dump(TINY | {"images": {"path": str(path), "workers": 0, "mirror": True}, "outdir": str(folder / "runs")} | changes))
    return file


def test_a_run_says_what_a_person_decides_by(run):
    _, folder, output = run
    assert "images    8 of 8x8x1, each also mirrored, 2 classes (cats, dogs)" in output
    assert "R1        gamma 0.1 (loss.r1_gamma)" in output and "8 images of D and 8 of G at once on each rank" in output
    options = json.loads((folder / "training_options.json").read_text())
    assert options["effective_r1_gamma"] == 0.1 and options["images_per_micro_batch"] == {"G": 8, "D": 8}
    assert options["training_images"] == 8 and options["classes"] == ["cats", "dogs"] and options["label_kind"] == "classes"
    snapshot = open_snapshot(folder)
    assert snapshot.label_kind == "classes" and list(snapshot.class_names) == ["cats", "dogs"]


@pytest.mark.parametrize("inside, said", [
    ("network-snapshot-000000.safetensors", "is a file, and --resume takes the folder of a run; --resume {run} goes on with the run beside it, and start="),
    ("config.yaml", "is a file, and --resume takes the folder of a run; --resume {run} goes on with the run beside it, and --config"),
    ("checkpoints", "is inside of the folder of a run; --resume {run} goes on from its newest checkpoint"),
    ("checkpoints/0000000048", "is inside of the folder of a run; --resume {run} goes on from its newest checkpoint"),
    ("..", "holds 1 run(s), of which --resume takes one; the newest is --resume"),
    ("nothing", "no such folder; --resume takes the folder of a run"),
])
def test_resume_says_which_folder_it_takes(run, inside, said):
    sentence = refusal("--resume", run[1] / inside)
    assert said.format(run=run[1]) in sentence


def other_names(folder):
    images(folder, ("ants", "dogs"))


def other_order(folder):
    images(folder, ())
    (folder / "dataset.json").write_text(json.dumps({"labels": [[f"{i}.png", i % 2] for i in range(8)], "classes": ["dogs", "cats"]}))


def more_classes(folder):
    images(folder, ("cats", "dogs", "owls"))


def vectors_now(folder):
    images(folder, (), vectors=True)


@pytest.mark.parametrize("change, said", [
    (other_names, "its class 0 is 'cats', this run's is 'ants'; pack the images again with the classes in the same order"),
    (other_order, "its class 0 is 'cats', this run's is 'dogs'"),
    (more_classes, "was trained with classes 2, this run has 3; they must agree"),
    (vectors_now, "was trained with 2 classes, this run has vectors of 2 numbers as labels; they must agree"),
])
def test_images_whose_labels_mean_something_else_are_rejected_by_resume_start_and_teacher(run, tmp_path, change, said):
    change(tmp_path / "photos")
    # a checkpoint of before this was kept is taken at the word of the run's snapshot
    state = next((run[1] / "checkpoints").glob("*/state.pt"))
    kept = state.read_bytes()
    try:
        if change is not more_classes:
            assert said in refusal("--resume", run[1], f"images.path={tmp_path / 'photos'}")
            torch.save({key: value for key, value in torch.load(state).items() if key != "labels"}, state)
            assert said in refusal("--resume", run[1], f"images.path={tmp_path / 'photos'}")
    finally:
        state.write_bytes(kept)
    path = config(tmp_path, tmp_path / "photos")
    assert said in refusal("--config", path, f"start={run[1]}")
    assert said in refusal("--config", path, f"guidance.teachers.0.checkpoint={run[1]}")


def test_a_missing_teacher_is_told_how_to_get(tmp_path):
    images(tmp_path / "photos", ("cats", "dogs"))
    guided = {"stages": {"student": {}, "guided": {"guidance": {"weight": 0.1, "teachers": [{"checkpoint": "teachers/a.safetensors"}]}}}}
    sentence = refusal("--config", config(tmp_path, tmp_path / "photos", **guided))
    assert "stage guided is taught by it: name a teacher by guidance.teachers.0.checkpoint=FILE" in sentence and "--stage student" in sentence
    alone = refusal("--config", config(tmp_path, tmp_path / "photos"), "guidance.teachers.0.checkpoint=a.safetensors")
    assert "this run is taught by it" in alone and "--stage" not in alone


@pytest.mark.parametrize("command, arguments", [
    ("export", ["--format", "onnx", "nodir/x.onnx"]), ("export", ["--format", "pt2", "nodir/deep/x.pt2"]), ("export", ["--format", "hub", "nodir/x"]),
    ("convert", ["nodir/x.pt"]), ("convert", ["file.txt/x.pt"]),
])
def test_where_a_file_cannot_go_is_said_before_it_is_computed(tmp_path, monkeypatch, command, arguments):
    save(tmp_path / "run" / "network-snapshot-000001.safetensors", STYLEGAN2, 0, None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").touch()
    monkeypatch.setattr("fastdgl.checkpoints.Snapshot.network", lambda *_, **__: pytest.fail("computed"))
    source = ["--network", "run"] if command == "export" else ["run"]
    result = fastdgl(command, *source, *arguments)
    assert result.exit_code == 1 and "cannot be written: " in result.output and "choose another place" in result.output


@pytest.mark.parametrize("cuda, places, said", [
    (None, ["dev/nvidia0"], "computes on the CPU alone, and this machine has a GPU of NVIDIA"),
    (None, ["dev/kfd"], "computes on the CPU alone, and this machine has a GPU of AMD"),
    (None, [], None),
    ("12.8", ["dev/nvidia0"], "no GPU answers it"),
])
def test_doctor_finds_a_gpu_that_this_torch_cannot_use(tmp_path, monkeypatch, cuda, places, said):
    (tmp_path / "dev").mkdir()
    for place in places:
        (tmp_path / place).touch()
    monkeypatch.setattr(doctor, "NVIDIA", (tmp_path / "dev/nvidia0",))
    monkeypatch.setattr(doctor, "AMD", (tmp_path / "dev/kfd",))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    problem = doctor.why_no_gpu()
    assert problem is None if said is None else said in problem


@pytest.mark.parametrize("option, command", [("--outdir", "generate"), ("--outdir", "evaluate"), ("--outdir", "doctor"), ("--resume", "train"), ("--config", "train"),
                                             ("--outdir", "report"), ("--cache", "evaluate")])
def test_options_know_the_home_folder(tmp_path, monkeypatch, option, command):
    monkeypatch.setenv("HOME", str(tmp_path))
    parameter = next(p for p in cli.main.get_command(None, command).params if option in p.opts)
    assert str(parameter.type.convert("~/a", parameter, None)) == str(tmp_path / "a")
    assert str(parameter.type.convert("./~/a", parameter, None)) == "~/a"


def networks(folder, c_dim):
    save(folder / "run" / "network-snapshot-000001.safetensors", STYLEGAN2, c_dim, None)
    return open_snapshot(folder / "run").network("G_ema")


@torch.no_grad()
def test_class_numbers_are_one_hot_classes_in_python(tmp_path):
    G = networks(tmp_path, 3)
    D = open_snapshot(tmp_path / "run").network("D")
    z, numbers = torch.randn(4, 8), [2, 0, 1, 2]
    expected = G(z, torch.eye(3)[numbers], noise_mode="const")
    for c in (torch.tensor(numbers), torch.tensor(numbers, dtype=torch.uint8), numbers, np.array(numbers), torch.eye(3, dtype=torch.int64)[numbers]):
        assert torch.equal(G(z, c, noise_mode="const"), expected)
        assert torch.equal(G.mapping(z, c), G.mapping(z, torch.eye(3)[numbers]))
    assert torch.equal(G(z, 1, noise_mode="const"), G(z, torch.eye(3)[[1] * 4], noise_mode="const"))
    assert torch.equal(D(expected, torch.tensor(numbers)), D(expected, torch.eye(3)[numbers]))


@pytest.mark.parametrize("z, c, said", [
    ((4, 8), None, r"c must be one-hot classes \[4, 3\], one per sample, got None; class numbers"),
    ((4, 9), 0, r"z must be \[N, 8\], got \[4, 9\]"),
    ((8,), 0, r"z must be \[N, 8\], got \[8\]"),
    ((4, 8), 3, "class numbers must be 0 to 2, got"),
    ((4, 8), [0, 1, 2, -1], "class numbers must be 0 to 2, got"),
    ((4, 8), [0, 1], r"c must be one-hot classes \[4, 3\]"),
    ((4, 8), torch.zeros(4, 2), r"c must be one-hot classes \[4, 3\], one per sample, got \[4, 2\]"),
    ((4, 8), torch.zeros(4), r"c must be one-hot classes \[4, 3\], one per sample, got \[4\]"),
    ((4, 8), torch.zeros(3, 3), r"c must be one-hot classes \[4, 3\], one per sample, got \[3, 3\]"),
])
def test_what_a_conditional_network_cannot_take_is_said_in_a_sentence(tmp_path, z, c, said):
    G = networks(tmp_path, 3)
    with pytest.raises(ValueError, match=said):
        G(torch.randn(z), c)


def test_a_network_of_vectors_takes_no_class_numbers(tmp_path):
    save(tmp_path / "run" / "network-snapshot-000001.safetensors", STYLEGAN2, 3, None, "vectors")
    G = open_snapshot(tmp_path / "run").network("G_ema")
    for c in (1, torch.tensor([1, 2]), [0, 1]):
        with pytest.raises(ValueError, match=r"was trained with vectors: c must be \[2, 3\]"):
            G(torch.randn(2, 8), c)
    G.save_pretrained(tmp_path / "hub")
    assert open_snapshot(tmp_path / "hub").label_kind == "vectors" and type(G).from_pretrained(tmp_path / "hub").label_kind == "vectors"
