"""Snapshots, checkpoints and pickles that are damaged, or made to do harm: one sentence, or the networks; nothing is run."""

import copy
import json
import os
import pickle
import struct
import sys
import warnings
from types import SimpleNamespace

import pytest
import tiny_networks
import torch
from foreign_files import write_nvidia
from hostile import damaged, examples, for_all, not_for_ever, one_sentence
from hypothesis import strategies as st
from numerics import normal
from test_checkpoints import CONFIG, IMAGES, make_networks
from test_hostile_configs import values
from test_unpickling import ATTACKS, WRITERS, torch_saved

from fastdgl import config as configs, interop
from fastdgl.assembly import assemble
from fastdgl.checkpoints import CheckpointError, load_state, open_snapshot, save_snapshot
from fastdgl.engines import end_run, start_run
from fastdgl.interop.unpickling import ForeignFileError, load
from fastdgl.latents import Latents
from fastdgl.train import Progress, resume


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    """The bytes of one."""
    path = tmp_path_factory.mktemp("snapshot") / "a.safetensors"
    save_snapshot(path, make_networks(), CONFIG, IMAGES, seen=7_040)
    return path.read_bytes()


def with_header(snapshot, change):
    """A snapshot whose own header, as a dict, `change` has changed."""
    length, = struct.unpack("<Q", snapshot[:8])
    outer = json.loads(snapshot[8:8 + length])
    header = json.loads(outer["__metadata__"]["fastdgl"])
    outer["__metadata__"]["fastdgl"] = change(header) or json.dumps(header)
    text = json.dumps(outer).encode()
    return struct.pack("<Q", len(text)) + text + snapshot[8 + length:]


def networks_or_refused(path):
    """The networks of a file; or None where it is refused in a sentence."""
    with not_for_ever(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = open_snapshot(path)
            return {name: found.network(name) for name in found.names}
        except CheckpointError as error:
            one_sentence(error)


def draws(networks):
    """A network that was taken is one that works."""
    for name, network in networks.items():
        assert all(parameter.isfinite().all() for parameter in network.parameters())
        if name != "D":
            c = torch.eye(network.c_dim)[:2] if network.c_dim else None
            with torch.no_grad():
                assert network(torch.zeros(len(c) if network.c_dim else 2, network.z_dim), c).isfinite().all()


@examples(few=40, many=5000)
def test_a_damaged_snapshot_is_opened_or_refused(examples, tmp_path, snapshot):
    path = tmp_path / "a.safetensors"

    def check(data):
        path.write_bytes(data)
        networks_or_refused(path)

    for_all(damaged([snapshot]), examples, check)


def test_what_nobody_has_touched_is_opened(tmp_path, snapshot):
    (tmp_path / "a.safetensors").write_bytes(with_header(snapshot, lambda header: None))
    draws(networks_or_refused(tmp_path / "a.safetensors"))


@examples(few=40, many=5000)
def test_any_header_is_understood_or_refused(examples, tmp_path, snapshot):
    path = tmp_path / "a.safetensors"
    extremes = st.sampled_from([0, -1, 1, 2, 10**9, 2**40, 10**300, 1e308, float("nan"), True, None, "float16", "bool", [], {}, "x"])
    keys = st.sampled_from(["family", "seen", "classes", "config", "format", "G", "D"])
    inner = st.sampled_from(["z_dim", "c_dim", "w_dim", "mapping_layers", "channel_base", "channel_max", "fraction", "img_resolution", "img_channels",
                             "conv_clamp", "num_fp16_res", "low_precision", "mbstd_group_size", "narrow_const", "ch", "__class__", "self"])

    def check(changes):
        def change(header):
            for kind, key, value in changes:
                # the same {} may come twice, and would be put into itself
                value = copy.deepcopy(value)
                if kind == "outer":
                    header[key[0]] = value
                elif isinstance(header.get(kind), dict):
                    header[kind][key[1]] = value

        path.write_bytes(with_header(snapshot, change))
        networks = networks_or_refused(path)
        if networks is not None:
            draws(networks)

    changes = st.tuples(st.sampled_from(["outer", "G", "G", "D"]), st.tuples(keys, inner), st.one_of(extremes, values.filter(_is_json)))
    for_all(st.lists(changes, min_size=1, max_size=2), examples, check)


def _is_json(value):
    try:
        return bool(json.dumps(value))
    except (TypeError, ValueError):
        return False


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": ' + "9" * 5000 + "}", "[]", '"x"', "", '{"format": 1, "G": "x"}', '{"format": [1]}'],
                         ids=["deep", "digits", "list", "text", "empty", "no-arguments", "format"])
def test_a_header_made_to_do_harm_is_refused(tmp_path, snapshot, text):
    (tmp_path / "a.safetensors").write_bytes(with_header(snapshot, lambda header: text or " "))
    assert networks_or_refused(tmp_path / "a.safetensors") is None


def tampered(snapshot, change):
    """A snapshot of which `change` has changed what safetensors says of each tensor."""
    length, = struct.unpack("<Q", snapshot[:8])
    outer = json.loads(snapshot[8:8 + length])
    change(outer)
    text = json.dumps(outer).encode()
    return struct.pack("<Q", len(text)) + text + snapshot[8 + length:]


CONST = "G.synthesis.b4.const"
TAMPERED = {
    "offsets-beyond": lambda outer: outer[CONST].update(data_offsets=[0, 10**12]),
    "offsets-backwards": lambda outer: outer[CONST].update(data_offsets=outer[CONST]["data_offsets"][::-1]),
    "offsets-negative": lambda outer: outer[CONST].update(data_offsets=[-4, 4]),
    "overlapping": lambda outer: outer[CONST].update(data_offsets=outer["G.mapping.w_avg"]["data_offsets"]),
    "shape": lambda outer: outer[CONST].update(shape=[2**40, 2**40]),
    "shape-that-overflows": lambda outer: outer[CONST].update(shape=[2**62, 4, 1]),
    "dtype": lambda outer: outer[CONST].update(dtype="I32"),
    "no-dtype": lambda outer: outer[CONST].update(dtype="F31"),
    "8-bits": lambda outer: outer[CONST].update(dtype="F8_E4M3", shape=[*outer[CONST]["shape"], 4]),
    "missing": lambda outer: outer.pop(CONST),
    "deep": lambda outer: outer.update(x=json.loads("[" * 500 + "]" * 500)),
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED.keys())
def test_tensors_that_are_not_where_or_what_they_claim_are_refused(tmp_path, snapshot, change):
    (tmp_path / "a.safetensors").write_bytes(tampered(snapshot, change))
    assert networks_or_refused(tmp_path / "a.safetensors") is None


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**63, 2**64 - 1], ids=str)
def test_a_header_of_any_claimed_length_is_refused(tmp_path, snapshot, length):
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", length) + snapshot[8:])
    assert networks_or_refused(tmp_path / "a.safetensors") is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_networks_that_have_diverged_are_refused_by_name(tmp_path, value):
    networks = make_networks()
    networks["G_ema"].synthesis.b4.const.data[0, 0, 0] = value
    save_snapshot(tmp_path / "a.safetensors", networks, CONFIG, IMAGES, seen=0)
    open_snapshot(tmp_path / "a.safetensors").network("D")
    with pytest.raises(CheckpointError, match="G_ema in .*: synthesis.b4.const holds NaN or infinity"):
        open_snapshot(tmp_path / "a.safetensors").network("G_ema")


@examples(few=40, many=5000)
def test_any_pretrained_folder_is_read_or_refused(examples, tmp_path):
    make_networks()["G"].save_pretrained(tmp_path / "G", class_names=["cat", "dog", "owl"])
    config, weights = ((tmp_path / "G" / name).read_bytes() for name in ("config.json", "model.safetensors"))

    def check(pair):
        data, is_config = pair
        (tmp_path / "G/config.json").write_bytes(data if is_config else config)
        (tmp_path / "G/model.safetensors").write_bytes(weights if is_config else data)
        networks_or_refused(tmp_path / "G")

    for_all(st.one_of(st.tuples(damaged([config]), st.just(True)), st.tuples(damaged([weights]), st.just(False))), examples, check)


# training checkpoints


@examples(few=40, many=5000)
def test_a_damaged_state_is_loaded_or_refused(examples, tmp_path):
    state = {"student": {"G_ema": {"w": normal(3)}, "start_images": 0}, "progress": {"seen": 8}, "carried_by": {"ranks": 1}}
    files = [torch_saved(state), torch_saved(state, _use_new_zipfile_serialization=False)]

    def check(data):
        (tmp_path / "state.pt").write_bytes(data)
        with not_for_ever(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                load_state(tmp_path)
            except CheckpointError as error:
                one_sentence(error)

    for_all(damaged(files), examples, check)


@pytest.fixture(scope="module")
def student():
    """One that has stepped once, and its config."""
    config = configs.from_dict({"images": {"path": "digits"}, "engine": {"kind": "torch"}, "model": tiny_networks.STYLEGAN2 | {"channels": 1}}, "tiny")
    run = start_run()
    yield assemble(config, SimpleNamespace(label_dim=0, class_names=None, label_kind=None), run, resumed=False)
    end_run()


def step(student):
    for engine in student.engines.values():
        for parameter in engine.module.parameters():
            parameter.grad = torch.ones_like(parameter)
        engine.step()


THINGS = st.one_of(values, st.sampled_from([
    -1, 2**70, float("nan"), b"x", (), torch.zeros([]), torch.zeros(0), torch.zeros(3), torch.zeros(2, 3, dtype=torch.int64), torch.zeros(8, dtype=torch.bool),
    torch.zeros(8, dtype=torch.complex64), torch.zeros(1).expand(2**20, 2**20), torch.zeros(8).to_sparse(), torch.zeros(5056, dtype=torch.uint8), torch.Size([1])]))


@st.composite
def changes(draw, files):
    """Where in one of the files of a checkpoint something is left out, called otherwise, or replaced by another: keys, and what to do there."""
    keys, here = [], files
    while isinstance(here, dict) and here and (len(keys) < 2 or draw(st.integers(0, 4))):
        keys.append(draw(st.sampled_from(sorted(here))))
        here = here[keys[-1]]
    return keys, *draw(st.one_of(st.just(("remove", None)), st.tuples(st.just("rename"), st.one_of(st.text(max_size=4), st.integers(), st.none())),
                                 st.tuples(st.just("replace"), THINGS)))


def changed(files, keys, fault, thing):
    """A copy of the files with that change."""
    file, *keys, last = keys
    content = here = copy.deepcopy(files[file])
    for key in keys:
        here = here[key]
    value = here.pop(last)
    if fault != "remove":
        here[thing if fault == "rename" else last] = value if fault == "rename" else thing
    return files | {file: content}


@examples(few=40, many=5000)
def test_any_state_is_gone_on_from_or_refused(examples, tmp_path, student):
    latents = Latents(0, torch.zeros(1, dtype=torch.int64), torch.device("cpu"), c_dim=0)
    step(student)
    state = {"student": student.state_dict(), "latents": latents.state_dict(), "progress": vars(Progress(8)), "faults": {3: "damaged"}, "carried_by": {"engine.precision": "fp32"},
             "labels": {"kind": None, "dim": 0, "names": None}}
    files = {name: engine.state_dict() for name, engine in student.engines.items()} | {"state": state}

    def check(change):
        for name, content in changed(files, *change).items():
            torch.save(content, tmp_path / f"{name}.pt")
        progress = Progress(0)
        with not_for_ever():
            try:
                resume(student, latents, progress, SimpleNamespace(faults={}, label_dim=0, class_names=None, label_kind=None), tmp_path, "fp32")
            except CheckpointError as error:
                one_sentence(error)
            else:
                # what was taken is there to be gone on with
                step(student)
                latents.normal([2, 3])
                assert isinstance(progress.seen + progress.iteration + progress.tick + progress.rollbacks, int) and isinstance(progress.elapsed, float)
                assert isinstance(student.start_images, int)

    for_all(changes(files), examples, check)


@pytest.mark.parametrize("attack", ["os.system", "in-a-zip", "in-a-legacy-file", "eval"])
def test_a_state_that_runs_something_is_refused(tmp_path, attack):
    (tmp_path / "state.pt").write_bytes(ATTACKS[attack][0](f"touch {tmp_path / 'ran'}"))
    with pytest.raises(CheckpointError):
        load_state(tmp_path)
    assert not (tmp_path / "ran").exists()


# pickles of others


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """A file of NVIDIA's and one of rosinality's, and small pickles of each format."""
    folder = tmp_path_factory.mktemp("foreign")
    networks = make_networks()
    states = {name: network.state_dict() for name, network in networks.items()}
    files = [write_nvidia(folder / f"{protocol}.pkl", states["G"], states["D"], protocol=protocol).read_bytes() for protocol in (2, 4)]
    return files + [write({"g_ema": {"weight": normal(2, 3)}, "latent_avg": normal(3)}) for write in WRITERS.values()]


@examples(few=60, many=8000)
def test_a_damaged_foreign_file_is_read_or_refused_and_nothing_is_run(examples, tmp_path, stand_ins):
    modules = set(sys.modules)

    def check(data):
        (tmp_path / "a.pkl").write_bytes(data)
        with not_for_ever():
            try:
                interop.read(tmp_path / "a.pkl")
            except ForeignFileError as error:
                one_sentence(error)

    for_all(damaged(stand_ins), examples, check)
    assert not {name for name in set(sys.modules) - modules if name.partition(".")[0] in ("os", "posix", "dnnlib", "training", "torch_utils")}
    assert os.listdir(tmp_path) == ["a.pkl"]


OPCODES = [bytes([code]) for code in range(256)]


@examples(few=60, many=20000)
def test_any_opcodes_are_read_or_refused_and_nothing_is_run(examples, tmp_path):
    """Pickles put together of whole opcodes reach further than bytes that were changed."""
    names = st.sampled_from([("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2"), ("numpy", "dtype"), ("numpy", "ndarray"),
                             ("torch_utils.persistence", "_reconstruct_persistent_obj"), ("builtins", "set"), ("torch", "Size"), ("os", "system"),
                             ("torch.storage", "_load_from_bytes"), ("numpy.core.multiarray", "scalar"), ("numpy.core.multiarray", "_reconstruct"),
                             ("_codecs", "encode"), ("argparse", "Namespace"), ("torch", "FloatStorage"), ("torch", "device")])
    parts = st.one_of(
        names.map(lambda name: f"c{name[0]}\n{name[1]}\n".encode()), st.sampled_from([b"(", b")", b"]", b"}", b"N", b"t", b"\x85", b"\x86", b"\x87"]),
        st.sampled_from([b"R", b"b", b"s", b"u", b"a", b"e", b"o", b"\x81", b"\x92", b"\x90", b"\x91", b"\x8f", b"Q", b"2", b"0", b"1", b"\x94"]),
        st.integers(0, 3).map(lambda i: b"h" + bytes([i])), st.integers(0, 255).map(lambda i: b"K" + bytes([i])), st.just(b"J\xff\xff\xff\xff"),
        st.just(b"\x8a\x09" + b"\xff" * 8 + b"\x00"), st.sampled_from([b"\x8c\x02f4", b"\x8c\x06latin1", b"C\x04abcd", b"\x8c\x01V", b"G" + struct.pack(">d", 1e308)]),
        st.sampled_from(OPCODES))

    def check(opcodes):
        (tmp_path / "a.pkl").write_bytes(b"\x80\x04" + b"".join(opcodes) + b".")
        with not_for_ever(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                interop.read(tmp_path / "a.pkl")
            except ForeignFileError as error:
                one_sentence(error)

    for_all(st.lists(parts, max_size=20), examples, check)
    assert os.listdir(tmp_path) == ["a.pkl"]



@pytest.mark.parametrize("nesting", ["\x85", "K\x01\x86", "q\x000h\x00\x85", "q\x000ctorch\nSize\nh\x00\x85\x85R"], ids=["tuples", "pairs", "through-the-memo", "sizes"])
def test_data_within_data_is_refused_before_python_is_led_down(tmp_path, nesting):
    """The key of a dict is hashed, as deep as it is, and the process crashes: Python's own unpickler does."""
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04})" + nesting.encode("latin1") * 200_000 + b"K\x01s.")
    with not_for_ever(), pytest.raises(ForeignFileError, match="^holds data within data, too deep to be networks$"):
        load(tmp_path / "a.pkl")


def test_long_data_is_not_taken_for_deep(tmp_path, monkeypatch):
    monkeypatch.setattr("fastdgl.interop.unpickling.MAX_DEPTH", 8)
    # pickled a thousand at a time
    data = {"list": list(range(10_000)), "dict": {str(i): (i,) for i in range(10_000)}, "set": set(range(10_000))}
    for protocol in (2, 4):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(data, protocol))
        assert load(tmp_path / "a.pkl") == data
