"""GGUF files of llama.cpp, dequantized one tensor at a time.

The header is read here: the reader of the `gguf` package keeps several Python objects
per word of the vocabulary, which costs seconds and more memory than the weights of a
small model. Its tables of types and its dequantization are used as they are.
"""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np

from mijax._errors import LoadError
from mijax.io._json import AGAIN
from mijax.io._record import keys_of, read_record
from mijax.io._regions import Region, check_regions

R = TypeVar("R")

BROKEN = (ValueError, OSError, struct.error, OverflowError, MemoryError)
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"}
NUMBERS |= {10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
# Types of plain numbers that are not weights.
NO_WEIGHTS = ("I8", "I16", "I32", "I64", "F64")
MOST_AXES = 4
# Weights are dequantized in pieces of about this many numbers.
PIECE = 1 << 22


class Entry(NamedTuple):
    """Shape (rows last), type, byte offset and length of a tensor."""

    shape: tuple[int, ...]
    kind: Any
    offset: int
    size: int


class Gguf:
    """The tensors and metadata of one `.gguf` file.

    Names, types, byte ranges and the alignment are checked against the length of the
    file before any tensor is read.

    Args:
        path: the file.

    Raises:
        LoadError: the file is missing, truncated, not GGUF, gives a name twice, or has
            tensors that overlap or are misaligned.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise LoadError(f"{path} does not exist. Put the file there.")
        self.path = path
        self.files = (path,)
        size = path.stat().st_size
        try:
            with path.open("rb") as stream:
                self.fields, found = read_header(Counted(stream, size))
                align = alignment(self.fields)
                self.start = -(-stream.tell() // align) * align
        except BROKEN as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise LoadError(
                f"{path} is not a whole GGUF file ({reason}). {AGAIN}"
            ) from error
        self.tensors = {
            name: self._entry(name, shape, kind, offset)
            for name, shape, kind, offset in found
        }
        regions = [
            Region(name, e.offset, e.size, -(-e.size // align) * align)
            for name, e in self.tensors.items()
        ]
        if regions:
            check_regions(regions, path, size - self.start)
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: entry.shape for name, entry in self.tensors.items()
        }

    def __contains__(self, key: str) -> bool:
        return key in self.fields

    def record(self, kind: type[R], *prefixes: str) -> R:
        """Check a part of the metadata against the dataclass that declares it.

        Args:
            kind: a dataclass whose fields name their keys; see `read_record`.
            *prefixes: keys that begin so have to be declared; keys that the dataclass
                declares are read in any case, others are left out.

        Returns:
            The dataclass, filled.

        Raises:
            LoadError: an entry that is missing, unknown, of another type or out of
                range.
        """
        known = {*keys_of(kind).values()}
        content = {
            key: value
            for key, value in self.fields.items()
            if key in known or key.startswith(prefixes or ("\0",))
        }
        return read_record(kind, content, f"{self.path}: metadata")

    def read(self, name: str) -> np.ndarray:
        """Read one tensor and dequantizes it to float32."""
        from gguf.quants import dequantize  # noqa: PLC0415 - rarely needed

        entry = self.tensors[name]
        columns, rows = entry.shape[-1], math.prod(entry.shape[:-1])
        raw = np.fromfile(
            self.path, np.uint8, entry.size, offset=self.start + entry.offset
        ).reshape(rows, -1)
        out = np.empty((rows, columns), np.float32)
        step = max(1, PIECE // columns)
        for first in range(0, rows, step):
            piece = np.ascontiguousarray(raw[first : first + step])
            try:
                # The package expects plain floats under their own dtype.
                plain = {"F32": np.float32, "F16": np.float16}.get(entry.kind.name)
                piece = piece if plain is None else piece.view(plain)
                with np.errstate(invalid="ignore", over="ignore"):
                    out[first : first + step] = dequantize(piece, entry.kind)
            except NotImplementedError as error:
                raise self.unreadable(name, entry.kind.name) from error
        return out.reshape(entry.shape)

    def _entry(
        self, name: str, shape: tuple[int, ...], number: int, offset: int
    ) -> Entry:
        """Find the length of a tensor from its shape and type."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType  # noqa: PLC0415

        if not 1 <= len(shape) <= MOST_AXES or min(shape) < 1:
            raise LoadError(
                f"{self.path}: tensor '{name}' has shape {shape}, expected 1 to "
                f"{MOST_AXES} sizes above 0. {AGAIN}"
            )
        try:
            kind = GGMLQuantizationType(number)
            per_block, block_bytes = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError) as error:
            raise self.unreadable(name, f"type {number}") from error
        if kind.name in NO_WEIGHTS:
            raise self.unreadable(name, kind.name)
        if shape[-1] % per_block:
            raise self.unreadable(name, f"{kind.name} in rows of {shape[-1]}")
        return Entry(shape, kind, offset, math.prod(shape) // per_block * block_bytes)

    def unreadable(self, name: str, kind: str) -> LoadError:
        """Build the error for a type that cannot be dequantized."""
        return LoadError(
            f"{self.path}: tensor '{name}' is stored as {kind}, which cannot be "
            "dequantized here. Use a file in F32, F16, BF16, Q8_0, Q4_1 or a K-quant."
        )


class Counted:
    """A stream that refuses lengths beyond the end of its file.

    Args:
        stream: the open file.
        size: its length in bytes.
    """

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream = stream
        self.left = size

    def take(self, length: int) -> bytes:
        """Read exactly so many bytes."""
        if length > self.left:
            raise ValueError(f"it ends {length - self.left} bytes too early")
        self.left -= length
        return self.stream.read(length)

    def unpack(self, layout: str) -> tuple[Any, ...]:
        """Read little-endian numbers without padding."""
        return struct.unpack(f"<{layout}", self.take(struct.calcsize(f"<{layout}")))

    def several(self, count: int, layout: str) -> list[Any]:
        """Read a list of numbers of one type."""
        size = struct.calcsize(f"<{layout}")
        return list(struct.unpack(f"<{count}{layout}", self.take(count * size)))

    def text(self) -> str:
        """Read a length and so many bytes of UTF-8."""
        return self.take(*self.unpack("Q")).decode("utf-8")


def read_header(
    stream: Counted,
) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...], int, int]]]:
    """Read metadata and tensor entries; the stream ends where the padding begins."""
    if stream.take(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    (version,) = stream.unpack("I")
    if version not in (2, 3):
        raise ValueError(f"version {version}, expected 2 or 3")
    tensor_count, field_count = stream.unpack("QQ")
    fields: dict[str, Any] = {}
    for _ in range(field_count):
        key = stream.text()
        if key in fields:
            raise ValueError(f"metadata '{key}' is given twice")
        fields[key] = read_value(stream, *stream.unpack("I"))
    tensors, seen = [], set()
    for _ in range(tensor_count):
        name = stream.text()
        if name in seen:
            raise ValueError(f"tensor '{name}' is given twice")
        seen.add(name)
        (axes,) = stream.unpack("I")
        shape = tuple(stream.several(axes, "Q")[::-1])
        tensors.append((name, shape, *stream.unpack("IQ")))
    return fields, tensors


def read_value(stream: Counted, kind: int) -> Any:
    """Read a number, a string or a list of either."""
    if kind == STRING:
        return stream.text()
    if kind == ARRAY:
        inner, count = stream.unpack("IQ")
        if inner in NUMBERS:
            return stream.several(count, NUMBERS[inner])
        if inner != STRING:
            raise ValueError(f"metadata with a list of type {inner}")
        return [stream.text() for _ in range(count)]
    if kind not in NUMBERS:
        raise ValueError(f"metadata of unknown type {kind}")
    return stream.unpack(NUMBERS[kind])[0]


def alignment(fields: Mapping[str, Any]) -> int:
    """Return the alignment of the data, a power of two."""
    align = fields.get("general.alignment", 32)
    if not isinstance(align, int) or align < 1 or align & (align - 1):
        raise ValueError(f"alignment {align!r:.20}, expected a power of two")
    return align
