"""Pickles of few bytes that ask for much: each ends in a sentence, within memory and time of a file of its size."""

import io
import itertools
import pickle
import struct
import zipfile

import pytest
import torch
from hostile import bounded, one_sentence

from fastdgl import interop
from fastdgl.checkpoints import CheckpointError, load_state
from fastdgl.interop import ForeignFileError


def put(i):
    return b"r" + struct.pack("<I", i)


def get(i):
    return b"j" + struct.pack("<I", i)


def text(words):
    return b"X" + struct.pack("<I", len(words)) + words.encode()


def name(module, name):
    return text(module) + text(name) + b"\x93"


def pairs_of_pairs(levels=40):
    """Opcodes that leave a tuple of 2^levels values on the stack, made of as many tuples as there are levels."""
    return b")" + put(0) + b"".join(get(i) + b"\x86" + put(i + 1) for i in range(levels))


def dicts_of_dicts(names=100, levels=5):
    keys = [text(f"a{i}") for i in range(names)]
    return b"N" + put(0) + b"".join(b"}(" + b"".join(key + get(level) for key in keys) + b"u" + put(level + 1) for level in range(levels))


def lists_filled_from_the_outside_in(levels=40):
    made = b"".join(b"]" + put(i) for i in range(levels + 1))
    return made + b"".join(get(i) + b"(" + get(i - 1) + get(i - 1) + b"e0" for i in range(levels, 0, -1)) + get(levels)


def saved(data):
    file = io.BytesIO()
    torch.save(data, file)
    return file.getvalue()


def legacy_storages(count, numel):
    """A file of PyTorch before 1.6 with so many storages, none of which has its numbers in it."""
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}))
    reference = [b"(" + text("storage") + name("torch", "FloatStorage") + text(str(i)) + text("cpu") + b"J" + struct.pack("<i", numel) + b"NtQ" for i in range(count)]
    return head + b"\x80\x04(" + b"".join(reference) + b"l." + pickle.dumps([], 2) + b"\0" * 5 * numel


DAG = pairs_of_pairs()
BYTES = b"B" + struct.pack("<I", 2**20) + b"x" * 2**20 + put(100)
# what is asked for -> opcodes, without the protocol and the end
OPCODES = {
    "tuples-as-a-key": b"}" + DAG + b"K\x01s", "tuples-as-one-key-of-many": b"}(" + DAG + b"K\x01u", "tuples-in-a-dict-of-protocol-0": b"(" + DAG + b"K\x01d",
    "tuples-in-a-set": b"\x8f(" + DAG + b"\x90", "tuples-in-a-frozenset": b"(" + DAG + b"\x91", "tuples-in-a-called-set": name("builtins", "set") + b"]" + DAG + b"a\x85R",
    "tuples-in-a-called-dict": name("collections", "OrderedDict") + b"](" + DAG + b"K\x01\x86e\x85R",
    "tuples-in-a-namespace": name("argparse", "Namespace") + b")\x81](" + DAG + b"K\x01\x86eb",
    "text-of-tuples-as-a-dtype": name("numpy", "dtype") + DAG + b"\x85R", "text-of-tuples-as-an-encoding": name("_codecs", "encode") + text("a") + DAG + b"\x86R",
    "text-of-tuples-as-a-device": name("torch", "device") + DAG + b"\x85R", "tuples-alone": DAG, "dicts": dicts_of_dicts(), "lists": lists_filled_from_the_outside_in(),
    "itself": b"]" + put(0) + get(0) + b"a", "a-number-in-the-memo": b"N" + put(2**31), "a-number-in-the-memo-of-protocol-0": b"Np99999999999\n",
    "a-shape-that-repeats-a-tuple": name("torch._utils", "_rebuild_tensor_v2") + b"(NK\x00J\xff\xff\xff\x7fK\x01\x85\x86))tR",
    "bytes-as-many-shapes": b"(" + BYTES + name("torch", "Size") + put(1) + b"".join(get(1) + get(100) + b"\x85R" for _ in range(300)) + b"l",
    "text-encoded-often": b"(" + text("x" * 2**20) + put(0) + name("_codecs", "encode") + put(1)
        + b"".join(get(1) + get(0) + text("latin1") + b"\x86R" for _ in range(3000)) + b"l",
    "bytes-as-many-arrays": b"(" + BYTES + name("numpy.core.numeric", "_frombuffer") + put(1) + name("numpy", "dtype") + text("f4") + b"\x85R" + put(2)
        + b"".join(get(1) + b"(" + get(100) + get(2) + b"J" + struct.pack("<i", 2**18) + b"\x85" + text("C") + b"tR" for _ in range(3000)) + b"l",
    "numbers-of-one-hash": b"}(" + b"".join(b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(1, 40_000)) + b"u",
    "a-long-name": b"}" + text("x" * 2**20) + b"Ns", "many-instructions": b"N0" * 10**6 + b"N", "marks": b"(" * 10**6,
}
WIDE = torch.zeros(2**18)
FILES = {key: b"\x80\x04" + value + b"." for key, value in OPCODES.items()} | {
    "a-storage-under-many-names": saved({"g_ema": {f"a{i}": WIDE for i in range(3000)} | dict.fromkeys(["to_rgb1.conv.weight", "conv1.conv.weight"], WIDE)}),
    "many-networks": saved({f"a{i}.{key}": WIDE[:1] for i in range(10_000) for key in ("to_rgb1.conv.weight", "conv1.conv.weight")}),
    "storages-larger-than-the-file": legacy_storages(2000, 2**20),
    "a-resolution-of-tiny-tensors": saved({"g_ema": {
        "style.1.weight": torch.zeros(1, 1), "input.input": torch.zeros(1, 1, 4, 4), "conv1.conv.weight": torch.zeros(1, 1, 1, 1, 1), "to_rgb1.bias": torch.zeros(1, 1, 1, 1),
        "conv1.conv.modulation.weight": torch.zeros(1, 1), "to_rgb1.conv.weight": torch.zeros(1, 1, 1, 1, 1)} | {f"to_rgbs.{i}.conv.weight": torch.zeros(1, 1, 1, 1, 1) for i in range(20)}}),
}


def refused(read, expected, path):
    try:
        read(path)
    except expected as error:
        one_sentence(error)
    else:
        raise AssertionError("it was taken")


@pytest.mark.parametrize("data", FILES.values(), ids=FILES.keys())
def test_a_file_that_asks_for_much_more_than_its_size_is_refused(tmp_path, data):
    (tmp_path / "a.pkl").write_bytes(data)
    bounded(lambda: refused(interop.read, ForeignFileError, tmp_path / "a.pkl"))


@pytest.mark.parametrize("key", ["tuples-as-a-key", "tuples-in-a-set", "numbers-of-one-hash", "a-number-in-the-memo"])
def test_so_is_a_checkpoint(tmp_path, key):
    file = io.BytesIO()
    torch.save({"x": torch.zeros(3)}, file)
    with zipfile.ZipFile(file) as whole, zipfile.ZipFile(tmp_path / "state.pt", "w") as changed:
        for entry in whole.infolist():
            changed.writestr(entry.filename, FILES[key] if entry.filename.endswith("data.pkl") else whole.read(entry))
    bounded(lambda: refused(lambda path: load_state(path.parent), CheckpointError, tmp_path / "state.pt"))


def test_what_shares_a_storage_for_good_reasons_is_read(tmp_path):
    x = torch.arange(12.0)
    (tmp_path / "a.pt").write_bytes(saved({"whole": x, "part": x[3:6], "again": x}))
    found = interop.unpickling.load(tmp_path / "a.pt")
    assert torch.equal(found["part"], x[3:6]) and torch.equal(found["again"], x)


def test_a_process_that_takes_too_much_is_told():
    with pytest.raises(AssertionError, match="memory"):
        bounded(lambda: bytearray(2**32))
    with pytest.raises(AssertionError, match="ended by"):
        bounded(lambda: sum(1 for _ in itertools.count()), seconds=1)
