"""Strict reading: every tensor and every key is used exactly once, or refused."""

import math
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mijax._errors import LoadError, nearest
from mijax.io import Tensors

BROKEN = (
    *(zipfile.BadZipFile, zlib.error, ValueError, TypeError, LookupError, OSError),
    *(EOFError, RuntimeError, SyntaxError, MemoryError, OverflowError),
)
AGAIN = "Download or copy the file again."


class Reading:
    """Tensors of a file, each of which is taken exactly once.

    Axes are sizes or names; a name means the same size in every tensor.

    Args:
        tensors: the file.
        sizes: of axes, where a config says them.
    """

    def __init__(self, tensors: Tensors, sizes: Mapping[str, int] | None = None):
        self.tensors = tensors
        self.path = tensors.path
        self.sizes: dict[Any, int] = dict(sizes or {})
        self.left = dict.fromkeys(tensors.shapes)

    def has(self, name: str) -> bool:
        """Whether there is such a tensor that was not taken."""
        return name in self.left

    def take(self, name: str, *axes: str | int) -> np.ndarray:
        """Reads a tensor of a known shape, at least in float32.

        Raises:
            LoadError: no such tensor, or one of another shape.
        """
        if name not in self.left:
            hint = nearest(name, self.tensors.shapes)
            raise LoadError(f"{self.path} has no tensor '{name}'.{hint}")
        shape = self.tensors.shapes[name]
        for axis, size in zip(axes, shape, strict=False):
            if isinstance(axis, str):
                self.sizes.setdefault(axis, size)
        if shape != tuple(self.sizes.get(axis, axis) for axis in axes):
            said = ", ".join(
                f"{axis}={self.sizes[axis]}" if axis in self.sizes else str(axis)
                for axis in axes
            )
            raise LoadError(
                f"{self.path}: tensor '{name}' has shape {shape}, expected ({said})."
            )
        del self.left[name]
        array = self.tensors.read(name)
        if array.dtype.itemsize < 4 and array.dtype.kind not in "iub":
            return array.astype(np.float32)
        return array

    def maybe(self, name: str, *axes: str | int) -> np.ndarray | None:
        """Reads a tensor that need not be there."""
        return self.take(name, *axes) if self.has(name) else None

    def close(self) -> None:
        """Refuses what was not taken.

        Raises:
            LoadError: a tensor that has no place.
        """
        for name in self.left:
            raise LoadError(
                f"{self.path}: tensor '{name}' has no place in this kind of dictionary "
                f"({len(self.left)} such), so the result would not be what was trained."
            )


class Settings:
    """A config, each key of which is understood, or refused.

    Args:
        content: keys and values.
        path: what errors name.
        free: keys that say where the dictionary comes from and change nothing.
    """

    def __init__(
        self, content: Mapping[str, Any], path: Path, free: Collection[str] = ()
    ):
        self.content = dict(content)
        self.path = path
        self.left = {key for key in content if key not in free}
        self.free = free
        self.known: list[str] = []

    def get(self, key: str, default: Any) -> Any:
        """Reads a key that need not be there."""
        self.known.append(key)
        self.left.discard(key)
        return self.content.get(key, default)

    def need(self, key: str) -> Any:
        """Reads a key.

        Raises:
            LoadError: there is none.
        """
        value = self.get(key, None)
        if value is None:
            raise LoadError(f"{self.path} has no key '{key}', which this format needs.")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        """Reads a whole number.

        Raises:
            LoadError: there is none, or it is something else.
        """
        value = self.need(key) if default is None else self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value % 1:
            raise LoadError(f"{self.path}: {key}={value!r} is not a whole number.")
        return int(value)

    def only(self, key: str, *allowed: Any) -> Any:
        """Reads a key that may have some values alone; without it, the first of them.

        Raises:
            LoadError: another value, which a dictionary cannot represent.
        """
        value = self.get(key, allowed[0])
        if value not in allowed:
            said = " or ".join(repr(a) for a in allowed)
            raise LoadError(
                f"{self.path}: {key}={value!r} cannot be represented, only {said}."
            )
        return value

    def close(self) -> None:
        """Refuses keys that were not read.

        Raises:
            LoadError: a key whose meaning is not known.
        """
        for key in sorted(self.left):
            hint = nearest(key, self.known)
            raise LoadError(
                f"{self.path}: key '{key}' is not known, so it may change what the "
                f"dictionary computes.{hint}"
            )


class Npz:
    """The arrays of an `.npz` file; pickled objects in it are refused.

    Args:
        path: the file.

    Raises:
        LoadError: the file is missing, broken, or has objects in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        if not path.is_file():
            raise LoadError(f"{path} does not exist. Put the file there.")
        shapes = {}
        try:
            with zipfile.ZipFile(path) as archive:
                for entry in archive.infolist():
                    name = entry.filename.removesuffix(".npy")
                    with archive.open(entry) as stream:
                        shapes[name], dtype = header(stream)
                        size = math.prod(shapes[name]) * dtype.itemsize
                        whole = size == entry.file_size - stream.tell()
                    if dtype.hasobject:
                        raise LoadError(
                            f"{path}: array '{name}' is of Python objects, whose "
                            "pickles can run any code. Nothing was run."
                        )
                    if not whole:
                        raise LoadError(f"{path}: array '{name}' is not whole. {AGAIN}")
        except BROKEN as error:
            raise self._broken(error) from error
        self.shapes: Mapping[str, tuple[int, ...]] = shapes

    def read(self, name: str) -> np.ndarray:
        """Reads one array."""
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                return arrays[name]
        except BROKEN as error:
            raise self._broken(error) from error

    def _broken(self, error: BaseException) -> LoadError:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return LoadError(f"{self.path} is not a whole .npz file: {reason}. {AGAIN}")


def header(stream: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Reads shape and dtype of an array."""
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"an array of version {version}")
    shape, _, dtype = read(stream)
    return shape, dtype
