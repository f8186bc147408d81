"""Weights of ONNX files, read without onnx.

A file is one protocol buffer message, a model with a graph of nodes and initializers
(https://onnx.ai/onnx/repo-docs/IR.html). Fields that weights do not need are skipped.
"""

import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mijax._errors import LoadError

# Numbers of fields, and of types, in onnx.proto.
GRAPH, NODE, INITIALIZER, SPARSE = 7, 1, 5, 15
INPUT, NODE_NAME, OPERATION = 1, 3, 4
DIMS, TYPE, FLOATS, NAME, RAW, LOCATION = 1, 2, 4, 8, 9, 14
TYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8"}
VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5
ANONYMOUS = "onnx::"
AGAIN = "Download or copy the file again."

Span = tuple[int, int]


class Initializer(NamedTuple):
    """One tensor of the file.

    Attributes:
        shape: its shape in the file.
        dtype: number of its type.
        data: first and last byte, or `None` if they are in another form.
        turned: True if it is read as its transpose.
    """

    shape: tuple[int, ...]
    dtype: int
    data: Span | None
    turned: bool = False


class OnnxFile:
    """The initializers of an ONNX file.

    Exporters keep the names of most weights, but not of the matrices of linear layers:
    they are stored as `[in, out]` under names such as `onnx::MatMul_1966`. The name of
    the node that reads one is the path of the layer, `/layer.0/fc1/MatMul`, so such a
    matrix is read here as `layer.0.fc1.weight`, `[out, in]`. Other tensors without a
    name have that of the node: `embeddings.Concat_6`.

    Args:
        path: the file.

    Raises:
        LoadError: the file is missing or broken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        if not path.is_file() or not path.stat().st_size:
            raise LoadError(f"{path} does not exist or is empty. Put the file there.")
        with path.open("rb") as file:
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self.tensors = self._tensors()
        except (IndexError, UnicodeDecodeError, ValueError) as error:
            if isinstance(error, LoadError):
                raise
            raise LoadError(f"{path} is not a complete ONNX file. {AGAIN}") from error
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: tensor.shape[::-1] if tensor.turned else tensor.shape
            for name, tensor in self.tensors.items()
        }

    def read(self, name: str) -> np.ndarray:
        """Read one tensor in the precision that the file has.

        Raises:
            LoadError: a type or a form of data that is not supported.
        """
        tensor = self.tensors[name]
        if tensor.dtype not in TYPES or tensor.data is None:
            raise LoadError(
                f"{self.path}: tensor '{name}' of ONNX type {tensor.dtype} is not "
                "stored as plain numbers in the file, as is expected. Export the model "
                "in float32 or float16, to one file."
            )
        dtype, (first, last) = np.dtype(TYPES[tensor.dtype]), tensor.data
        if last - first != math.prod(tensor.shape) * dtype.itemsize:
            raise LoadError(
                f"{self.path}: tensor '{name}' of shape {tensor.shape} has "
                f"{last - first} bytes. {AGAIN}"
            )
        array = np.frombuffer(self.bytes[first:last], dtype).reshape(tensor.shape)
        return array.T if tensor.turned else array

    def _tensors(self) -> dict[str, Initializer]:
        """Return the initializers by their names in the model."""
        whole = (0, len(self.bytes))
        graphs = [span for number, span in self._fields(whole) if number == GRAPH]
        if len(graphs) != 1 or isinstance(graphs[0], int):
            raise LoadError(f"{self.path} is not an ONNX file: it has no graph.")
        found: dict[str, Initializer] = {}
        readers: dict[str, tuple[str, str, int]] = {}
        for number, span in self._fields(graphs[0]):
            if isinstance(span, int):
                continue
            if number == SPARSE:
                raise LoadError(f"{self.path} has sparse weights, which are not read.")
            if number == INITIALIZER:
                name, tensor = self._initializer(span)
                if name in found:
                    raise LoadError(f"{self.path} has two tensors '{name}'.")
                found[name] = tensor
            elif number == NODE:
                inputs, node, operation = self._node(span)
                for i, name in enumerate(inputs):
                    readers.setdefault(name, (node, operation, i))
        named: dict[str, Initializer] = {}
        for name, tensor in found.items():
            new, turned = _name(name, tensor, readers)
            if new in named:
                raise LoadError(f"{self.path}: two tensors are '{new}'.")
            named[new] = tensor._replace(turned=turned)
        return named

    def _initializer(self, span: Span) -> tuple[str, Initializer]:
        """Return one tensor and its name in the file."""
        name, dims, dtype, data, outside = "", [], 0, None, False
        for number, value in self._fields(span):
            if number == DIMS:
                dims += [value] if isinstance(value, int) else self._varints(value)
            elif number == TYPE and isinstance(value, int):
                dtype = value
            elif number == LOCATION:
                outside = bool(value)
            elif number == NAME and not isinstance(value, int):
                name = self._text(value)
            elif number in (RAW, FLOATS) and not isinstance(value, int):
                data = value
        if any(n < 0 or n >= 1 << 40 for n in dims):
            raise ValueError("a shape that no tensor has")
        return name, Initializer(tuple(dims), dtype, None if outside else data)

    def _node(self, span: Span) -> tuple[list[str], str, str]:
        """Return inputs, name and operation of a node."""
        inputs, name, operation = [], "", ""
        for number, value in self._fields(span):
            if isinstance(value, int):
                continue
            if number == INPUT:
                inputs.append(self._text(value))
            elif number == NODE_NAME:
                name = self._text(value)
            elif number == OPERATION:
                operation = self._text(value)
        return inputs, name, operation

    def _text(self, span: Span) -> str:
        return self.bytes[span[0] : span[1]].decode()

    def _varints(self, span: Span) -> list[int]:
        at, found = span[0], []
        while at < span[1]:
            value, at = self._varint(at)
            found.append(value)
        return found

    def _fields(self, span: Span) -> Iterator[tuple[int, int | Span]]:
        """Yield number and value of each field: an integer, or where its bytes are."""
        at, end = span
        while at < end:
            tag, at = self._varint(at)
            number, kind = tag >> 3, tag & 7
            if kind == VARINT:
                value, at = self._varint(at)
                yield number, value
                continue
            size = {EIGHT: 8, FOUR: 4}.get(kind)
            if kind == BYTES:
                size, at = self._varint(at)
            if size is None or at + size > end:
                raise ValueError("a field of an unknown kind, or one that is cut off")
            yield number, (at, at + size)
            at += size

    def _varint(self, at: int) -> tuple[int, int]:
        """Return the integer at a byte, and where the next byte is."""
        value = shift = 0
        while shift < 70:
            byte = self.bytes[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value, at
        raise ValueError("an integer that is too long")


def _name(
    name: str, tensor: Initializer, readers: Mapping[str, tuple[str, str, int]]
) -> tuple[str, bool]:
    """Return the name of a tensor in the model, and whether it is transposed."""
    node, operation, place = readers.get(name, ("", "", 0))
    if not name.startswith(ANONYMOUS) or not node:
        return name, False
    *path, last = node.strip("/").split("/")
    if operation == "MatMul" and place == 1 and len(tensor.shape) == 2 and path:
        return ".".join([*path, "weight"]), True
    return ".".join([*path, last]), False
