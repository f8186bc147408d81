"""Weight files of torch, read without torch and without running pickles.

A file of torch 1.6 or later is a zip of one pickle, which lists the tensors, and one
file of numbers per storage. Before, it was several pickles in a row and then all
storages. The pickles are read by an unpickler that knows the few names that weights
need and refuses any other, so that nothing in the file can be run.
"""

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mijax._errors import LoadError
from mijax.io._torch_pickle import (
    BROKEN,
    TorchTensor,
    Unpickler,
    checked,
)

DEEPEST = 8
AGAIN = "Download or copy the file again."
# The largest ratio of deflate (RFC 1951), and bytes for entries of almost nothing.
DEFLATE, SLACK = 1032, 4096
# The first bytes of the format before 1.6: a pickle of a magic number.
LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
LEGACY_VERSION = 1001


class TorchFile:
    """The tensors and plain values of one file that `torch.save` wrote of a dict.

    Names of dicts in dicts are joined with dots.

    Args:
        path: the file.

    Raises:
        LoadError: the file is missing, broken, or holds anything but dicts of tensors,
            numbers, strings and lists of numbers and strings.

    Examples:
        >>> import pathlib, tempfile
        >>> from mijax.io import TorchFile, save_torch
        >>> import numpy as np
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "weights.pt"
        >>> save_torch({"layer": {"weight": np.ones((2, 3), np.float32)}}, path)
        >>> TorchFile(path).shapes
        {'layer.weight': (2, 3)}
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        if not path.is_file():
            raise LoadError(f"{path} does not exist. Put the file there.")
        try:
            if zipfile.is_zipfile(path):
                self.storages = ZipStorages(path)
            elif is_legacy(path):
                self.storages = LegacyStorages(path)
            else:
                raise LoadError(
                    f"{path} is not a file of weights that torch wrote: neither a zip, "
                    "as since 1.6, nor the format before. Save its tensors as "
                    "safetensors."
                )
        except BROKEN as error:
            raise self._broken(error) from error
        if not self.storages.little:
            raise LoadError(f"{path} was written on a big-endian machine: not read.")
        self.tensors: dict[str, TorchTensor] = {}
        self.values: dict[str, Any] = {}
        self._sort(self.storages.content, "", 0)
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
            available = self.storages.size(tensor)
            # A tensor may not repeat its numbers: a few bytes could fill memory.
            if available != tensor.numel * size or (
                count
                and (
                    min(tensor.offset, *tensor.stride, 0) < 0
                    or last >= tensor.numel
                    or count > tensor.numel
                )
            ):
                raise LoadError(
                    f"{self.path}: tensor '{name}' of shape {tensor.shape} does "
                    f"not lie in its storage of {available} bytes. {AGAIN}"
                )
            raw = self.storages.read(tensor)
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
            elif is_plain(value):
                self.values[name] = value
            else:
                raise LoadError(
                    f"{self.path}: '{name}' is a {type(value).__name__}, expected a "
                    "tensor, number, string or a list of those. Save the state dict "
                    "alone."
                )

    def _broken(self, error: BaseException) -> LoadError:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        return LoadError(
            f"{self.path} is not a whole file of weights: {reason}. {AGAIN}"
        )


class ZipStorages:
    """The storages of a zip.

    Attributes:
        content: what the pickle holds.
        little: whether numbers are little-endian.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with zipfile.ZipFile(path) as archive:
            self.root = root_of(archive)
            order = self.root + "byteorder"
            for entry in archive.infolist():
                check_entry(entry)
            self.little = order not in archive.namelist() or (
                archive.read(order).strip() == b"little"
            )
            text = checked(archive.read(self.root + "data.pkl"))
            self.content = Unpickler(io.BytesIO(text), path).load()

    def size(self, tensor: TorchTensor) -> int:
        """Return the number of bytes of a tensor's storage."""
        with zipfile.ZipFile(self.path) as archive:
            return archive.getinfo(f"{self.root}data/{tensor.key}").file_size

    def read(self, tensor: TorchTensor) -> bytes:
        """Read a tensor's storage."""
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(f"{self.root}data/{tensor.key}")


class LegacyStorages:
    """The storages of a file of torch before 1.6.

    Five pickles in a row: a magic number, a version, sizes and byte order of the
    machine, the content, and the keys of all storages; then the number of elements of
    each storage (8 bytes) and its numbers.

    Attributes:
        content: what the fourth pickle holds.
        little: whether numbers are little-endian.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as stream:
            magic, version, machine, self.content, keys = (
                _unpickled(stream, path) for _ in range(5)
            )
            del magic  # `is_legacy` has compared it
            if version != LEGACY_VERSION or not isinstance(keys, list):
                raise ValueError(f"version {version!r} of the format before torch 1.6")
            self.little = machine["little_endian"] is True
            self.order = {str(key): place for place, key in enumerate(keys)}
            self.start = stream.tell()
        self.places: dict[str, tuple[int, int]] | None = None

    def size(self, tensor: TorchTensor) -> int:
        """Return the number of bytes of a tensor's storage."""
        begin, end = self._place(tensor)
        return end - begin

    def read(self, tensor: TorchTensor) -> bytes:
        """Read a tensor's storage."""
        begin, end = self._place(tensor)
        with self.path.open("rb") as stream:
            stream.seek(begin)
            return stream.read(end - begin)

    def _place(self, tensor: TorchTensor) -> tuple[int, int]:
        """Return the first byte of a storage and the one after its last."""
        if self.places is None:
            self.places = self._found(sizes_of(self.content))
        return self.places[tensor.key]

    def _found(self, sizes: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """Find all storages, given the size of an element of each."""
        places, at, whole = {}, self.start, self.path.stat().st_size
        with self.path.open("rb") as stream:
            for key in self.order:
                stream.seek(at)
                (count,) = struct.unpack("<q", stream.read(8))
                begin, at = at + 8, at + 8 + count * sizes[key]
                if count < 0 or at > whole:
                    raise ValueError(f"the storage {key} goes beyond its end")
                places[key] = (begin, at)
        return places


def is_plain(value: Any) -> bool:
    """Return True for a number, a string, `None`, or a list of numbers and strings."""
    if isinstance(value, list):
        return all(isinstance(one, bool | int | float | str) for one in value)
    return value is None or isinstance(value, bool | int | float | str)


def sizes_of(content: Any) -> dict[str, int]:
    """Return the bytes of an element of each storage that tensors refer to."""
    sizes: dict[str, int] = {}
    pending = [(content, 0)]
    while pending:
        value, depth = pending.pop()
        if isinstance(value, TorchTensor):
            sizes[value.key] = value.dtype.itemsize
        elif isinstance(value, dict) and depth <= DEEPEST:
            pending += [(one, depth + 1) for one in value.values()]
    return sizes


def is_legacy(path: Path) -> bool:
    """Return True for a file of torch before 1.6."""
    with path.open("rb") as stream:
        return stream.read(len(LEGACY)) == LEGACY


def _unpickled(stream: Any, path: Path) -> Any:
    """Read the next of several pickles in a row."""
    begin = stream.tell()
    for _ in pickletools.genops(stream):  # to the end of this pickle
        pass
    end = stream.tell()
    stream.seek(begin)
    text = checked(stream.read(end - begin))
    return Unpickler(io.BytesIO(text), path).load()


def check_entry(entry: zipfile.ZipInfo) -> None:
    """Refuse an entry that claims more bytes than its compressed bytes can hold."""
    if entry.file_size > DEFLATE * entry.compress_size + SLACK:
        raise ValueError(
            f"'{entry.filename}' claims {entry.file_size} bytes in "
            f"{entry.compress_size} compressed ones"
        )


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
