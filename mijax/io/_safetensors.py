"""Safetensors, one file or shards, read one tensor at a time.

The file is read, not memory-mapped: mapped pages would count as memory a second time
next to the weights. The format is 8 bytes of header length, a JSON header with dtype,
shape and byte range of each tensor, and the bytes.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mijax._errors import LoadError
from mijax.io._durable import replace_file

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
AGAIN = "Download or copy the file again."


class SafeTensors:
    """The tensors of one `.safetensors` file.

    Args:
        path: the file.

    Raises:
        LoadError: the file is missing, truncated or not safetensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        self.start, self.header = read_header(path)
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: tuple(entry["shape"]) for name, entry in self.header.items()
        }

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor in the precision that the file has."""
        entry = self.header[name]
        dtype = DTYPES.get(entry["dtype"])
        if dtype is None:
            raise LoadError(
                f"{self.path}: tensor '{name}' has dtype {entry['dtype']}, expected "
                f"one of {', '.join(DTYPES)}. Save the model in float32 or bfloat16."
            )
        begin, end = entry["data_offsets"]
        count = math.prod(entry["shape"])
        if end - begin != count * dtype.itemsize:
            raise LoadError(
                f"{self.path}: tensor '{name}' has {end - begin} bytes, its shape "
                f"{tuple(entry['shape'])} needs {count * dtype.itemsize}. {AGAIN}"
            )
        flat = np.fromfile(self.path, dtype, count, offset=self.start + begin)
        return flat.reshape(entry["shape"])


class Shards:
    """The tensors of several `.safetensors` files and their index.

    Args:
        index: the file `model.safetensors.index.json`.

    Raises:
        LoadError: a shard is missing or broken, or the index does not fit the shards.
    """

    def __init__(self, index: Path) -> None:
        self.path = index
        where = read_json(index).get("weight_map")
        if not isinstance(where, dict):
            raise LoadError(f"{index} has no 'weight_map'. {AGAIN}")
        shards = {
            name: SafeTensors(index.parent / name) for name in set(where.values())
        }
        self.files = tuple(sorted(shard.path for shard in shards.values()))
        self.owner = {
            tensor: shard for shard in shards.values() for tensor in shard.shapes
        }
        wrong = sorted(
            name
            for name in where.keys() | self.owner.keys()
            if name not in self.owner
            or self.owner[name].path.name != where.get(name, None)
        )
        if wrong:
            raise LoadError(
                f"{index}: tensor '{wrong[0]}' is not where the index says (shard "
                f"{where.get(wrong[0])}; {len(wrong)} such tensors). {AGAIN}"
            )
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: shard.shapes[name] for name, shard in self.owner.items()
        }

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor in the precision that its shard has."""
        return self.owner[name].read(name)


def save_safetensors(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Write arrays to one file, which appears complete or not at all.

    Args:
        arrays: name and value of each tensor.
        path: the file.

    Raises:
        OutputError: the file cannot be written.

    Examples:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> save_safetensors({"a": np.ones(3, np.float32)}, path)
        >>> SafeTensors(path).read("a")
        array([1., 1., 1.], dtype=float32)
    """
    replace_file(path, lambda scratch: write(arrays, scratch))


def write(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes arrays one after the other, so no second copy of all of them exists."""
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
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


def read_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Reads where the bytes start and what they hold; checks the file's length."""
    if not path.is_file():
        raise LoadError(f"{path} does not exist. Put the file there.")
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        text = stream.read(length) if length <= size - 8 else b""
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        ends = [0, *(entry["data_offsets"][1] for entry in header.values())]
    except (ValueError, AttributeError, TypeError, KeyError, IndexError) as error:
        raise LoadError(
            f"{path} is not a whole safetensors file ({size} bytes). {AGAIN}"
        ) from error
    start = 8 + length
    if start + max(ends) != size:
        last = max(header, key=lambda name: header[name]["data_offsets"][1], default="")
        raise LoadError(
            f"{path} has {size} bytes, but its last tensor '{last}' ends at byte "
            f"{start + max(ends)}. {AGAIN}"
        )
    return start, header


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: the file.

    Returns:
        The object.

    Raises:
        LoadError: the file is missing or not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LoadError(f"{path} does not exist. Put the file there.") from error
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise LoadError(f"{path} cannot be read as JSON: {reason}. {AGAIN}") from error
    if not isinstance(content, dict):
        raise LoadError(f"{path} holds a {type(content).__name__}, not a JSON object.")
    return content
