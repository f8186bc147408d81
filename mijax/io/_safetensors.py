"""Safetensors, one file or shards, read one tensor at a time.

The file is read, not memory-mapped: mapped pages would count as memory a second time
next to the weights. The format is 8 bytes of header length, a JSON header with dtype,
shape and byte range of each tensor, and the bytes.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import ml_dtypes
import numpy as np
from annotated_types import Len

from mijax._errors import LoadError
from mijax.io._durable import replace_file
from mijax.io._json import AGAIN, parse_json, read_json
from mijax.io._record import Bytes, read_record
from mijax.io._regions import Region, check_regions
from mijax.io._tensors import Tensors

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
# The format's own limit.
LONGEST_HEADER = 100_000_000


@dataclasses.dataclass(frozen=True)
class Entry:
    """Header entry of one tensor; byte offsets count from the end of the header."""

    dtype: str
    shape: list[Bytes]
    data_offsets: Annotated[list[Bytes], Len(2, 2)]

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return self.data_offsets[1] - self.data_offsets[0]


class SafeTensors:
    """The tensors of one `.safetensors` file.

    Args:
        path: the file.

    Attributes:
        metadata: texts by name that the file's header holds.

    Raises:
        LoadError: the file is missing, truncated or not safetensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        self.start, self.header, self.metadata = read_header(path)
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: tuple(entry.shape) for name, entry in self.header.items()
        }

    def read(self, name: str) -> np.ndarray:
        """Read one tensor in the precision that the file has."""
        entry = self.header[name]
        flat = np.fromfile(
            self.path,
            DTYPES[entry.dtype],
            math.prod(entry.shape),
            offset=self.start + entry.data_offsets[0],
        )
        return flat.reshape(entry.shape)


class Shards:
    """The tensors of several files and their index.

    Args:
        index: the file `model.safetensors.index.json`.
        shard: reads one file, `SafeTensors` or `TorchFile`.

    Raises:
        LoadError: a shard is missing or broken, or the index does not fit the shards.
    """

    def __init__(
        self, index: Path, shard: Callable[[Path], Tensors] = SafeTensors
    ) -> None:
        self.path = index
        where = read_json(index).get("weight_map")
        if not isinstance(where, dict) or not where:
            raise LoadError(f"{index} has no 'weight_map'. {AGAIN}")
        for tensor, name in where.items():
            if not isinstance(name, str) or Path(name).name != name:
                raise LoadError(
                    f"{index}: tensor '{tensor}' is in {name!r:.60}, expected the name "
                    f"of a file in the same folder. {AGAIN}"
                )
        shards = [shard(index.parent / name) for name in sorted({*where.values()})]
        self.files = tuple(one.path for one in shards)
        self.owner: dict[str, Tensors] = {}
        for one in shards:
            for name in one.shapes:
                if name in self.owner:
                    raise LoadError(
                        f"{index}: tensor '{name}' is in two shards, "
                        f"{self.owner[name].path.name} and {one.path.name}. {AGAIN}"
                    )
                self.owner[name] = one
        wrong = sorted(
            name
            for name in where.keys() | self.owner.keys()
            if name not in self.owner or self.owner[name].path.name != where.get(name)
        )
        if wrong:
            raise LoadError(
                f"{index}: tensor '{wrong[0]}' is not where the index says (shard "
                f"{where.get(wrong[0])}; {len(wrong)} such tensors). {AGAIN}"
            )
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: one.shapes[name] for name, one in self.owner.items()
        }

    def read(self, name: str) -> np.ndarray:
        """Read one tensor in the precision that its shard has."""
        return self.owner[name].read(name)


def save_safetensors(
    arrays: Mapping[str, np.ndarray],
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays to one file, which appears complete or not at all.

    Args:
        arrays: name and value of each tensor.
        path: the file.
        metadata: texts by name for the file's header.

    Raises:
        OutputError: the file cannot be written.

    Examples:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> save_safetensors({"a": np.ones(3, np.float32)}, path)
        >>> SafeTensors(path).read("a")
        array([1., 1., 1.], dtype=float32)
    """
    notes = metadata or {}
    replace_file(path, lambda scratch: write(arrays, scratch, notes))


def write(
    arrays: Mapping[str, np.ndarray], path: Path, metadata: Mapping[str, str]
) -> None:
    """Write arrays one after the other, so no second copy of all of them exists."""
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "np", **metadata}}
    offset = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": codes[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            stream.write(np.ascontiguousarray(array).tobytes())


def read_header(path: Path) -> tuple[int, dict[str, Entry], dict[str, str]]:
    """Read the start of the data, each tensor's entry and the metadata, checked."""
    if not path.is_file():
        raise LoadError(f"{path} does not exist. Put the file there.")
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        whole = length <= min(size - 8, LONGEST_HEADER)
        text = stream.read(length) if whole else b""
    try:
        content = parse_json(text)
        notes = content.pop("__metadata__", {})
        if not all(isinstance(note, str) for note in notes.values()):
            raise ValueError("its __metadata__ has values that are not text")
        found = content.items()
    except (ValueError, AttributeError, TypeError) as error:
        reason = str(error).splitlines()[0] if whole else "its header is not whole"
        raise LoadError(
            f"{path} is not a whole safetensors file of {size} bytes: {reason}. {AGAIN}"
        ) from error
    header = {name: read_entry(name, value, path) for name, value in found}
    check_regions(
        [
            Region(name, entry.data_offsets[0], entry.size, entry.size)
            for name, entry in header.items()
        ],
        path,
        size - 8 - length,
    )
    return 8 + length, header, notes


def read_entry(name: str, value: Any, path: Path) -> Entry:
    """Read the entry of one tensor; its bytes have to fit its shape."""
    where = f"{path}: tensor '{name}'"
    if not isinstance(value, dict):
        raise LoadError(f"{where} is described by {value!r:.60}, not by an object.")
    entry = read_record(Entry, value, where, thing="file")
    if entry.dtype not in DTYPES:
        raise LoadError(
            f"{where} has dtype {entry.dtype}, expected one of {', '.join(DTYPES)}. "
            "Save the model in float32 or bfloat16."
        )
    needed = math.prod(entry.shape) * DTYPES[entry.dtype].itemsize
    if entry.size != needed:
        raise LoadError(
            f"{where} has {entry.size} bytes, its shape {tuple(entry.shape)} needs "
            f"{needed}. {AGAIN}"
        )
    return entry
