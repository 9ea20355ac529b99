"""Reads what other programs pickled, and runs nothing of it.

A pickle names classes and functions, to be called while it is read. Here a fixed list of names is known, `KNOWN`, and each
stands for plain data; any other is refused. No module is imported for a file.

Memory and time are bounded by the file's size, because a pickle can refer to one value many times: forty pairs of pairs stand
for 2^40 values. `check_opcodes` looks at a pickle before anything is made of it, a `Budget` counts what its calls make, and
`check_expanded` counts the values of the result as often as they are referred to.
"""

import io
import math
import os
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..sentences import printable

ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"
# what torch.save wrote before it wrote zip files: this number, a version, facts of the machine, the object, keys, storages
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
# of data within data; that of NVIDIA's networks is some dozen
MAX_DEPTH = 500
# instructions of a pickle, and values, counted as often as they are referred to; NVIDIA's networks have some ten thousand
MAX_OPCODES = 400_000
# of a checkpoint of fastdgl, which may name a million classes
MAX_OPCODES_OF_OURS = 4_000_000
# of a dict: characters of a name, and numbers, whose hashes collide when they are larger
MAX_KEY_LENGTH, MAX_KEY = 1000, 2**60


class ForeignFileError(ValueError):
    """A file that cannot be read or written in another program's format, in one sentence without the file's name."""

    def __init__(self, message: str):
        super().__init__(printable(message))


class Budget:
    """The bytes that calls in a file may make, in proportion to its size.

    Args:
        size: Bytes of the file.
        most: Instructions of a pickle in it, and values.
    """

    def __init__(self, size: int, most: int):
        self.left, self.most = 4 * size + 2**20, most

    def spend(self, made: int) -> None:
        """Count bytes.

        Raises:
            ForeignFileError: There are too many for the file.
        """
        self.left -= made
        if self.left < 0:
            raise ForeignFileError("asks for far more memory than its own size")


# of the file that is being read
_budget: ContextVar[Budget] = ContextVar("budget")


@contextmanager
def budget_for(size: int, most: int) -> Iterator[None]:
    """Inside, a file is read; see `Budget`."""
    token = _budget.set(Budget(size, most))
    try:
        yield
    finally:
        _budget.reset(token)


def spend(made: int) -> None:
    """Count bytes that a call makes; see `Budget`."""
    _budget.get().spend(made)


def is_key(value: Any) -> bool:
    """Return whether a value may name another: short text, or a number whose hash is itself."""
    return type(value) is str and len(value) <= MAX_KEY_LENGTH or type(value) in (int, bool) and abs(value) < MAX_KEY


def check_keys(keys: Iterable[Any]) -> None:
    """Reject keys that take long to hash or to print.

    Raises:
        ForeignFileError: One is neither short text nor a number of 60 bits.
    """
    if not all(map(is_key, keys)):
        raise ForeignFileError(f"holds a dict or set with a key that is neither a number nor text of up to {MAX_KEY_LENGTH} characters")


def check_integers(values: Any, what: str) -> None:
    """Reject what is no tuple of integers, such as a shape.

    Raises:
        ForeignFileError: It is something else.
    """
    if type(values) not in (tuple, list) or len(values) > MAX_DIMENSIONS or not all(type(value) is int and abs(value) < 2**63 for value in values):
        raise ForeignFileError(f"is damaged: a {what} of it is no list of numbers")


class Entries(dict):
    """An OrderedDict or EasyDict. Attributes that were set on it are dropped, such as the `_metadata` of a state dict."""

    __slots__ = ()

    def __init__(self, pairs: Any = ()):
        # of Python 2: a list of pairs
        if type(pairs) not in (list, tuple) or not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
            raise ForeignFileError("holds a dict that is made of no pairs")
        check_keys(key for key, _ in pairs)
        spend(8 * len(pairs))
        super().__init__(pairs)

    def __setstate__(self, state: Any) -> None:
        pass


class Attributes(dict):
    """An argparse.Namespace, as the dict of its attributes."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.update(_plain_dict(state))


class PersistentObject(NamedTuple):
    """An object of NVIDIA's `torch_utils.persistence`, without the source code that came with it.

    state: Its attributes; of a module `_parameters`, `_buffers`, `_modules`, the settings of the layer, and `_init_kwargs`.
    """

    class_name: str
    state: dict[str, Any]


class TensorFlowNetwork:
    """A network of NVIDIA's TensorFlow code, `dnnlib.tflib.network.Network`, without the source code that came with it.

    name, function: Its own, and that of the function that built it.
    settings: What that function was called with.
    components: Networks in it, by name.
    variables: Name and value of each of its own.
    """

    __slots__ = ("name", "function", "settings", "components", "variables")

    def __init__(self) -> None:
        self.name, self.function, self.settings, self.components, self.variables = "", "", {}, {}, []

    def __setstate__(self, state: Any) -> None:
        state = _plain_dict(state)
        self.name, self.function = (_text(state[key])[:50] for key in ("name", "build_func_name"))
        self.settings, self.components = _plain_dict(state["static_kwargs"]), _plain_dict(state.get("components", {}))
        self.variables = []
        if type(state["variables"]) not in (list, tuple):
            raise ForeignFileError("holds a network whose variables are no list")
        spend(8 * len(state["variables"]))
        for name, value in state["variables"]:
            check_keys([name])
            self.variables.append((_text(name), value))


class DType:
    """A numpy.dtype of plain numbers."""

    __slots__ = ("kind", "order")

    def __init__(self, kind: Any, align: Any = False, copy: Any = False):
        match = re.fullmatch(r"([<>=|]?)([iuf][1248]|b1)", _text(kind))
        if match is None:
            raise ForeignFileError(f"holds numpy.dtype({_text(kind)[:50]!r}), which is not read; expected numbers")
        self.order, self.kind = match[1] or "=", match[2]

    def __setstate__(self, state: Any) -> None:
        _, order, subarray, names, fields, *_ = state
        self.order = _text(order)
        if self.order not in tuple("<>=|") or not (subarray is names is fields is None):
            raise ForeignFileError("holds a structured numpy.dtype, which is not read; expected numbers")

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.order + self.kind)


class Array:
    """A numpy.ndarray of plain numbers, in `value`. It is made when asked for: a file may hold its bytes once, and fill many arrays from them."""

    __slots__ = ("data", "dtype", "shape", "order")

    def __init__(self) -> None:
        self.data, self.dtype, self.shape, self.order = b"", np.dtype("f8"), (0,), "C"

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        self.fill(data, dtype, shape, "F" if is_fortran is True or is_fortran == 1 else "C")

    def fill(self, data: bytes, dtype: DType, shape: tuple[int, ...], order: str) -> None:
        check_integers(shape, "shape")
        if type(data) not in (bytes, bytearray) or not isinstance(dtype, DType) or type(order) is not str or order not in ("C", "F"):
            raise ForeignFileError("is damaged: an array of it is no numbers")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.dtype.itemsize != len(data):
            raise ForeignFileError(f"is damaged: an array of {len(data)} bytes is to be {list(shape)}")
        self.data, self.dtype, self.shape, self.order = data, dtype.dtype, tuple(shape), order

    @property
    def value(self) -> np.ndarray:
        # our own memory in the machine's byte order, which is what PyTorch takes
        return np.frombuffer(self.data, self.dtype).reshape(self.shape, order=self.order).astype(self.dtype.newbyteorder("="))

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Function:
    """What a function's name in a pickle stands for. A pickle may call it, and not change it."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ForeignFileError("tries to change a function")


class Numbers(Tensor):
    """A tensor. A pickle may not change it as PyTorch's own could be: made larger, by memory that nobody wrote, or given hooks."""

    def __setstate__(self, state: Any) -> None:
        raise ForeignFileError("tries to change a tensor")


def _text(value: Any) -> str:
    """Return a value that is text: to make text of anything else, Python goes through all that is in it."""
    if type(value) is not str:
        raise ForeignFileError(f"holds a {type(value).__name__} where text is expected")
    return value


def _plain_dict(value: Any) -> dict[Any, Any]:
    """Return a copy of a value that is a dict."""
    if not isinstance(value, dict):
        raise ForeignFileError(f"holds a {type(value).__name__} where a dict is expected")
    spend(8 * len(value))
    return dict(value)


def _persistent_object(meta: Any) -> PersistentObject:
    state, class_name = meta["state"], meta["class_name"]
    if _text(meta["type"]) != "class" or not isinstance(state, dict) or not isinstance(class_name, str):
        raise ForeignFileError("holds an object of torch_utils.persistence that is no class")
    return PersistentObject(class_name, state)


def _tensor(storage: Tensor, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    check_integers(shape, "shape")
    check_integers(stride, "stride")
    check_integers([offset], "offset")
    if not isinstance(storage, Tensor) or min(shape, default=0) < 0 or math.prod(shape) > storage.numel():
        raise ForeignFileError(f"is damaged: a tensor of {storage.numel() if isinstance(storage, Tensor) else 0} numbers is to be {list(shape)}")
    # a view, and PyTorch checks that it stays inside
    return storage.as_strided(shape, stride, offset).as_subclass(Numbers)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """How bytes are written for Python 2."""
    if _text(encoding) != "latin1":
        raise ForeignFileError(f"holds bytes encoded as {encoding[:50]!r}; expected 'latin1'")
    spend(len(_text(text)))
    return text.encode(encoding)


def _number(dtype: DType, data: bytes) -> float | int | bool:
    if type(data) is not bytes or not isinstance(dtype, DType):
        raise ForeignFileError("is damaged: a number of it is none")
    return np.frombuffer(data, dtype.dtype, count=1)[0].item()


def _empty_array(*_: Any) -> Array:
    return Array()


def _array(data: bytes, dtype: DType, shape: tuple[int, ...], order: str) -> Array:
    array = Array()
    array.fill(data, dtype, shape, order)
    return array


def _set(items: Any = ()) -> set[Any]:
    if type(items) not in (list, tuple, set):
        raise ForeignFileError("holds a set that is made of no list")
    check_keys(items)
    spend(8 * len(items))
    return set(items)


def _size(shape: Any = ()) -> tuple[int, ...]:
    check_integers(shape, "shape")
    return tuple(shape)


def _device(kind: str, index: int | None = None) -> str:
    check_integers([] if index is None else [index], "device")
    return _text(kind)[:50] + ("" if index is None else f":{index}")


def _storage(data: bytes) -> Tensor:
    if type(data) is not bytes:
        raise ForeignFileError("is damaged: a storage of it is no bytes")
    # it is looked through opcode by opcode each time
    spend(len(data) + 1000)
    # storages within a storage are not
    return _torch_file(io.BytesIO(data), {name: known for name, known in KNOWN.items() if name != ("torch.storage", "_load_from_bytes")})


# dimensions of a tensor, and of a shape
MAX_DIMENSIONS = 64
# as the names of storages begin
DTYPES = {"Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16, "Long": torch.int64,
          "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool}

# (module, name) -> what it stands for
KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Entries,
    ("dnnlib.util", "EasyDict"): Entries,
    ("dnnlib", "EasyDict"): Entries,
    ("argparse", "Namespace"): Attributes,
    ("dnnlib.tflib.network", "Network"): TensorFlowNetwork,
    ("builtins", "set"): Function(_set),
    ("__builtin__", "set"): Function(_set),
    ("_codecs", "encode"): Function(_encoded),
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Function(_persistent_object),
    ("torch", "Size"): Function(_size),
    ("torch", "device"): Function(_device),
    ("torch._utils", "_rebuild_tensor"): Function(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Function(_tensor),
    ("torch._utils", "_rebuild_parameter"): Function(_parameter),
    ("torch.storage", "_load_from_bytes"): Function(_storage),
    ("torch.storage", "UntypedStorage"): torch.uint8,
    ("numpy", "dtype"): DType,
    ("numpy", "ndarray"): "numpy.ndarray",
}
KNOWN |= {("torch", f"{name}Storage"): dtype for name, dtype in DTYPES.items()}
KNOWN |= {("torch", str(dtype).removeprefix("torch.")): dtype for dtype in DTYPES.values()}
for _core in ("numpy.core", "numpy._core"):
    KNOWN |= {(f"{_core}.multiarray", "scalar"): Function(_number), (f"{_core}.multiarray", "_reconstruct"): Function(_empty_array),
              (f"{_core}.numeric", "_frombuffer"): Function(_array)}


class Unpickler(pickle.Unpickler):
    """Knows `known`, and no other name.

    Args:
        storage: Gives the numbers of a storage, `[numel]`: called with its dtype, key and numel.
    """

    def __init__(self, file: BinaryIO, known: Mapping[tuple[str, str], Any], storage: Callable[[torch.dtype, str, int], Tensor] | None = None):
        # text of Python 2 is read as what it was
        super().__init__(file, encoding="latin1")
        self.file, self.known, self.storage = file, known, storage

    def load(self) -> Any:
        start = self.file.tell()
        size = self.file.seek(0, io.SEEK_END) - start
        self.file.seek(start)
        check_opcodes(self.file, size, _budget.get().most)
        self.file.seek(start)
        return super().load()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.known:
            return self.known[module, name]
        hint = ""
        if module.startswith("dnnlib.tflib"):
            hint = "; it was written by TensorFlow, of whose pickles fastdgl reads those of StyleGAN2"
        raise ForeignFileError(f"asks for {module}.{name}, which is none of the names that are read, and was refused; nothing was run{hint}")

    def persistent_load(self, reference: Any) -> Tensor:
        kind, dtype, key, _, numel, *view = reference
        known = type(kind) is str and kind == "storage" and isinstance(dtype, torch.dtype) and is_key(key) and type(numel) is int and numel >= 0
        if self.storage is None or not known or any(part is not None for part in view):
            raise ForeignFileError("refers to something outside that is no tensor of PyTorch's")
        return self.storage(dtype, str(key), numel).as_subclass(Numbers)


# opcode -> how many values it takes below the mark or without one, whether it takes all down to the mark, what it leaves (None a mark)
_MARK = pickletools.markobject
EFFECTS = {opcode.name: (opcode.stack_before.index(_MARK) if _MARK in opcode.stack_before else len(opcode.stack_before), _MARK in opcode.stack_before,
                         [made is _MARK for made in opcode.stack_after]) for opcode in pickletools.opcodes}
INTO = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS"}
PUTS, GETS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"GET", "BINGET", "LONG_BINGET"}
WORDS = {"NEWTRUE": True, "NEWFALSE": False}


def check_opcodes(file: BinaryIO, size: int, most: int) -> None:
    """Reject a pickle that would take Python far more time or memory than its size, before anything is made of it.

    The opcodes of one pickle are read. For each value on the unpickler's stack is known how deep data lies in it, 0 for what may be
    the key of a dict. A key is hashed, and Python's hash of a tuple goes through all that is in it as often as it is referred to.
    The memo is an array as long as its highest index.

    Args:
        size: Bytes of the file from here.
        most: Instructions that it may have.

    Raises:
        ForeignFileError: It is deeper than MAX_DEPTH, has more instructions, a memo larger than the file, or another key.
        ValueError, LookupError: It is damaged.
    """
    stack: list[int | None] = []                                      # None for a mark
    memo: dict[int, int] = {}
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if number >= most:
            raise ForeignFileError(f"is a pickle of more than {most} instructions, too many to be networks")
        if name in PUTS:
            index = len(memo) if argument is None else argument
            if not 0 <= index <= size:
                raise ForeignFileError(f"is damaged: it numbers a value {index:.3g}, in a file of {size} bytes")
            memo[index] = 1 if stack[-1] is None else stack[-1]
        elif name in GETS:
            stack.append(memo[argument])
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            below, to_mark, made = EFFECTS[name]
            items: list[int] = []
            if to_mark:
                while (part := stack.pop()) is not None:
                    items.append(part)
            parts = [stack.pop() or 0 for _ in range(below)]
            keys = items[1::2] if name in ("SETITEMS", "DICT") else items if name in ("ADDITEMS", "FROZENSET") else parts[1:2] if name == "SETITEM" else ()
            if any(keys):
                raise ForeignFileError(f"holds a dict or set with a key that is neither a number nor text of up to {MAX_KEY_LENGTH} characters")
            # what is put into a list adds to how deep it is, and not how often
            into = parts.pop() if name in INTO else 0
            plain = not to_mark and not below and is_key(WORDS.get(name, argument)) and name not in ("GLOBAL", "INST", "PERSID", "EXT1", "EXT2", "EXT4")
            depth = 0 if plain else max(into, 1 + max(max(parts, default=0), max(items, default=0)))
            if depth > MAX_DEPTH:
                raise ForeignFileError("holds data within data, too deep to be networks")
            stack.extend(None if is_mark else depth for is_mark in made)


def check_expanded(data: Any, size: int, most: int) -> None:
    """Reject what is small in memory, but not to those who go through it: values within values, counted as often as they are referred to.

    Args:
        size: Bytes of the file.
        most: Values that it may stand for.

    Raises:
        ForeignFileError: There are more values, or more numbers in tensors than the file can hold, or something lies in itself.
    """
    # by id: values and numbers in it, or None for what is being counted
    counted: dict[int, tuple[int, int] | None] = {}
    stack = [data]
    while stack:
        item = stack[-1]
        if counted.get(id(item)) is not None:
            stack.pop()
            continue
        parts = [part for part in parts_of(item) if type(part) not in PLAIN]
        if id(item) not in counted:
            counted[id(item)] = None
            # those that are being counted lie around this one
            if any(counted.get(id(part), 0) is None for part in parts):
                raise ForeignFileError("holds data that lies in itself, which networks do not")
            stack.extend(parts)
        else:
            values, numbers = 1 + len(parts_of(item)), item.numel() if isinstance(item, Tensor) else item.size if isinstance(item, Array) else 0
            for part in parts:
                more_values, more_numbers = counted[id(part)]
                values, numbers = values + more_values, numbers + more_numbers
            if values > most:
                raise ForeignFileError(f"stands for more than {most} values, too many to be networks")
            # the least that a number takes is a byte; some tensors may be there twice
            if numbers > 2 * size + 2**20:
                raise ForeignFileError(f"stands for {numbers:.3g} numbers, in a file of {size} bytes")
            counted[id(item)] = values, numbers
            stack.pop()


PLAIN = (str, bytes, int, float, bool, type(None), torch.dtype)


def parts_of(item: Any) -> list[Any]:
    """Return the values that lie in one."""
    if isinstance(item, dict):
        return list(item.values())
    if isinstance(item, (list, tuple, set, frozenset)):
        return list(item)
    if isinstance(item, TensorFlowNetwork):
        return [item.settings, item.components, item.variables]
    return []


# what damaged bytes make of a pickle, a zip file, or of the arguments of what is called
DAMAGE = (pickle.UnpicklingError, EOFError, zipfile.BadZipFile, struct.error, LookupError, TypeError, ValueError,
          AttributeError, RuntimeError, ArithmeticError, OSError)


def damaged(error: Exception) -> ForeignFileError:
    """Return what to say of an error that damaged bytes have made."""
    return ForeignFileError(f"is cut short or damaged ({' '.join(str(error).split())[:100]})")


def load(path: Path, most: int = MAX_OPCODES) -> Any:
    """Return what is pickled in a file of `pickle.dump` or `torch.save`: dicts, lists, numbers, tensors and the records above.

    Args:
        most: Instructions that a pickle in it may have, and values that it may stand for.

    Raises:
        ForeignFileError: It asks for something that is not plain data, or it is damaged.
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with budget_for(size, most):
                found = _torch_file(file, KNOWN)
            check_expanded(found, size, most)
            return found
        except ForeignFileError:
            raise
        except MemoryError:
            raise ForeignFileError("asks for more memory than there is") from None
        except DAMAGE as error:
            raise damaged(error) from None


def load_checkpoint(path: Path) -> Any:
    """Return what fastdgl wrote by `torch.save`, with plain tensors.

    `torch.load` runs nothing of a file either, but takes as long, and as much memory, as the file asks for.

    Raises:
        ForeignFileError, OSError: As of `load`.
    """
    return _with_plain_tensors(load(path, MAX_OPCODES_OF_OURS))


def _with_plain_tensors(data: Any) -> Any:
    if isinstance(data, Tensor):
        return data.as_subclass(Tensor)
    if isinstance(data, dict):
        return {key: _with_plain_tensors(value) for key, value in data.items()}
    return type(data)(map(_with_plain_tensors, data)) if type(data) in (list, tuple) else data


def _torch_file(file: BinaryIO, known: Mapping[tuple[str, str], Any]) -> Any:
    """The object in a file of either format of torch.save, or of a plain pickle."""
    start = file.read(len(ZIP_MAGIC))
    file.seek(0)
    if start == ZIP_MAGIC:
        return _zip_file(file, known)
    found = Unpickler(file, known).load()
    return _legacy_file(file, known) if found == LEGACY_MAGIC else found


def _zip_file(file: BinaryIO, known: Mapping[tuple[str, str], Any]) -> Any:
    storages: dict[str, Tensor] = {}
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        # entries may lie over each other
        if sum(entry.file_size for entry in archive.infolist()) > size:
            raise ForeignFileError("is damaged: the parts of it are larger than the file")
        pickles = [name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise ForeignFileError("is a zip file, and not one of torch.save")
        root = pickles[0].removesuffix("/data.pkl")
        if f"{root}/byteorder" in archive.namelist() and _record(archive, f"{root}/byteorder") != b"little":
            raise ForeignFileError("was written on a machine of the other byte order")

        def storage(dtype: torch.dtype, key: str, numel: int) -> Tensor:
            if key not in storages:
                record = archive.getinfo(f"{root}/data/{key}")
                if record.file_size != numel * dtype.itemsize:
                    raise ForeignFileError(f"is damaged: its tensor {key} has {record.file_size} bytes instead of {numel * dtype.itemsize}")
                storages[key] = _from_bytes(_record(archive, record.filename), dtype, numel)
            return _of_type(storages[key], dtype, key)

        return Unpickler(io.BytesIO(_record(archive, pickles[0])), known, storage).load()


def _record(archive: zipfile.ZipFile, name: str) -> bytes:
    # a few packed bytes can stand for gigabytes
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ForeignFileError(f"holds {name} compressed, which torch.save never does")
    return archive.read(name)


def _legacy_file(file: BinaryIO, known: Mapping[tuple[str, str], Any]) -> Any:
    """The rest of a file behind its magic number; the storages follow what refers to them."""
    if Unpickler(file, {}).load() != LEGACY_VERSION or Unpickler(file, {}).load()["little_endian"] is not True:
        raise ForeignFileError("is in a version of torch.save's format that is not read, or was written on a machine of the other byte order")
    position = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(position)
    storages: dict[str, Tensor] = {}
    claimed = 0

    def storage(dtype: torch.dtype, key: str, numel: int) -> Tensor:
        nonlocal claimed
        if key not in storages:
            claimed += numel * dtype.itemsize
            if claimed > end - position:
                raise ForeignFileError(f"is cut short: its tensor {key} is larger than the file")
            storages[key] = torch.zeros(numel, dtype=dtype)
        return _of_type(storages[key], dtype, key)

    found = Unpickler(file, known, storage).load()
    for key in Unpickler(file, {}).load():
        if not is_key(key):
            raise ForeignFileError("is damaged: it names a tensor by something else than text")
        numel, = struct.unpack("<q", file.read(8))
        numbers = storages[key]
        if numel != numbers.numel():
            raise ForeignFileError(f"is damaged: its tensor {key} has {numel} numbers instead of {numbers.numel()}")
        numbers.copy_(_from_bytes(file.read(numbers.nbytes), numbers.dtype, numel))
    return found


def _of_type(storage: Tensor, dtype: torch.dtype, key: str) -> Tensor:
    if storage.dtype != dtype:
        raise ForeignFileError(f"is damaged: its tensor {key} is of two types")
    return storage


def _from_bytes(data: bytes, dtype: torch.dtype, numel: int) -> Tensor:
    if len(data) != numel * dtype.itemsize:
        raise ForeignFileError("is cut short")
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.zeros(0, dtype=dtype)
