"""Network snapshots: written whole, read without running code, refused in one sentence."""

import json
import os
import pickle
import struct
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import safetensors
import safetensors.torch
import torch
from numerics import normal
from tiny_networks import BIGGAN, STYLEGAN2, save
from tiny_runs import of_launchers

from fastdgl import checkpoints, ema, models
from fastdgl import config as configs
from fastdgl.checkpoints import CheckpointError, check_same_images, load_strictly, open_snapshot, save_snapshot
from fastdgl.models.skeletons import Skeletons

CONFIG = configs.from_dict({
    "images": {"path": "digits"},
    "model": {"resolution": 16, "z_dim": 6, "w_dim": 6, "mapping_layers": 2, "channel_base": 64, "channel_max": 8, "mbstd_group": 2,
              "generator_fraction": 0.5, "num_fp16_res": 1, "low_precision": "bfloat16"},
}, "test")
CLASSES = 3


def images_like(resolution=16, channels=3, label_dim=CLASSES, class_names=None):
    """What checkpoints asks of a training set."""
    return SimpleNamespace(resolution=resolution, channels=channels, label_dim=label_dim, class_names=class_names,
                           label_kind="classes" if label_dim else None)


IMAGES = images_like(class_names=("cat", "dog", "owl"))


def make_networks(seed=0):
    torch.manual_seed(seed)
    G = models.generator("stylegan2", CONFIG.model.generator_arguments(CLASSES))
    D = models.discriminator("stylegan2", CONFIG.model.discriminator_arguments(CLASSES))
    G.mapping.w_avg.normal_()
    average = ema.averaged_copy(G)
    torch.nn.init.normal_(average.synthesis.b4.const)
    return {"G": G, "D": D, "G_ema": average}


@pytest.fixture
def networks():
    return make_networks()


@pytest.fixture
def path(tmp_path, networks):
    path = tmp_path / checkpoints.SNAPSHOT_NAME.format(7)
    save_snapshot(path, networks, CONFIG, IMAGES, seen=7_040)
    return path


def sentence(call, *arguments):
    with pytest.raises(CheckpointError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@torch.no_grad()
def test_gives_back_the_same_networks(path, networks):
    snapshot, z, c = open_snapshot(path), normal(4, 6, dtype=torch.float32), torch.eye(3)[[0, 1, 2, 0]]
    for name in ("G", "G_ema"):
        assert torch.equal(snapshot.network(name)(z, c, 0.7, noise_mode="const"), networks[name](z, c, 0.7, noise_mode="const"))
    images = normal(4, 3, 16, 16, dtype=torch.float32)
    assert torch.equal(snapshot.network("D")(images, c), networks["D"](images, c))
    for name, network in networks.items():
        state = snapshot.network(name).state_dict()
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert not torch.equal(snapshot.state_dict("G")["synthesis.b4.const"], snapshot.state_dict("G_ema")["synthesis.b4.const"])


def test_gives_networks_for_use_not_for_training(path):
    assert not open_snapshot(path).network("G").training


def test_the_header_says_what_it_takes_to_build_the_networks(path):
    snapshot = open_snapshot(path)
    assert (snapshot.path, snapshot.family, snapshot.seen) == (path, "stylegan2", 7_040)
    assert snapshot.arguments["G"] == CONFIG.model.generator_arguments(CLASSES)
    assert snapshot.arguments["D"] == CONFIG.model.discriminator_arguments(CLASSES)
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["fastdgl"])
    assert configs.from_dict(header["config"], "the header") == CONFIG


def test_parameters_of_16_bits_are_written_in_fp32(tmp_path, networks):
    save_snapshot(tmp_path / "a.safetensors", networks | {"D": networks["D"].to(torch.bfloat16)}, CONFIG, IMAGES, seen=0)
    state = open_snapshot(tmp_path / "a.safetensors").state_dict("D")
    assert {value.dtype for value in state.values()} == {torch.float32}


def test_is_a_safetensors_file_and_opening_it_unpickles_nothing(path, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    open_snapshot(path).network("G")
    # eight bytes of length, and a header in JSON
    data = path.read_bytes()
    length, = struct.unpack("<Q", data[:8])
    assert "__metadata__" in json.loads(data[8:8 + length])


def test_a_folder_stands_for_its_newest_snapshot(path, networks):
    for kimg in (12, 9, 1000):
        save_snapshot(path.with_name(checkpoints.SNAPSHOT_NAME.format(kimg)), networks, CONFIG, IMAGES, seen=kimg * 1000)
    (path.parent / "notes.txt").touch()
    assert open_snapshot(path.parent).seen == 1_000_000
    assert open_snapshot(str(path.parent)).path.name == "network-snapshot-001000.safetensors"


def test_leaves_one_file_and_replaces_the_old_one(path, networks):
    save_snapshot(path, networks, CONFIG, IMAGES, seen=9_000)
    assert [file.name for file in path.parent.iterdir()] == [path.name] and open_snapshot(path).seen == 9_000


def test_a_failed_write_leaves_the_old_file_and_no_rest(path, networks, monkeypatch):
    before = path.read_bytes()

    def full_disk(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises((OSError, CheckpointError), match="no space left on device"):
        save_snapshot(path, networks, CONFIG, IMAGES, seen=9_000)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, networks):
    path = tmp_path / "missing" / "network.safetensors"
    # what training reports as one sentence
    with pytest.raises((OSError, CheckpointError), match=str(path.parent)):
        save_snapshot(path, networks, CONFIG, IMAGES, seen=0)


def test_says_that_a_file_is_missing(tmp_path):
    said = sentence(open_snapshot, tmp_path / "teacher.safetensors")
    assert said.startswith(f"{tmp_path / 'teacher.safetensors'}: no such file")


def test_says_that_a_folder_holds_none(tmp_path):
    assert sentence(open_snapshot, tmp_path).startswith(f"{tmp_path}: no network snapshot in this folder")


def someone_elses(path):
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path)


def with_header(header):
    def write(path):
        safetensors.torch.save_file({"weight": torch.zeros(2)}, path, metadata={"fastdgl": header})
    return write


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated-header": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "truncated-tensors": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 8),
    "someone-else's": someone_elses,
    "header-of-no-json": with_header("{"),
    "header-of-a-list": with_header("[]"),
    "header-without-networks": with_header('{"format": 1, "family": "stylegan2", "seen": 0}'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_says_that_a_file_is_none_of_ours_or_damaged(path, damage):
    damage(path)
    assert sentence(open_snapshot, path).startswith(f"{path}: is not a snapshot of fastdgl, or is damaged")


def test_says_that_a_file_is_of_a_later_format(path):
    with_header('{"format": 2}')(path)
    assert sentence(open_snapshot, path) == f"{path}: is in format 2, this fastdgl reads format 1"


def test_says_that_tensors_are_missing_from_a_snapshot(path, networks):
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys() if key != "D.b4.out.bias"}
    safetensors.torch.save_file(tensors, path, metadata=metadata)
    assert sentence(open_snapshot(path).network, "D") == f"D in {path}: does not fit the network: b4.out.bias is missing"
    assert open_snapshot(path).network("G")


def without(key):
    return lambda state: {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(("change", "said"), [
    pytest.param(without("b4.out.bias"), "b4.out.bias is missing", id="missing"),
    pytest.param(lambda state: state | {"b64.conv0.weight": torch.zeros(1)}, "b64.conv0.weight is not expected", id="extra"),
    pytest.param(lambda state: state | {"b4.out.bias": torch.zeros(7)}, "b4.out.bias is [7] instead of [8]", id="misshapen"),
    pytest.param(lambda state: without("b4.out.bias")(state) | {"b4.out.bais": state["b4.out.bias"]},
                 "b4.out.bias is missing; b4.out.bais is not expected", id="renamed"),
    pytest.param(lambda state: {}, "b16.resample_filter is missing; b16.fromrgb.weight is missing; b16.fromrgb.bias is missing; and ", id="empty"),
])
def test_loads_all_or_says_what_differs(networks, change, said):
    D, before = networks["D"], {key: value.clone() for key, value in networks["D"].state_dict().items()}
    other = make_networks(seed=1)["D"].state_dict()
    assert sentence(load_strictly, D, change(other), "teacher: D in x").startswith(f"teacher: D in x: does not fit the network: {said}")
    assert all(torch.equal(value, before[key]) for key, value in D.state_dict().items())
    load_strictly(D, other, "D")
    assert all(torch.equal(value, other[key]) for key, value in D.state_dict().items())


@pytest.mark.parametrize(("ours", "said"), [
    pytest.param((32, 3, 3), "was trained with resolution 16, this run has 32; they must agree", id="resolution"),
    pytest.param((16, 1, 3), "was trained with image channels 3, this run has 1; they must agree", id="channels"),
    pytest.param((16, 3, 10), "was trained with classes 3, this run has 10; they must agree", id="classes"),
    pytest.param((16, 3, 0), "was trained with classes 3, this run has 0; they must agree", id="no-classes"),
])
def test_says_that_a_teacher_is_of_other_images(path, ours, said):
    assert sentence(check_same_images, open_snapshot(path), images_like(*ours)) == f"{path}: {said}"


def test_says_which_class_stands_in_another_place(path):
    others = images_like(class_names=("cat", "owl", "dog"))
    assert "its class 1 is 'dog', this run's is 'owl'" in sentence(check_same_images, open_snapshot(path), others)


def test_a_teacher_of_the_same_images_is_welcome(path):
    check_same_images(open_snapshot(path), images_like(class_names=("cat", "dog", "owl")))
    # a name more, of a class that has no image
    check_same_images(open_snapshot(path), images_like(class_names=("cat", "dog", "owl", "yak")))
    check_same_images(open_snapshot(path), images_like(16, 3, CLASSES))


DRAWN = """
import sys, torch
from fastdgl import checkpoints, samples
from fastdgl.reporting import measurements
for path in sys.argv[1:]:
    G = checkpoints.open_snapshot(path).averaged_generator("cpu")
    samples.draw(G, *measurements.inputs(G, 2, torch.device("cpu")))
print(*sorted({"torch._dynamo", "torch._inductor", "sympy", "triton", "deepspeed", "onnx"} & set(sys.modules)))
"""


def test_drawing_on_a_cpu_imports_no_compiler(tmp_path):
    """Opening a snapshot took seconds and 160 MB for what PyTorch imports with `torch.device("meta")`."""
    for name, model, c_dim in (("a", STYLEGAN2, 0), ("b", STYLEGAN2 | {"conditional": True}, 3), ("c", BIGGAN, 3)):
        save(tmp_path / name / "a.safetensors", model, c_dim, None)
    environment = {key: value for key, value in of_launchers().items() if key != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, "-c", DRAWN, *map(str, sorted(tmp_path.glob("*/a.safetensors")))], env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.split() == [], run.stdout + run.stderr


@pytest.mark.parametrize("model", [STYLEGAN2, STYLEGAN2 | {"generator_fraction": 0.5, "mapping_layers": 1}, BIGGAN, BIGGAN | {"attention": 16, "generator_ch": 8}],
                         ids=["stylegan2", "student", "biggan", "attention"])
def test_a_skeleton_has_the_shapes_of_a_network_and_no_memory(model):
    config = configs.from_dict({"images": {"path": "digits"}, "model": model}, "test")
    family, arguments = config.model.family, config.model.generator_arguments(3)
    random = torch.get_rng_state()
    with Skeletons():
        skeleton = models.generator(family, arguments)
    assert torch.equal(torch.get_rng_state(), random)
    found, expected = skeleton.state_dict(), models.generator(family, arguments).state_dict()
    assert {key: (value.shape, value.dtype) for key, value in found.items()} == {key: (value.shape, value.dtype) for key, value in expected.items()}
    assert all(value.is_meta for key, value in found.items() if not key.endswith("resample_filter"))


def test_networks_of_one_file_share_no_memory(path):
    """Though a file of another codebase may hold one for both."""
    snapshot = open_snapshot(path)
    shared = replace(snapshot, states={name: snapshot.state_dict("G") for name in ("G", "G_ema")})
    G, average = shared.network("G"), shared.network("G_ema")
    with torch.no_grad():
        G.synthesis.b4.const.zero_()
    assert average.synthesis.b4.const.any() and shared.states["G"]["synthesis.b4.const"].any()


def test_a_snapshot_is_readable_to_whom_the_umask_lets(tmp_path, networks):
    before = os.umask(0o022)
    try:
        save_snapshot(tmp_path / "a.safetensors", networks, CONFIG, IMAGES, seen=7_040)
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o644
