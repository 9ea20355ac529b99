"""`fastdgl export`: the same images without fastdgl, folders of the Hub, and what a wrong call gets to hear."""

import errno
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from numerics import normal

from fastdgl import exporting, load_generator, models
from fastdgl.checkpoints import CheckpointError, open_snapshot, write_snapshot
from fastdgl.cli import main
from fastdgl.models import biggan, stylegan2
from fastdgl.models.batch_norm import standing_statistics
from fastdgl.models.cost import parameter_count
from fastdgl.models.pretrained import PretrainedError

STYLEGAN2 = {"z_dim": 8, "w_dim": 8, "img_resolution": 8, "mapping_layers": 2, "channel_base": 64, "channel_max": 8, "low_precision": "bfloat16",
             "num_fp16_res": 1}
NETWORKS = {
    "stylegan2": ("stylegan2", STYLEGAN2 | {"c_dim": 0}),
    "stylegan2-classes": ("stylegan2", STYLEGAN2 | {"c_dim": 3, "img_channels": 1}),
    "biggan": ("biggan", {"z_dim": 8, "c_dim": 3, "img_resolution": 32, "ch": 8, "shared_dim": 4, "attention": 16}),
}
NAMES = ["cat", "dog", "eel"]
FAMILIES = {"stylegan2": stylegan2.Generator, "biggan": biggan.Generator}

needs_onnx = pytest.mark.skipif(any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
                                reason="onnx, onnxscript and onnxruntime are not all installed")


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """Snapshots of tiny generators, whose discriminator has been left out."""
    folder = tmp_path_factory.mktemp("snapshots")
    for name, (family, arguments) in NETWORKS.items():
        torch.manual_seed(0)
        other, G = (models.generator(family, arguments) for _ in range(2))
        if family == "stylegan2":
            G.mapping.w_avg.normal_()
        else:
            standing_statistics(G, [(torch.randn(16, 8), torch.eye(3)[torch.arange(16) % 3])])
        for key, value in G.named_parameters():
            if key.endswith(("noise_strength", "gamma")):
                value.data.fill_(0.5)
        header = {"family": family, "seen": 0, "classes": NAMES if G.c_dim else None, "G": {"img_channels": 3} | arguments}
        write_snapshot(folder / f"{name}.safetensors", {"G": other.state_dict(), "G_ema": G.state_dict()}, header)
    return {name: folder / f"{name}.safetensors" for name in NETWORKS}


def export(network, kind, destination, *options):
    result = CliRunner().invoke(main, ["export", "--network", str(network), "--format", kind, *options, str(destination)])
    assert isinstance(result.exception, (SystemExit, type(None))), result.exception
    return result


def inputs(name, N=5):
    """z, and classes where the network has some."""
    _, arguments = NETWORKS[name]
    return normal(N, arguments["z_dim"]).float(), *([torch.eye(3)[torch.arange(N) % 3]] if arguments["c_dim"] else [])


@torch.no_grad()
def images(snapshot, name, **options):
    z, c = (*inputs(name), None)[:2]
    return load_generator(snapshot).sample_images(z, c, **options)


def assert_same_images(got, expected):
    assert (torch.as_tensor(got) - expected).abs().max() <= 1e-4 * expected.abs().max()


WITHOUT_FASTDGL = """
import sys
sys.modules |= {"fastdgl": None, "fastdgl_kernels": None}
import torch
for name in sys.argv[1:]:
    draw = torch.export.load(name + ".pt2").module()
    torch.save(draw(*torch.load(name + ".inputs")), name + ".images")
"""


def test_plain_pytorch_draws_the_same_images_from_a_program(snapshots, tmp_path):
    for name, options in (("stylegan2", ["--noise-mode", "none"]), ("biggan", [])):
        result = export(snapshots[name], "pt2", tmp_path / f"{name}.pt2", *options)
        assert result.exit_code == 0, result.output
        torch.save(inputs(name), tmp_path / f"{name}.inputs")
    command = [sys.executable, "-I", "-c", WITHOUT_FASTDGL, "stylegan2", "biggan"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for name, options in (("stylegan2", {"noise_mode": "none"}), ("biggan", {})):
        assert_same_images(torch.load(tmp_path / f"{name}.images"), images(snapshots[name], name, **options))


def test_the_weights_of_a_convolution_are_constants(snapshots):
    """None has weights of each sample's own, whose number would be that of the batch."""
    program = exporting.traced(exporting.Drawing(load_generator(snapshots["stylegan2"]), None, None))
    weights = [node.args[1].meta["val"] for node in program.graph.nodes if "aten.conv" in str(node.target)]
    assert len(weights) > 4 and all(type(size) is int for weight in weights for size in weight.shape)


def test_a_file_that_draws_other_images_is_not_written(snapshots, tmp_path, monkeypatch):
    G = load_generator(snapshots["stylegan2"])
    monkeypatch.setattr(exporting, "traced", lambda drawing: None)
    monkeypatch.setattr(torch.export, "save", lambda program, file: None)
    monkeypatch.setattr(torch.export, "load", lambda file: SimpleNamespace(module=lambda: lambda z: G.sample_images(z, None) + 0.01))
    result = export(snapshots["stylegan2"], "pt2", tmp_path / "G.pt2")
    assert result.exit_code == 1 and "draws other images than PyTorch, for a batch of 1, and was not written" in result.output
    assert os.listdir(tmp_path) == []


@needs_onnx
def test_a_model_that_cannot_be_compared_says_so(snapshots, tmp_path, monkeypatch):
    import onnx

    without(monkeypatch, "onnxruntime")
    monkeypatch.setattr(exporting, "traced", lambda drawing: None)
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **options: SimpleNamespace(model_proto=onnx.ModelProto()))
    result = export(snapshots["stylegan2"], "onnx", tmp_path / "G.onnx")
    assert result.exit_code == 0 and "note: its images were not compared with PyTorch's: onnxruntime is not installed" in result.output


def without(monkeypatch, *packages):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in packages else find_spec(name, *rest))


def test_onnx_asks_for_its_packages(snapshots, tmp_path, monkeypatch):
    without(monkeypatch, "onnx", "onnxscript")
    result = export(snapshots["stylegan2"], "onnx", tmp_path / "G.onnx")
    assert result.exit_code == 1 and 'to write ONNX onnx and onnxscript must be installed: pip install -c constraints.txt -e ".[export]"' in result.output
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("name", "kind", "options", "sentence"), [
    ("biggan", "pt2", ["--trunc", "0.7"], "--trunc 0.7: a generator of family biggan takes no such option"),
    ("biggan", "onnx", ["--noise-mode", "none"], "--noise-mode none: a generator of family biggan takes no such option"),
    ("stylegan2", "hub", ["--trunc", "0.7"], "--trunc 0.7: a folder for the Hub holds the network"),
])
def test_options_that_do_not_go_together_are_refused(snapshots, tmp_path, name, kind, options, sentence):
    result = export(snapshots[name], kind, tmp_path / "G", *options)
    assert result.exit_code == 1 and sentence in result.output
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["pt2", "hub"])
def test_a_place_that_cannot_be_written_is_named(snapshots, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(exporting, "pt2_file", lambda drawing: (b"program", []))
    (tmp_path / "G").mkdir()
    (tmp_path / "G" / "mine").touch()
    result = export(snapshots["stylegan2"], kind, tmp_path / "G")
    assert result.exit_code == 1 and f"{tmp_path / 'G'}: cannot be written" in result.output
    assert os.listdir(tmp_path) == ["G"] and os.listdir(tmp_path / "G") == ["mine"]


def test_a_full_disk_leaves_the_older_file(snapshots, tmp_path, monkeypatch):
    def fills_the_disk(path, data):
        open(path, "w").close()
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "G.pt2").write_text("older")
    monkeypatch.setattr(exporting, "pt2_file", lambda drawing: (b"program", []))
    monkeypatch.setattr(Path, "write_bytes", fills_the_disk)
    result = export(snapshots["stylegan2"], "pt2", tmp_path / "G.pt2")
    assert result.exit_code == 1 and "G.pt2: cannot be written: No space left on device" in result.output
    assert os.listdir(tmp_path) == ["G.pt2"] and (tmp_path / "G.pt2").read_text() == "older"


def test_a_network_that_is_not_there_is_named(tmp_path):
    result = export(tmp_path / "none", "hub", tmp_path / "G")
    assert result.exit_code == 1 and "no such file" in result.output


@pytest.mark.parametrize("name", NETWORKS)
def test_a_folder_of_the_hub_is_the_averaged_generator(snapshots, tmp_path, name):
    family, arguments = NETWORKS[name]
    result = export(snapshots[name], "hub", tmp_path / "G")
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir(tmp_path / "G")) == ["README.md", "config.json", "model.safetensors"]
    G = FAMILIES[family].from_pretrained(tmp_path / "G")
    expected = open_snapshot(snapshots[name]).network("G_ema")
    assert not G.training and G.init_kwargs == {**G.init_kwargs, **expected.init_kwargs}
    for key, value in expected.state_dict().items():
        assert torch.equal(G.state_dict()[key], value)
    assert_same_images(images(tmp_path / "G", name), images(snapshots[name], name))


def test_a_folder_of_the_hub_is_a_snapshot_with_the_names_of_its_classes(snapshots, tmp_path):
    export(snapshots["stylegan2-classes"], "hub", tmp_path / "G")
    snapshot = open_snapshot(tmp_path / "G")
    assert (snapshot.names, snapshot.class_names) == (["G", "G_ema"], NAMES)
    result = CliRunner().invoke(main, ["generate", "--network", str(tmp_path / "G"), "--class", "dog", "--seeds", "1", "--outdir", str(tmp_path)])
    assert result.exit_code == 0, result.output
    CliRunner().invoke(main, ["convert", str(tmp_path / "G"), str(tmp_path / "G.safetensors")])
    back, there = open_snapshot(tmp_path / "G.safetensors"), open_snapshot(snapshots["stylegan2-classes"])
    assert back.class_names == NAMES and back.state_dict("G_ema").keys() == there.state_dict("G_ema").keys()
    assert all(torch.equal(value, back.state_dict("G_ema")[key]) for key, value in there.state_dict("G_ema").items())


def test_the_model_card_tells_what_the_network_is(snapshots, tmp_path):
    export(snapshots["stylegan2-classes"], "hub", tmp_path / "G")
    card = (tmp_path / "G" / "README.md").read_text()
    parameters = parameter_count(load_generator(tmp_path / "G"))
    for line in ("license: unknown", "library_name: fastdgl", "# stylegan2 generator, 8x8", "| images | 8x8, 1 channels, values about [-1, 1] |",
                 "| classes | 3: cat, dog, eel |", f"| parameters | {parameters:,} |", "from fastdgl.models.stylegan2 import Generator"):
        assert line in card.splitlines()


def test_the_model_cards_code_loads_it(snapshots, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user").mkdir()
    for name in NETWORKS:
        export(snapshots[name], "hub", tmp_path / "user" / name)
        code = (tmp_path / "user" / name / "README.md").read_text().split("```python\n")[1].split("```")[0]
        names = {}
        exec(code.replace("user/name", f"user/{name}"), names)
        assert list(names["images"].shape) == [4, names["G"].img_channels, names["G"].img_resolution, names["G"].img_resolution]


def test_a_repository_is_fetched_from_the_hub(snapshots, tmp_path, monkeypatch):
    export(snapshots["biggan"], "hub", tmp_path / "G")
    asked = []

    def snapshot_download(repository, allow_patterns):
        asked.append((repository, allow_patterns))
        return str(tmp_path / "G")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    G = biggan.Generator.from_pretrained("someone/digits")
    assert asked == [("someone/digits", ["config.json", "model.safetensors"])]
    assert torch.equal(G.linear.weight, load_generator(tmp_path / "G").linear.weight)


def test_a_repository_that_cannot_be_fetched_is_named(monkeypatch):
    def snapshot_download(repository, allow_patterns):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(PretrainedError, match="^someone/digits: cannot be fetched from the Hugging Face Hub: no network$"):
        biggan.Generator.from_pretrained("someone/digits")


def test_a_precision_that_is_none_is_refused(snapshots, tmp_path):
    export(snapshots["stylegan2"], "hub", tmp_path / "G")
    config = json.loads((tmp_path / "G" / "config.json").read_text())
    (tmp_path / "G" / "config.json").write_text(json.dumps(config | {"low_precision": "load"}))
    with pytest.raises(PretrainedError, match="low_precision: 'load' is none of float16, bfloat16"):
        stylegan2.Generator.from_pretrained(tmp_path / "G")
    with pytest.raises(CheckpointError, match="low_precision: 'load' is none of float16, bfloat16"):
        open_snapshot(tmp_path / "G").network("G_ema")


def test_without_huggingface_hub_a_repository_asks_for_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PretrainedError, match=r'someone/digits: no such folder, and .* huggingface_hub is needed, .*\[hub\]"$'):
        biggan.Generator.from_pretrained("someone/digits")


def test_a_folder_that_holds_something_else_is_refused(snapshots, tmp_path):
    export(snapshots["biggan"], "hub", tmp_path / "G")
    with pytest.raises(PretrainedError, match="holds a generator of family 'biggan', expected 'stylegan2'"):
        stylegan2.Generator.from_pretrained(tmp_path / "G")
    config = json.loads((tmp_path / "G" / "config.json").read_text())
    (tmp_path / "G" / "config.json").write_text(json.dumps(config | {"ch": 4}))
    with pytest.raises(PretrainedError, match="are not of one network that this fastdgl knows: .*size mismatch"):
        biggan.Generator.from_pretrained(tmp_path / "G")
    del config["img_resolution"]
    (tmp_path / "G" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="config.json describes no generator"):
        open_snapshot(tmp_path / "G")
    (tmp_path / "G" / "config.json").write_text("{")
    for load, error in ((biggan.Generator.from_pretrained, PretrainedError), (open_snapshot, CheckpointError)):
        with pytest.raises(error, match="has no config.json of fastdgl, or a damaged one"):
            load(tmp_path / "G")
    (tmp_path / "G" / "model.safetensors").unlink()
    with pytest.raises(PretrainedError, match="user/name"):
        biggan.Generator.from_pretrained(tmp_path / "none")


def test_huggingface_hubs_own_mixin_reads_the_folder(snapshots, tmp_path):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

    class OfTheHub(hub.PyTorchModelHubMixin, biggan.Generator):
        pass

    export(snapshots["biggan"], "hub", tmp_path / "G")
    G = OfTheHub.from_pretrained(str(tmp_path / "G"))
    assert torch.equal(G.linear.weight, load_generator(tmp_path / "G").linear.weight)


@needs_onnx
@pytest.mark.parametrize(("name", "options", "opset", "equal_to"), [
    ("stylegan2", [], exporting.OPSET, {}),
    ("stylegan2-classes", ["--opset", "13", "--noise-mode", "none", "--trunc", "0.5"], 13, {"truncation": 0.5, "noise_mode": "none"}),
    ("biggan", ["--opset", "15"], 15, {}),
])
def test_a_model_draws_the_same_images_in_onnxruntime_and_says_what_it_is(snapshots, tmp_path, name, options, opset, equal_to):
    """In operators of the version asked for, with a batch named N; its images were compared with PyTorch's before it was written."""
    import onnx
    import onnxruntime

    result = export(snapshots[name], "onnx", tmp_path / "G.onnx", *options)
    assert result.exit_code == 0 and "not compared" not in result.output, result.output
    assert os.listdir(tmp_path) == ["G.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "G.onnx", providers=["CPUExecutionProvider"])
    got, = session.run(["images"], {name: x.numpy() for name, x in zip(("z", "c"), inputs(name))})
    assert_same_images(got, images(snapshots[name], name, **equal_to))

    model = onnx.load(tmp_path / "G.onnx")
    assert [(item.domain, item.version) for item in model.opset_import if item.domain == ""] == [("", opset)]
    for value in (*model.graph.input, *model.graph.output):
        first, *others = value.type.tensor_type.shape.dim
        assert first.dim_param == "N" and all(dim.dim_value > 0 for dim in others)
    said = {item.key: item.value for item in model.metadata_props}
    assert said["family"] == NETWORKS[name][0] and ("classes" in said) == (name != "stylegan2")
    assert said.get("classes") in (None, json.dumps(NAMES)) and ("truncation_psi" in said) == (name != "biggan")


@needs_onnx
def test_a_model_from_w_draws_the_same_images(snapshots, tmp_path):
    import onnxruntime

    assert export(snapshots["stylegan2"], "onnx", tmp_path / "G.onnx", "--from", "w").exit_code == 0
    G, session = load_generator(snapshots["stylegan2"]), onnxruntime.InferenceSession(tmp_path / "G.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        ws = G.mapping(*inputs("stylegan2"))
    assert [item.name for item in session.get_inputs()] == ["ws"] and session.get_inputs()[0].shape == ["N", G.num_ws, G.w_dim]
    assert_same_images(session.run(["images"], {"ws": ws.numpy()})[0], images(snapshots["stylegan2"], "stylegan2"))


@pytest.mark.parametrize(("name", "kind", "options", "sentence"), [
    ("biggan", "onnx", ["--from", "w"], "--from w: a generator of family biggan has no w; leave it out"),
    ("stylegan2", "hub", ["--from", "w"], "--from w: a folder for the Hub holds the whole network; leave it out"),
    ("stylegan2", "pt2", ["--from", "w", "--trunc", "0.5"], "--trunc 0.5: pulls on w, which whoever runs the file gives"),
    ("stylegan2", "pt2", ["--opset", "17"], "--opset 17: is the version of ONNX's operators, and pt2 has none; leave it out"),
    ("stylegan2", "hub", ["--opset", "20"], "--opset 20: is the version of ONNX's operators, and hub has none; leave it out"),
])
def test_options_of_other_formats_are_refused(snapshots, tmp_path, name, kind, options, sentence):
    result = export(snapshots[name], kind, tmp_path / "G", *options)
    assert result.exit_code == 1 and sentence in result.output and os.listdir(tmp_path) == []
