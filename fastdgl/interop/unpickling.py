"""Reads what other programs pickled, and runs nothing of it.

A pickle names classes and functions, to be called while it is read. Here a fixed list of names is known, `KNOWN`, and each
stands for plain data; any other is refused. No module is imported for a file.
"""

import io
import math
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
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


class ForeignFileError(ValueError):
    """A file that cannot be read or written in another program's format, in one sentence without the file's name."""

    def __init__(self, message: str):
        super().__init__(printable(message))


class Entries(dict):
    """An OrderedDict or EasyDict. Attributes that were set on it are dropped, such as the `_metadata` of a state dict."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class Attributes(dict):
    """An argparse.Namespace, as the dict of its attributes."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        self.update(state)


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
        self.name, self.function = str(state["name"])[:50], str(state["build_func_name"])[:50]
        self.settings, self.components, self.variables = dict(state["static_kwargs"]), dict(state.get("components", {})), []
        for name, value in state["variables"]:
            self.variables.append((str(name), value))


class DType:
    """A numpy.dtype of plain numbers."""

    __slots__ = ("kind", "order")

    def __init__(self, kind: Any, align: Any = False, copy: Any = False):
        match = re.fullmatch(r"([<>=|]?)([iuf][1248]|b1)", str(kind))
        if match is None:
            raise ForeignFileError(f"holds numpy.dtype({str(kind)[:50]!r}), which is not read; expected numbers")
        self.order, self.kind = match[1] or "=", match[2]

    def __setstate__(self, state: Any) -> None:
        _, self.order, subarray, names, fields, *_ = state
        if self.order not in tuple("<>=|") or not (subarray is names is fields is None):
            raise ForeignFileError("holds a structured numpy.dtype, which is not read; expected numbers")

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.order + self.kind)


class Array:
    """A numpy.ndarray of plain numbers, in `value`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        self.fill(data, dtype, shape, "F" if is_fortran else "C")

    def fill(self, data: bytes, dtype: DType, shape: tuple[int, ...], order: str) -> None:
        # our own memory in the machine's byte order, which is what PyTorch takes
        self.value = np.frombuffer(data, dtype.dtype).reshape(shape, order=order).astype(dtype.dtype.newbyteorder("="))


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


def _persistent_object(meta: Any) -> PersistentObject:
    state, class_name = meta["state"], meta["class_name"]
    if meta["type"] != "class" or not isinstance(state, dict) or not isinstance(class_name, str):
        raise ForeignFileError("holds an object of torch_utils.persistence that is no class")
    return PersistentObject(class_name, state)


def _tensor(storage: Tensor, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if math.prod(shape) > storage.numel():
        raise ForeignFileError(f"is damaged: a tensor of {storage.numel()} numbers is to be {list(shape)}")
    # a view, and PyTorch checks that it stays inside
    return storage.as_strided(shape, stride, offset).as_subclass(Numbers)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """How bytes are written for Python 2."""
    if encoding != "latin1":
        raise ForeignFileError(f"holds bytes encoded as {str(encoding)[:50]!r}; expected 'latin1'")
    return text.encode(encoding)


def _number(dtype: DType, data: bytes) -> float | int | bool:
    return np.frombuffer(data, dtype.dtype, count=1)[0].item()


def _empty_array(*_: Any) -> Array:
    return Array()


def _array(data: bytes, dtype: DType, shape: tuple[int, ...], order: str) -> Array:
    array = Array()
    array.fill(data, dtype, shape, order)
    return array


def _storage(data: bytes) -> Tensor:
    # storages within a storage are not
    return _torch_file(io.BytesIO(data), {name: known for name, known in KNOWN.items() if name != ("torch.storage", "_load_from_bytes")})


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
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("_codecs", "encode"): Function(_encoded),
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Function(_persistent_object),
    ("torch", "Size"): tuple,
    ("torch", "device"): Function(lambda *description: ":".join(map(str, description))),
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
        check_depth(self.file)
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
        if self.storage is None or kind != "storage" or not isinstance(dtype, torch.dtype) or any(part is not None for part in view):
            raise ForeignFileError("refers to something outside that is no tensor of PyTorch's")
        return self.storage(dtype, str(key), int(numel)).as_subclass(Numbers)


def check_depth(file: BinaryIO) -> None:
    """Refuse a pickle with data within data within data: to hash a tuple, Python goes as deep as it is, until the process crashes.

    The opcodes of one pickle are read, and nothing is made of them: for each value on the unpickler's stack, how deep it is.

    Raises:
        ForeignFileError: It is deeper than MAX_DEPTH.
        ValueError, LookupError: It is damaged.
    """
    mark = pickletools.markobject
    stack: list[int | None] = []                                      # None for a mark
    memo: dict[int, int] = {}
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1] or 0
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            parts = []
            if mark in opcode.stack_before:
                while (part := stack.pop()) is not None:
                    parts.append(part)
            for _ in range(opcode.stack_before.index(mark) if mark in opcode.stack_before else len(opcode.stack_before)):
                parts.append(stack.pop() or 0)
            # what is put into a list adds to how deep it is, and not how often
            into = parts.pop() if name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS") else 0
            depth = max(into, 1 + max(parts, default=0))
            if depth > MAX_DEPTH:
                raise ForeignFileError("holds data within data, too deep to be networks")
            stack.extend(None if made is mark else depth for made in opcode.stack_after)


def load(path: Path) -> Any:
    """What is pickled in a file of `pickle.dump` or `torch.save`, as dicts, lists, numbers, tensors and the records above.

    Raises:
        ForeignFileError: It asks for something that is not plain data, or it is damaged.
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        try:
            return _torch_file(file, KNOWN)
        except ForeignFileError:
            raise
        except MemoryError:
            raise ForeignFileError("asks for more memory than there is") from None
        # what damaged bytes make of a pickle, a zip file, or of the arguments of what is called
        except (pickle.UnpicklingError, EOFError, zipfile.BadZipFile, struct.error, LookupError, TypeError, ValueError,
                AttributeError, RuntimeError, ArithmeticError, OSError) as error:
            raise ForeignFileError(f"is cut short or damaged ({' '.join(str(error).split())[:100]})") from None


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
    with zipfile.ZipFile(file) as archive:
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
    if Unpickler(file, {}).load() != LEGACY_VERSION or not Unpickler(file, {}).load()["little_endian"]:
        raise ForeignFileError("is in a version of torch.save's format that is not read, or was written on a machine of the other byte order")
    position = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(position)
    storages: dict[str, Tensor] = {}

    def storage(dtype: torch.dtype, key: str, numel: int) -> Tensor:
        if key not in storages:
            if not 0 <= numel * dtype.itemsize <= end - position:
                raise ForeignFileError(f"is cut short: its tensor {key} is larger than the file")
            storages[key] = torch.zeros(numel, dtype=dtype)
        return _of_type(storages[key], dtype, key)

    found = Unpickler(file, known, storage).load()
    for key in Unpickler(file, {}).load():
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
