"""GGUF files of llama.cpp, dequantised one tensor at a time.

The header is read here: the reader of the `gguf` package keeps several Python objects
per word of the vocabulary, which costs seconds and more memory than the weights of a
small model. Its tables of types and its dequantisation are used as they are.
"""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mijax._errors import LoadError

BROKEN = (ValueError, OSError, struct.error, OverflowError, MemoryError)
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"}
NUMBERS |= {10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
AGAIN = "Download or copy the file again."
# Weights are dequantised in pieces of about this many numbers.
PIECE = 1 << 22


class Entry(NamedTuple):
    """Where a tensor is: shape (rows last), number of its type, byte offset."""

    shape: tuple[int, ...]
    kind: int
    offset: int


class Gguf:
    """The tensors and metadata of one `.gguf` file.

    Args:
        path: the file.

    Raises:
        LoadError: the file is missing, truncated or not GGUF.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise LoadError(f"{path} does not exist. Put the file there.")
        self.path = path
        self.files = (path,)
        try:
            with path.open("rb") as stream:
                self.fields, self.tensors = read_header(stream)
                align = int(self.fields.get("general.alignment", 32))
                self.start = -(-stream.tell() // align) * align
        except BROKEN as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise LoadError(
                f"{path} is not a whole GGUF file ({reason}). {AGAIN}"
            ) from error
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: entry.shape for name, entry in self.tensors.items()
        }

    def __contains__(self, key: str) -> bool:
        return key in self.fields

    def metadata(self, key: str, default: Any = None) -> Any:
        """Reads one entry of the metadata.

        Args:
            key: its name, for example `"llama.block_count"`.
            default: what to return where there is none; `None` refuses.

        Returns:
            A number, string or list.

        Raises:
            LoadError: there is no such entry and no default.
        """
        if key not in self.fields and default is None:
            raise LoadError(
                f"{self.path} has no metadata '{key}', which this model needs. "
                "Convert the model to GGUF again."
            )
        return self.fields.get(key, default)

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor and dequantises it to float32."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType  # noqa: PLC0415
        from gguf.quants import dequantize  # noqa: PLC0415 - rarely needed

        entry = self.tensors[name]
        try:
            kind = GGMLQuantizationType(entry.kind)
            per_block, block_bytes = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError) as error:
            raise self.unreadable(name, f"type {entry.kind}") from error
        columns = entry.shape[-1]
        if columns % per_block:
            raise self.unreadable(name, f"{kind.name} in rows of {columns}")
        rows, row_bytes = (
            math.prod(entry.shape[:-1]),
            columns // per_block * block_bytes,
        )
        raw = np.fromfile(
            self.path, np.uint8, rows * row_bytes, offset=self.start + entry.offset
        )
        if raw.size != rows * row_bytes:
            raise LoadError(
                f"{self.path}: tensor '{name}' needs {rows * row_bytes} bytes, the "
                f"file ends after {raw.size} of them. {AGAIN}"
            )
        raw = raw.reshape(rows, row_bytes)
        out = np.empty((rows, columns), np.float32)
        step = max(1, PIECE // columns)
        for first in range(0, rows, step):
            piece = np.ascontiguousarray(raw[first : first + step])
            try:
                # The package expects plain floats under their own dtype.
                plain = {"F32": np.float32, "F16": np.float16}.get(kind.name)
                piece = piece if plain is None else piece.view(plain)
                out[first : first + step] = dequantize(piece, kind)
            except NotImplementedError as error:
                raise self.unreadable(name, kind.name) from error
        return out.reshape(entry.shape)

    def unreadable(self, name: str, kind: str) -> LoadError:
        """The error for a quantisation that is not known."""
        return LoadError(
            f"{self.path}: tensor '{name}' is quantised as {kind}, which cannot be "
            "dequantised here. Use a file in F32, F16, BF16, Q8_0, Q4_1 or a K-quant."
        )


def read_header(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, Entry]]:
    """Reads metadata and tensor entries; the stream ends where the padding begins."""
    if stream.read(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    (version,) = unpack(stream, "I")
    if version not in (2, 3):
        raise ValueError(f"version {version}, expected 2 or 3")
    tensor_count, field_count = unpack(stream, "QQ")
    fields = {}
    for _ in range(field_count):
        key = read_string(stream)
        fields[key] = read_value(stream, *unpack(stream, "I"))
    tensors = {}
    for _ in range(tensor_count):
        name = read_string(stream)
        (dimensions,) = unpack(stream, "I")
        shape = unpack(stream, "Q" * dimensions)[::-1]
        tensors[name] = Entry(shape, *unpack(stream, "IQ"))
    return fields, tensors


def read_value(stream: BinaryIO, kind: int) -> Any:
    """Reads a number, a string or a list of either."""
    if kind == STRING:
        return read_string(stream)
    if kind == ARRAY:
        inner, count = unpack(stream, "IQ")
        if inner in NUMBERS:
            return list(unpack(stream, f"{count}{NUMBERS[inner]}"))
        return [read_value(stream, inner) for _ in range(count)]
    if kind not in NUMBERS:
        raise ValueError(f"metadata of unknown type {kind}")
    return unpack(stream, NUMBERS[kind])[0]


def read_string(stream: BinaryIO) -> str:
    """Reads a length and so many bytes of UTF-8."""
    (length,) = unpack(stream, "Q")
    return take(stream, length).decode("utf-8")


def unpack(stream: BinaryIO, layout: str) -> tuple[Any, ...]:
    """Reads little-endian numbers without padding."""
    return struct.unpack(f"<{layout}", take(stream, struct.calcsize(f"<{layout}")))


def take(stream: BinaryIO, length: int) -> bytes:
    """Reads exactly so many bytes."""
    data = stream.read(length)
    if len(data) != length:
        raise ValueError(f"it ends {length - len(data)} bytes too early")
    return data
