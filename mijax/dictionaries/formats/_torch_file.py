"""Weight files of torch, read and written without torch and without running pickles.

A `.pt` file is a zip of one pickle, which says what there is, and one file of numbers
per storage. The pickle is read by an unpickler that knows the few names that weights
need and refuses any other, so that nothing in the file can be run.
"""

import io
import math
import os
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mijax._errors import LoadError
from mijax.dictionaries.formats._reading import check_entry
from mijax.io import replace_file

STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
BROKEN = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, EOFError, ValueError, TypeError),
    *(LookupError, AttributeError, OverflowError, struct.error, OSError, MemoryError),
    *(RuntimeError, zlib.error),
)
DEEPEST = 8
# What torch writes. Others can fill the memory or build objects of any class.
OPCODES = (
    *("PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPERSID"),
    *("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "SETITEM", "SETITEMS"),
    *("APPEND", "APPENDS", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "BINUNICODE"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "NONE"),
    *("NEWTRUE", "NEWFALSE"),
)
AGAIN = "Download or copy the file again."


class TorchTensor(NamedTuple):
    """Where a tensor is: its storage's file and dtype, and its place in it."""

    key: str
    dtype: np.dtype
    numel: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class TorchFile:
    """The tensors and plain values of one file that `torch.save` wrote of a dict.

    Names of dicts in dicts are joined with dots.

    Args:
        path: the file.

    Raises:
        LoadError: the file is missing, broken, of torch before 1.6, or holds anything
            but dicts of tensors, numbers and strings.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        if not path.is_file():
            raise LoadError(f"{path} does not exist. Put the file there.")
        if not zipfile.is_zipfile(path):
            raise LoadError(
                f"{path} is not a zip of weights, as torch writes since 1.6. Where it "
                "comes from somebody you trust, load and save it again with torch, or "
                "save its tensors as safetensors."
            )
        try:
            with zipfile.ZipFile(path) as archive:
                self.root = root_of(archive)
                order = self.root + "byteorder"
                for entry in archive.infolist():
                    check_entry(entry)
                little = order not in archive.namelist() or (
                    archive.read(order).strip() == b"little"
                )
                text = checked(archive.read(self.root + "data.pkl"))
                content = Unpickler(io.BytesIO(text), path).load()
        except BROKEN as error:
            raise self._broken(error) from error
        if not little:
            raise LoadError(f"{path} was written on a big-endian machine: not read.")
        self.tensors: dict[str, TorchTensor] = {}
        self.values: dict[str, Any] = {}
        self._sort(content, "", 0)
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: tensor.shape for name, tensor in self.tensors.items()
        }

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor in the precision that the file has."""
        tensor = self.tensors[name]
        size, count = tensor.dtype.itemsize, math.prod(tensor.shape)
        last = tensor.offset + sum(
            (n - 1) * step for n, step in zip(tensor.shape, tensor.stride, strict=True)
        )
        try:
            with zipfile.ZipFile(self.path) as archive:
                entry = archive.getinfo(f"{self.root}data/{tensor.key}")
                # A tensor may not repeat its numbers: a few bytes could fill memory.
                if entry.file_size != tensor.numel * size or (
                    count
                    and (
                        min(tensor.offset, *tensor.stride, 0) < 0
                        or last >= tensor.numel
                        or count > tensor.numel
                    )
                ):
                    raise LoadError(
                        f"{self.path}: tensor '{name}' of shape {tensor.shape} does "
                        f"not lie in its storage of {entry.file_size} bytes. {AGAIN}"
                    )
                raw = archive.read(entry)
        except BROKEN as error:
            raise self._broken(error) from error
        if not count:
            return np.zeros(tensor.shape, tensor.dtype)
        flat = np.frombuffer(raw, tensor.dtype)[tensor.offset :]
        strides = tuple(step * size for step in tensor.stride)
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides).copy()

    def _sort(self, content: Any, prefix: str, depth: int) -> None:
        """Sorts a dict into tensors and plain values."""
        if depth > DEEPEST:
            raise LoadError(f"{self.path} holds dicts in dicts without an end.")
        if not isinstance(content, dict):
            raise LoadError(
                f"{self.path} holds a {type(content).__name__}, not a dict of tensors. "
                "Save its state dict."
            )
        for key, value in content.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict):
                self._sort(value, f"{name}.", depth + 1)
            elif name in self.tensors or name in self.values:
                raise LoadError(f"{self.path}: '{name}' is given twice. {AGAIN}")
            elif isinstance(value, TorchTensor):
                self.tensors[name] = value
            elif value is None or isinstance(value, bool | int | float | str):
                self.values[name] = value
            else:
                raise LoadError(
                    f"{self.path}: '{name}' is a {type(value).__name__}, expected a "
                    "tensor, number or string. Save the state dict alone."
                )

    def _broken(self, error: BaseException) -> LoadError:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        return LoadError(
            f"{self.path} is not a whole file of weights: {reason}. {AGAIN}"
        )


class Storage(NamedTuple):
    """A file of numbers in the zip."""

    key: str
    dtype: np.dtype
    numel: int


class Rebuild:
    """What a pickle may call to make a tensor; one object per file."""

    __slots__ = ()

    def __call__(
        self, storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any
    ) -> TorchTensor:
        """Describes a tensor; whether it wants gradients does not matter."""
        shape, stride = tuple(shape), tuple(stride)
        whole = all(type(n) is int for n in (offset, *shape, *stride))
        if not whole or len(shape) != len(stride) or min(shape, default=0) < 0:
            raise ValueError("the shape or strides of a tensor are no whole numbers")
        return TorchTensor(*Storage(*storage), offset, shape, stride)


class Parameter:
    """What a pickle may call to make a parameter of a tensor."""

    __slots__ = ()

    def __call__(self, tensor: Any, *rest: Any) -> Any:
        """Returns the tensor."""
        return tensor


class Unpickler(pickle.Unpickler):
    """Knows what weights need, and refuses everything else by name.

    Args:
        stream: the pickle.
        path: what errors name.
    """

    def __init__(self, stream: Any, path: Path) -> None:
        super().__init__(stream)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        """Returns what a name stands for; runs nothing."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return Rebuild()
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return Parameter()
        if module == "torch" and name in STORAGES:
            return name
        raise LoadError(
            f"{self.path} asks for '{module}.{name}', which is no part of weights: "
            "pickles can run any code. Nothing was run. Ask for safetensors, or for "
            "a state dict saved alone."
        )

    def persistent_load(self, pid: Any) -> Storage:
        """Describes a storage."""
        kind, name, key, _, numel = pid
        if kind != "storage" or not str(key).isdigit():
            raise ValueError(f"a storage {key!r} of kind {kind!r}")
        return Storage(str(key), STORAGES[name], int(numel))


def checked(text: bytes) -> bytes:
    """Returns a pickle of the instructions that weights need, or refuses it."""
    for opcode, argument, _ in pickletools.genops(text):
        if opcode.name not in OPCODES:
            raise ValueError(f"its pickle has the instruction {opcode.name}")
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > len(text):
            raise ValueError("its pickle remembers more than it has")
    return text


def root_of(archive: zipfile.ZipFile) -> str:
    """Finds the folder of the zip in which everything is."""
    roots = [
        name.removesuffix("data.pkl")
        for name in archive.namelist()
        if name.endswith("/data.pkl")
    ]
    if len(roots) != 1:
        raise ValueError(f"it has {len(roots)} pickles of weights, expected one")
    return roots[0]


def save_torch(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes a dict of arrays, numbers and strings as `torch.save` would.

    `torch.load(path, weights_only=True)` reads it.

    Args:
        content: arrays, whole numbers, strings, and dicts of those.
        path: the file, which appears whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    arrays: list[np.ndarray] = []
    text = b"\x80\x02" + encode(content, arrays) + b"."

    def write(scratch: Path) -> None:
        with zipfile.ZipFile(scratch, "w", zipfile.ZIP_STORED) as archive:
            put = lambda name, data: archive.writestr(  # noqa: E731
                zipfile.ZipInfo(f"archive/{name}"), data
            )
            put("data.pkl", text)
            put("byteorder", b"little")
            for index, array in enumerate(arrays):
                put(f"data/{index}", array.tobytes())
            put("version", b"3\n")

    replace_file(path, write)


def encode(value: Any, arrays: list[np.ndarray]) -> bytes:
    """Writes a value in the language of pickles, protocol 2; collects arrays."""
    if isinstance(value, Mapping):
        items = b"".join(
            encode(key, arrays) + encode(item, arrays) for key, item in value.items()
        )
        return b"ccollections\nOrderedDict\n)R(" + items + b"u"
    if isinstance(value, str):
        raw = value.encode()
        return b"X" + struct.pack("<I", len(raw)) + raw
    if isinstance(value, int):
        raw = value.to_bytes(8, "little", signed=True)
        return b"\x8a\x08" + raw
    array = np.ascontiguousarray(value).reshape(np.shape(value))
    names = {dtype: name for name, dtype in STORAGES.items()}
    strides = [step // array.itemsize for step in array.strides]
    number = lambda n: encode(int(n), arrays)  # noqa: E731
    several = lambda items: b"(" + b"".join(map(number, items)) + b"t"  # noqa: E731
    storage = (
        b"("
        + encode("storage", arrays)
        + f"ctorch\n{names[array.dtype]}\n".encode()
        + encode(str(len(arrays)), arrays)
        + encode("cpu", arrays)
        + number(array.size)
        + b"tQ"
    )
    arrays.append(array)
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + number(0)
        + several(array.shape)
        + several(strides)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )
