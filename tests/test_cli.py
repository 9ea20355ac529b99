"""`fastdgl generate`: which image a seed makes, and what a wrong call gets to hear. `fastdgl dataset` is in test_packing.py."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny_networks import BIGGAN, STYLEGAN2, save

from fastdgl import checkpoints
from fastdgl.cli import main
from fastdgl.grids import to_uint8
from fastdgl.latents import seeded_z
from fastdgl.models.batch_norm import standing_statistics
from fastdgl.samples import STEPS

C_DIM = 3
NAMES = ("cat", "dog", "2")


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """Tiny networks: with classes, with classes that have names, without classes; and a BigGAN."""
    folder = tmp_path_factory.mktemp("snapshots")
    paths = {name: folder / name / "network-snapshot-000001.safetensors" for name in ("conditional", "named", "unconditional", "biggan")}
    save(paths["conditional"], STYLEGAN2, C_DIM, None)
    save(paths["named"], STYLEGAN2, C_DIM, NAMES)
    save(paths["unconditional"], STYLEGAN2, 0, None)
    save(paths["biggan"], BIGGAN, C_DIM, NAMES)
    return paths


def generate(*arguments):
    return CliRunner().invoke(main, ["generate", *map(str, arguments)])


def test_a_seed_chooses_z_as_nvidias_tools_do_and_the_averaged_generator_draws(snapshots, tmp_path):
    result = generate("--network", snapshots["unconditional"], "--seeds", "3,5-6", "--trunc", 0.7, "--outdir", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["seed0003.png", "seed0005.png", "seed0006.png"]
    G = checkpoints.open_snapshot(snapshots["unconditional"]).network("G_ema")
    z = torch.from_numpy(np.random.RandomState(5).randn(1, 8)).float()
    with torch.no_grad():
        image = G(z, torch.zeros(1, 0), truncation_psi=0.7, noise_mode="const")
    expected = (image[0].permute(1, 2, 0) * 127.5 + 128).clamp(0, 255).to(torch.uint8).numpy()
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "seed0005.png")), expected)


def test_classes_make_different_images(snapshots, tmp_path):
    for index in (0, 2):
        assert generate("--network", snapshots["conditional"], "--seeds", 0, "--class", index, "--outdir", tmp_path / str(index)).exit_code == 0
    first, third = (np.asarray(Image.open(tmp_path / str(index) / f"seed0000-class{index}.png")) for index in (0, 2))
    assert not np.array_equal(first, third)


def image(path, network, seed, *arguments):
    """The image of a seed, `[H, W, 3]`, by a call of its own."""
    result = generate("--network", network, "--seeds", seed, "--outdir", path, *arguments)
    assert result.exit_code == 0, result.output
    return np.asarray(Image.open(max(path.glob(f"seed{seed:04d}*.png"), key=lambda file: file.stat().st_mtime_ns)))


def sheet(path, R):
    """The images of a sheet, `[rows, columns, R, R, 3]`."""
    pixels = np.asarray(Image.open(path))
    return pixels.reshape(pixels.shape[0] // R, R, pixels.shape[1] // R, R, 3).swapaxes(1, 2)


def assert_same(a, b):
    # in a batch of another size sums round another way, and one level is the most that shows of it
    assert a.shape == b.shape and np.abs(a.astype(int) - b).max() <= 1


def test_a_class_may_be_called_by_name_or_number(snapshots, tmp_path):
    third = image(tmp_path / "a", snapshots["named"], 0, "--class", "2")
    assert np.array_equal(third, image(tmp_path / "b", snapshots["conditional"], 0, "--class", 2))
    dog = image(tmp_path / "c", snapshots["named"], 0, "--class", "dog")
    assert np.array_equal(dog, image(tmp_path / "d", snapshots["named"], 0, "--class", 1)) and not np.array_equal(dog, third)


def test_a_biggan_draws_what_is_beyond_the_truncation_anew(snapshots, tmp_path):
    G = checkpoints.open_snapshot(snapshots["biggan"]).network("G_ema")
    with torch.no_grad():
        expected = to_uint8(G(seeded_z(3, 8, 0.5), torch.eye(C_DIM)[1:2]))[0]
    truncated = image(tmp_path / "a", snapshots["biggan"], 3, "--class", "dog", "--trunc", 0.5)
    assert np.array_equal(truncated, expected)
    assert not np.array_equal(truncated, image(tmp_path / "b", snapshots["biggan"], 3, "--class", "dog"))


def test_standing_statistics_are_those_of_so_many_batches_and_the_same_each_time(snapshots, tmp_path):
    arguments = ["--class", 0, "--trunc", 0.5]
    one, again, two = (image(tmp_path / str(i), snapshots["biggan"], 0, *arguments, "--standing", n) for i, n in enumerate((1, 1, 2)))
    stored = image(tmp_path / "stored", snapshots["biggan"], 0, *arguments)
    assert np.array_equal(one, again) and not np.array_equal(one, two) and not np.array_equal(one, stored)

    G = checkpoints.open_snapshot(snapshots["biggan"]).network("G_ema")
    z = torch.cat([seeded_z(seed, 8, 0.5) for seed in range(64)])
    standing_statistics(G, [(z, torch.eye(C_DIM)[np.random.RandomState(0).randint(C_DIM, size=64)])])
    with torch.no_grad():
        assert np.array_equal(one, to_uint8(G(seeded_z(0, 8, 0.5), torch.eye(C_DIM)[:1]))[0])


@pytest.mark.parametrize("name, R", [("named", 16), ("biggan", 32)])
def test_the_grid_of_classes_has_a_row_for_each_class_and_a_column_for_each_seed(snapshots, tmp_path, name, R):
    result = generate("--network", snapshots[name], "--seeds", "4,7", "--grid", "classes", "--trunc", 0.6, "--outdir", tmp_path)
    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["classes.png"]
    cells = sheet(tmp_path / "classes.png", R)
    assert cells.shape[:2] == (C_DIM, 2)
    for row in range(C_DIM):
        for column, seed in enumerate((4, 7)):
            assert_same(cells[row, column], image(tmp_path / "one", snapshots[name], seed, "--class", row, "--trunc", 0.6))


@pytest.mark.parametrize("name, R", [("named", 16), ("biggan", 32)])
@pytest.mark.parametrize("what, classes, rows", [
    ("z", ["dog"], [((4, 1), (7, 1)), ((7, 1), (5, 1))]),
    ("class", ["cat", "2"], [((4, 0), (4, 2)), ((7, 0), (7, 2)), ((5, 0), (5, 2))]),
    ("both", ["2", "dog"], [((4, 2), (7, 1)), ((7, 2), (5, 1))]),
])
def test_interpolations_begin_and_end_at_the_samples_themselves(snapshots, tmp_path, name, R, what, classes, rows):
    chosen = [argument for one in classes for argument in ("--class", one)]
    result = generate("--network", snapshots[name], "--seeds", "4,7,5", "--interpolate", what, *chosen, "--outdir", tmp_path)
    assert result.exit_code == 0, result.output
    cells = sheet(tmp_path / "interpolation.png", R)
    assert cells.shape[:2] == (len(rows), STEPS)
    for row, ends in zip(cells, rows):
        for cell, (seed, index) in zip((row[0], row[-1]), ends):
            assert_same(cell, image(tmp_path / "one", snapshots[name], seed, "--class", index))
        assert not np.array_equal(row[4], row[0]) and not np.array_equal(row[4], row[-1])


def test_an_unconditional_network_interpolates_too(snapshots, tmp_path):
    result = generate("--network", snapshots["unconditional"], "--seeds", "0-2", "--interpolate", "z", "--outdir", tmp_path)
    assert result.exit_code == 0, result.output
    assert sheet(tmp_path / "interpolation.png", 16).shape[:2] == (2, STEPS)


def test_a_run_folder_stands_for_its_newest_snapshot(snapshots, tmp_path):
    assert generate("--network", snapshots["unconditional"].parent, "--seeds", "0", "--outdir", tmp_path).exit_code == 0
    assert (tmp_path / "seed0000.png").exists()


@pytest.mark.parametrize("name, arguments, sentence", [
    pytest.param("conditional", [], "choose one with --class 0 to 2", id="class-missing"),
    pytest.param("conditional", ["--class", "3"], "--class 3: this network has classes 0 to 2", id="class-out-of-range"),
    pytest.param("conditional", ["--class", "-1"], "--class -1: this network has classes 0 to 2", id="class-negative"),
    pytest.param("conditional", ["--class", "cat"], "--class cat: the classes of this network have no names; choose one with --class 0 to 2",
                 id="class-name-unknown-to-the-snapshot"),
    pytest.param("named", ["--class", "dgo"], "--class dgo: this network has no class of that name; it has dog and others", id="class-misspelt"),
    pytest.param("named", ["--class", "0", "--class", "1"], "2 are chosen; choose one", id="class-twice"),
    pytest.param("unconditional", ["--class", "0"], "has no classes", id="class-of-an-unconditional-network"),
    pytest.param("unconditional", ["--grid", "classes"], "this network has no classes", id="grid-of-an-unconditional-network"),
    pytest.param("unconditional", ["--interpolate", "class"], "this network has no classes", id="interpolation-of-no-classes"),
    pytest.param("named", ["--grid", "classes", "--class", "0"], "leave --class out", id="grid-of-one-class"),
    pytest.param("named", ["--grid", "classes", "--interpolate", "z"], "two sheets; choose one", id="two-sheets"),
    pytest.param("named", ["--interpolate", "class", "--class", "0"], "1 are chosen; choose two", id="interpolation-to-no-class"),
    pytest.param("named", ["--interpolate", "z", "--class", "0"], "expected at least two, such as --seeds 0,1", id="interpolation-of-one-seed"),
    pytest.param("biggan", ["--class", "0", "--trunc", "0"], "--trunc 0: the truncation threshold of z must be at least 0.01, got 0",
                 id="truncation-to-nothing"),
    pytest.param("biggan", ["--class", "0", "--noise-mode", "const"], "networks of family biggan take no noise", id="noise-of-a-biggan"),
    pytest.param("named", ["--class", "0", "--standing", "2"], "networks of family stylegan2 have no batch norm", id="standing-without-batch-norm"),
    pytest.param("unconditional", ["--seeds", "5-3"], "is no list of seeds", id="seeds-backwards"),
    pytest.param("unconditional", ["--seeds", "a"], "is no list of seeds", id="seeds-no-number"),
    pytest.param("unconditional", ["--seeds", str(2**32)], "expected seeds up to", id="seed-too-large"),
    pytest.param("unconditional", ["--seeds", "0-99999999"], "at most 1000000 in a range", id="seeds-too-many"),
    pytest.param("unconditional", ["--network", "none.safetensors"], "none.safetensors: no such file", id="network-missing"),
    pytest.param("unconditional", ["--network", __file__], "is not a snapshot of fastdgl", id="network-of-something-else"),
    pytest.param("unconditional", ["--outdir", __file__], "images cannot be written", id="outdir-is-a-file"),
    pytest.param("unconditional", ["--noise-mode", "loud"], "random", id="unknown-noise-mode"),
])
def test_a_wrong_call_is_refused_in_a_sentence(snapshots, tmp_path, name, arguments, sentence):
    result = generate("--network", snapshots[name], "--seeds", "0", "--outdir", tmp_path / "out", *arguments)
    assert result.exit_code != 0 and sentence in result.output and "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Networks of vectors, of classes whose names are numbers, of classes with one name, and one whose file does not say."""
    folder = tmp_path_factory.mktemp("labelled")
    kinds = {"vectors": (None, "vectors"), "numbers": (("1", "10", "2"), "classes"), "twins": (("cat", "cat", "dog"), "classes"), "old": (None, None),
             "comma": (("salt, pepper", "café", "number:0"), "classes")}
    for name, (names, kind) in kinds.items():
        save(folder / name / "network-snapshot-000001.safetensors", STYLEGAN2, C_DIM, names, kind)
    return {name: folder / name for name in kinds}


def drawn(network, label):
    """The image of seed 0 of a label vector, by the network itself."""
    G = checkpoints.open_snapshot(network).network("G_ema")
    with torch.no_grad():
        return to_uint8(G(seeded_z(0, 8), torch.tensor([label], dtype=torch.float32), noise_mode="const"))[0]


@pytest.mark.parametrize("name, given, label, file", [
    ("vectors", "0.5,0.25,0", [0.5, 0.25, 0], "seed0000-label0.5_0.25_0.png"),
    ("vectors", "-1, 2e-1, 3", [-1, 0.2, 3], "seed0000-label-1_0.2_3.png"),
    ("vectors", "a.json", [1, 0.5, 0.25], "seed0000-label1_0.5_0.25.png"),
    ("vectors", "a.npy", [1, 0.5, 0.25], "seed0000-label1_0.5_0.25.png"),
    ("vectors", "a.txt", [1, 0.5, 0.25], "seed0000-label1_0.5_0.25.png"),
    ("numbers", "10", [0, 1, 0], "seed0000-class1.png"),
    ("numbers", "2", [0, 0, 1], "seed0000-class2.png"),
    ("numbers", "0", [1, 0, 0], "seed0000-class0.png"),
    ("numbers", "name:1", [1, 0, 0], "seed0000-class0.png"),
    ("numbers", "number:1", [0, 1, 0], "seed0000-class1.png"),
    ("twins", "number:0", [1, 0, 0], "seed0000-class0.png"),
    ("comma", "salt, pepper", [1, 0, 0], "seed0000-class0.png"),
    ("comma", "cafe\u0301", [0, 1, 0], "seed0000-class1.png"),
    ("comma", "number:0", [0, 0, 1], "seed0000-class2.png"),
    ("old", "1", [0, 1, 0], "seed0000-class1.png"),
    ("old", "0.5,0.5,0", [0.5, 0.5, 0], "seed0000-label0.5_0.5_0.png"),
])
def test_a_label_is_what_the_network_was_trained_with(labelled, tmp_path, monkeypatch, name, given, label, file):
    (tmp_path / "a.json").write_text("[1, 0.5, 0.25]")
    (tmp_path / "a.txt").write_text("1, 0.5\n0.25\n")
    np.save(tmp_path / "a.npy", np.array([[1, 0.5, 0.25]]))
    monkeypatch.chdir(tmp_path)
    for option in ("--class", "--label"):
        result = generate("--network", labelled[name], "--seeds", 0, option, given, "--outdir", tmp_path / option)
        assert result.exit_code == 0, result.output
        assert [path.name for path in (tmp_path / option).iterdir()] == [file]
        assert_same(np.asarray(Image.open(tmp_path / option / file)), drawn(labelled[name], label))
        assert ("does not say whether" in result.output) == (name == "old")


@pytest.mark.parametrize("name, arguments, sentence", [
    ("vectors", ["--class", "1"], "holds 1 number; this network takes vectors of 3 numbers"),
    ("vectors", ["--class", "cat"], "this network takes vectors of 3 numbers; expected numbers with commas between, or a file"),
    ("vectors", ["--label", "0,0,nan"], "expected finite numbers"),
    ("vectors", ["--label", "0,0,1e39"], "expected finite numbers"),
    ("vectors", ["--label", "1,2,3,4"], "holds 4 numbers; this network takes vectors of 3"),
    ("vectors", [], "takes vectors of 3 numbers, and 0 are given; expected 1, as --label 0.5,0.5,0.5"),
    ("vectors", ["--grid", "classes"], "takes vectors of 3 numbers and has no classes"),
    ("vectors", ["--label", __file__], "cannot be read as numbers"),
    ("numbers", ["--class", "1"], "class 0 is called '1', and class 1 is another; choose --class name:1 or --class number:1"),
    ("numbers", ["--class", "3"], "this network has classes 0 to 2"),
    ("numbers", ["--class", "name:0"], "this network has no class of that name"),
    ("twins", ["--class", "cat"], "2 classes have this name; choose one by number, as --class number:0 or --class number:1"),
    ("twins", ["--class", "0.5,0.5,0"], "this network has no class of that name"),
    ("twins", ["--class", "9" * 5000], "this network has no class of that name"),
])
def test_a_label_of_another_kind_is_rejected(labelled, tmp_path, name, arguments, sentence):
    result = generate("--network", labelled[name], "--seeds", 0, "--outdir", tmp_path / "out", *arguments)
    assert result.exit_code != 0 and sentence in result.output and "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_no_image_is_replaced_in_silence(snapshots, labelled, tmp_path):
    calls = [["conditional", "--class", i] for i in (0, 1, 2)] + [["conditional", "--class", 1, "--trunc", 1]]
    for name, *arguments in calls:
        result = generate("--network", snapshots[name], "--seeds", "0-1", *arguments, "--outdir", tmp_path)
        assert result.exit_code == 0 and "were replaced" not in result.output, result.output
    assert len(list(tmp_path.iterdir())) == 6
    for arguments in (["--class", 1, "--trunc", 0.2], ["--class", 1, "--noise-mode", "none"]):
        result = generate("--network", snapshots["conditional"], "--seeds", "0-1", *arguments, "--outdir", tmp_path)
        assert "2 files of an earlier call, such as seed0000-class1.png, were replaced" in result.output
    for seeds, replaced in (("0", False), ("1", True), ("1", False)):
        result = generate("--network", snapshots["conditional"], "--seeds", seeds, "--grid", "classes", "--outdir", tmp_path)
        assert ("classes.png, were replaced" in result.output) == replaced


@pytest.mark.parametrize("shape, key, count", [((1, 6, 8), "w", 1), ((6, 8), "w", 1), ((8,), "w", 1), ((3, 6, 8), "w", 3), ((2, 1, 8), "w", 2), ((6, 8), None, 1),
                                               ((6, 8), "arr_0", 1)])
def test_given_w_are_drawn(snapshots, tmp_path, shape, key, count):
    w = np.random.RandomState(0).randn(*shape).astype(np.float64)
    file = tmp_path / ("projected_w.npy" if key is None else "projected_w.npz")
    np.save(file, w) if key is None else np.savez(file, **{key: w})
    result = generate("--network", snapshots["conditional"], "--w", file, "--outdir", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"projected_w-{i:04d}.png" for i in range(count)]
    ws = torch.from_numpy(w).float()
    ws = ws.expand(6, 8)[None] if ws.ndim == 1 else ws[None] if ws.ndim == 2 else ws.expand(-1, 6, -1)
    G = checkpoints.open_snapshot(snapshots["conditional"]).network("G_ema")
    with torch.no_grad():
        assert_same(np.asarray(Image.open(tmp_path / "out/projected_w-0000.png")), to_uint8(G.synthesis(ws, noise_mode="const"))[0])


def test_frames_go_from_one_w_to_the_next(snapshots, tmp_path):
    ends = np.random.RandomState(0).randn(2, 6, 8)
    for i in range(2):
        np.savez(tmp_path / f"{i}.npz", w=ends[i])
    files = [argument for i in range(2) for argument in ("--w", tmp_path / f"{i}.npz")]
    result = generate("--network", snapshots["unconditional"], *files, "--interpolate", "w", "--steps", 5, "--frames", "--outdir", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"frame{i:04d}.png" for i in range(5)]
    G = checkpoints.open_snapshot(snapshots["unconditional"]).network("G_ema")
    with torch.no_grad():
        middle = to_uint8(G.synthesis(torch.from_numpy(ends).float().mean(dim=0, keepdim=True), noise_mode="const"))[0]
    assert_same(np.asarray(Image.open(tmp_path / "out/frame0002.png")), middle)


@pytest.mark.parametrize("what, seeds, frames", [("z", "0,1,2", 6), ("w", "3,4", 3), ("class", "5", 3)])
def test_an_interpolation_has_as_many_steps_as_asked_for(snapshots, tmp_path, what, seeds, frames):
    classes = ["--class", 0, "--class", 1] if what == "class" else ["--class", 0]
    result = generate("--network", snapshots["named"], "--seeds", seeds, *classes, "--interpolate", what, "--steps", 3, "--frames", "--trunc", 0.5,
                      "--outdir", tmp_path / "out")
    assert result.exit_code == 0, result.output
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == frames
    first = image(tmp_path / "one", snapshots["named"], int(seeds[0]), "--class", 0, "--trunc", 0.5)
    assert_same(np.asarray(Image.open(files[0])), first)


@pytest.mark.parametrize("name, w, arguments, sentence", [
    ("unconditional", np.zeros((1, 5, 8)), [], "holds w of shape [1, 5, 8]; expected `w` [N, 6, 8], [6, 8] or [8]"),
    ("unconditional", np.zeros(9), [], "holds w of shape [9]"),
    ("unconditional", np.zeros((0, 6, 8)), [], "holds w of shape [0, 6, 8]"),
    ("unconditional", np.full(8, np.nan), [], "holds NaN or infinity"),
    ("unconditional", np.array([None, {}]), [], "cannot be read"),
    ("unconditional", np.zeros(8), ["--seeds", "0"], "--seeds says what w is made of"),
    ("unconditional", np.zeros(8), ["--trunc", "0.5"], "--trunc says what w is made of"),
    ("conditional", np.zeros(8), ["--class", "0"], "--class says what w is made of"),
    ("unconditional", np.zeros(8), ["--interpolate", "z"], "--interpolate z says what w is made of"),
    ("biggan", np.zeros(8), [], "a biggan has no w"),
    ("unconditional", None, [], "give --seeds 0-63, or --w FILE"),
    ("unconditional", None, ["--w", "missing.npz"], "missing.npz: cannot be read"),
    ("biggan", None, ["--seeds", "0,1", "--class", "0", "--interpolate", "w"], "have no w; use --interpolate z"),
    ("unconditional", None, ["--seeds", "0,1", "--frames"], "add --interpolate z"),
])
def test_w_that_cannot_be_drawn_are_rejected(snapshots, tmp_path, name, w, arguments, sentence):
    given = []
    if w is not None:
        np.savez(tmp_path / "a.npz", w=w)
        given = ["--w", tmp_path / "a.npz"]
    result = generate("--network", snapshots[name], *given, *arguments, "--outdir", tmp_path / "out")
    assert result.exit_code != 0 and sentence in result.output and "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
