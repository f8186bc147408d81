"""The pickles in weight files of torch, read without running anything.

The unpickler knows the few names that weights need and refuses any other.
"""

import pickle
import pickletools
import struct
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mijax._errors import LoadError

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
# What torch writes. Others can fill the memory or build objects of any class.
OPCODES = (
    *("PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPERSID"),
    *("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "SETITEM", "SETITEMS"),
    *("APPEND", "APPENDS", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "BINUNICODE"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "NONE"),
    *("NEWTRUE", "NEWFALSE"),
)


class TorchTensor(NamedTuple):
    """Storage file, dtype and position of a tensor."""

    key: str
    dtype: np.dtype
    numel: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Storage(NamedTuple):
    """A run of numbers in the file."""

    key: str
    dtype: np.dtype
    numel: int


class Rebuild:
    """Only constructor of tensors that a pickle may call; one per file."""

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
    """Only constructor of parameters that a pickle may call."""

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
        kind, name, key, _, numel, *view = pid
        if kind != "storage" or not str(key).isdigit() or view not in ([], [None]):
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
