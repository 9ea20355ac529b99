"""Pickles of others: what is plain data is read, anything else is refused by its name, and nothing is run."""

import argparse
import io
import os
import pickle
import random
import re
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from foreign_files import EasyDict, Persistent, pickled
from numerics import normal

from fastdgl.interop.unpickling import Array, ForeignFileError, load


def torch_saved(data, **options):
    """The bytes of a file, the same every time: in the older format storages are called by where they lie in memory."""
    file = io.BytesIO()
    torch.save(data, file, **options)
    saved = file.getvalue()
    for i, address in enumerate(sorted(set(re.findall(rb"(?<=\0\0\0)\d{12,16}", saved)))):
        saved = saved.replace(address, b"%0*d" % (len(address), i))
    return saved


WRITERS = {
    "pickle-2": lambda data: pickled(data, 2), "pickle-3": lambda data: pickled(data, 3), "pickle-5": lambda data: pickled(data, 5),
    "zip": torch_saved, "legacy": lambda data: torch_saved(data, _use_new_zipfile_serialization=False),
}
every_format = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())


@pytest.fixture
def read(tmp_path):
    def read(data):
        path = tmp_path / "file"
        path.write_bytes(data)
        return load(path)
    return read


def sentence(read, data):
    with pytest.raises(ForeignFileError) as error:
        read(data)
    assert "\n" not in str(error.value)
    return str(error.value)


@every_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool], ids=str)
def test_tensors_come_back(read, write, dtype):
    x = (normal(3, 5) * 10).to(dtype)
    found = read(write({"x": x, "part": x.t()[1:3], "parameter": torch.nn.Parameter(normal(2)), "none": x[:0], "number": x[0, 0]}))
    assert found["x"].dtype == dtype and torch.equal(found["x"], x) and torch.equal(found["part"], x.t()[1:3])
    assert torch.equal(found["parameter"], normal(2)) and found["none"].shape == (0, 5) and torch.equal(found["number"], x[0, 0])


@every_format
def test_plain_data_and_records_come_back_as_dicts(read, write):
    state = torch.nn.Linear(2, 3).state_dict()
    assert state._metadata
    found = read(write({"state": state, "args": argparse.Namespace(size=256, rates=[1e-3], size2=torch.Size([2, 3])), "set": {1, 2},
                        "ordered": OrderedDict(a=1)}))
    assert torch.equal(found["state"]["weight"], state["weight"]) and not hasattr(found["state"], "_metadata")
    assert found["args"] == {"size": 256, "rates": [1e-3], "size2": (2, 3)} and found["set"] == {1, 2} and found["ordered"] == {"a": 1}


@every_format
@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_arrays_come_back_in_either_spelling_of_numpy(read, write, core):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    data = write({"x": x, "columns": np.asfortranarray(x), "swapped": x.astype(">f8"), "scalar": np.float64(0.25), "count": np.int64(7)})
    # the names are followed by no length in protocols 2 and 3
    if b"\x80\x05" not in data[:2] and data[:2] != b"PK":
        data = re.sub(rb"numpy\._?core", core.encode(), data)
    found = read(data)
    assert all(isinstance(found[name], Array) and np.array_equal(found[name].value, x) for name in ("x", "columns", "swapped"))
    assert torch.equal(torch.from_numpy(found["swapped"].value), torch.from_numpy(x).double())
    assert (found["scalar"], found["count"]) == (0.25, 7) and type(found["scalar"]) is float


def test_an_object_of_persistence_keeps_its_state_and_not_its_source(read):
    found = read(pickled({"G": Persistent("Generator", {"_init_kwargs": EasyDict(z_dim=512), "x": normal(2)})}))["G"]
    assert found.class_name == "Generator" and found.state["_init_kwargs"] == {"z_dim": 512} and torch.equal(found.state["x"], normal(2))
    assert "SystemExit" not in repr(found)


class Runs:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def mark(tmp_path):
    """A file that the attacks below leave where they succeed."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists()


def opcodes(*parts):
    """A pickle, opcode by opcode; text becomes a short string."""
    text = (b"\x8c" + bytes([len(part)]) + part.encode() if isinstance(part, str) else part for part in parts)
    return b"\x80\x04" + b"".join(text) + b"."


STACK_GLOBAL, TUPLE1, TUPLE2, REDUCE, BUILD, EMPTY_DICT, NONE, SETITEM = b"\x93", b"\x85", b"\x86", b"R", b"b", b"}", b"N", b"s"
MEMOIZE, GET0, GET1, POP = b"\x94", b"h\x00", b"h\x01", b"0"
SET_AN_ATTRIBUTE = (NONE, EMPTY_DICT, "__call__", "x", SETITEM, TUPLE2, BUILD)
# for PyTorch's own __setstate__: wants a gradient, (unused), hooks of it
GIVE_HOOKS = b"\x88K\x00}\x87b"
# attack -> (the pickle, what the refusal names)
ATTACKS = {
    "os.system": (lambda command: pickle.dumps(Runs(os.system, command)), f"{os.system.__module__}.system"),
    "open": (lambda command: pickle.dumps({"G": Runs(open, command.removeprefix("touch "), "w")}), "io.open"),
    "exec": (lambda command: pickle.dumps(Runs(exec, f"import os; os.system({command!r})")), "builtins.exec"),
    "eval": (lambda command: pickle.dumps([1, (2, Runs(eval, f"__import__('os').system({command!r})"))]), "builtins.eval"),
    "getattr": (lambda command: pickle.dumps(Runs(getattr, "x", "upper")), "builtins.getattr"),
    "import": (lambda command: pickle.dumps(Runs(__import__, "this")), "builtins.__import__"),
    "names-from-the-memo": (lambda command: opcodes("system", MEMOIZE, "posix", MEMOIZE, POP, POP, GET1, GET0, STACK_GLOBAL, command, TUPLE1, REDUCE),
                            "posix.system"),
    "dots-in-a-name": (lambda command: opcodes("collections", "OrderedDict.__init__.__globals__", STACK_GLOBAL), "OrderedDict.__init__.__globals__"),
    "through-a-known-function": (lambda command: opcodes("torch_utils.persistence", "_reconstruct_persistent_obj.__globals__", STACK_GLOBAL),
                                 "_reconstruct_persistent_obj.__globals__"),
    "inst-of-protocol-0": (lambda command: b"\x80\x02(S'" + command.encode() + b"'\nios\nsystem\n.", "os.system"),
    "obj-of-protocol-1": (lambda command: b"\x80\x02(cos\nsystem\nU" + bytes([len(command)]) + command.encode() + b"o.", "os.system"),
    "in-the-state-of-persistence": (lambda command: pickled({"G": Persistent("Generator", {"x": Runs(os.system, command)})}), "system"),
    "in-the-bytes-of-a-storage": (lambda command: pickled(Runs(torch.storage._load_from_bytes, pickle.dumps(Runs(os.system, command)))), "system"),
    "in-the-bytes-of-a-storage-of-a-storage": (
        lambda command: pickled(Runs(torch.storage._load_from_bytes, pickle.dumps(Runs(torch.storage._load_from_bytes, b"")))),
        "torch.storage._load_from_bytes"),
    "in-a-zip": (lambda command: torch_saved({"g_ema": Runs(os.system, command)}), "system"),
    "in-a-legacy-file": (lambda command: torch_saved({"g_ema": Runs(os.system, command)}, _use_new_zipfile_serialization=False), "system"),
    "an-array-of-objects": (lambda command: pickle.dumps(np.array([Runs(os.system, command)], dtype=object)), "'O8'"),
    "a-class-of-torch": (lambda command: pickle.dumps(torch.nn.Linear(1, 1)), "torch.nn.modules.linear.Linear"),
    "a-partial": (lambda command: opcodes("functools", "partial", STACK_GLOBAL), "functools.partial"),
    "change-of-a-function": (lambda command: opcodes("torch._utils", "_rebuild_parameter", STACK_GLOBAL, *SET_AN_ATTRIBUTE), "change a function"),
    "change-of-a-class": (lambda command: opcodes("argparse", "Namespace", STACK_GLOBAL, *SET_AN_ATTRIBUTE), "damaged"),
    "change-of-a-tensor": (lambda command: pickled(torch.zeros(4))[:-1] + GIVE_HOOKS + b".", "change a tensor"),
    "something-outside": (lambda command: b"\x80\x02Pos.system\n.", "outside"),
    "tensorflow": (lambda command: opcodes("dnnlib.tflib.tfutil", "run", STACK_GLOBAL), "written by TensorFlow"),
    "change-of-a-network-class": (lambda command: opcodes("dnnlib.tflib.network", "Network", STACK_GLOBAL, *SET_AN_ATTRIBUTE), "damaged"),
}


@pytest.mark.parametrize(("attack", "named"), ATTACKS.values(), ids=ATTACKS.keys())
def test_refuses_by_name_what_is_no_data_and_runs_nothing(read, mark, attack, named):
    before = set(sys.modules)
    said = sentence(read, attack(f"touch {mark}"))
    assert named in said
    assert set(sys.modules) == before


def test_the_attacks_would_run(tmp_path):
    """Not refused because they are broken."""
    for name in ("os.system", "open", "exec", "eval", "names-from-the-memo", "inst-of-protocol-0", "obj-of-protocol-1"):
        path = tmp_path / name
        pickle.loads(ATTACKS[name][0](f"touch {path}"))
        assert path.exists(), name
    for name in ("in-a-zip", "in-a-legacy-file"):
        path = tmp_path / name
        torch.load(io.BytesIO(ATTACKS[name][0](f"touch {path}")), weights_only=False)
        assert path.exists(), name
    assert pickle.loads(ATTACKS["change-of-a-tensor"][0]("")).requires_grad


def test_source_and_pickles_within_an_object_of_persistence_stay_text(read, mark):
    command = f"touch {mark}"
    source = f"import os; os.system({command!r})"
    found = read(pickled({"G": Persistent("Generator", {"inner": pickle.dumps(Runs(os.system, command))}, module_src=source)}))["G"]
    assert isinstance(found.state["inner"], bytes)


def test_known_names_stand_for_the_same_after_a_file_tried_to_change_them(read):
    for attack in ("change-of-a-function", "change-of-a-class"):
        sentence(read, ATTACKS[attack][0]("true"))
    assert read(pickled({"x": torch.nn.Parameter(normal(2)), "a": argparse.Namespace(b=1)}))["a"] == {"b": 1}


@every_format
def test_a_file_that_is_cut_short_is_said_to_be(read, write):
    data = write({"g_ema": {"weight": normal(7, 3), "bias": normal(7)}, "args": argparse.Namespace(size=8), "lr": np.float64(1)})
    for length in range(2, len(data), max(1, len(data) // 40)):
        said = sentence(read, data[:length])
        assert "cut short" in said or "damaged" in said, (length, said)


@every_format
def test_bytes_that_are_changed_never_end_in_a_traceback(read, write):
    data = write({"g_ema": {"weight": normal(2, 3)}, "args": argparse.Namespace(size=8), "lr": np.float64(1), "x": np.arange(3)})
    chance = random.Random(0)
    for _ in range(200):
        changed = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            changed[chance.randrange(len(data))] = chance.randrange(256)
        try:
            read(bytes(changed))
        except ForeignFileError as error:
            assert "\n" not in str(error)


def test_a_zip_of_something_else_is_said_to_be(read):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("img.png", b"")
    assert sentence(read, file.getvalue()) == "is a zip file, and not one of torch.save"


def test_a_record_that_is_compressed_is_refused(read):
    """It could be of any size, by a method that fails in its own way."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}))
    assert sentence(read, file.getvalue()) == "holds a/data.pkl compressed, which torch.save never does"


def test_a_refusal_holds_nothing_that_a_terminal_obeys(read):
    assert "asks for \u00e4?[2J.x," in sentence(read, opcodes("\x1b[2J", b"0\x8c\x06" + "\u00e4\x1b[2J".encode(), "x", STACK_GLOBAL))


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_tensor_stays_inside_its_storage(read):
    evil = Runs(torch._utils._rebuild_tensor_v2, torch.zeros(4).storage(), 2, (4,), (1,), False, OrderedDict())
    assert "damaged" in sentence(read, pickle.dumps(evil))
