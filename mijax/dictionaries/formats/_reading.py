"""Strict reading: every tensor and every key is used exactly once, or refused."""

import math
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mijax._errors import LoadError, nearest
from mijax.io import Tensors, read_record
from mijax.io.internal import check_entry, check_weights, keys_of

BROKEN = (
    tokenize.TokenError,
    *(zipfile.BadZipFile, zlib.error, ValueError, TypeError, LookupError, OSError),
    *(EOFError, RuntimeError, SyntaxError, MemoryError, OverflowError),
)
AGAIN = "Download or copy the file again."
R = TypeVar("R")


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
        """True if there is such a tensor that was not taken."""
        return name in self.left

    def take(
        self, name: str, *axes: str | int, whole: bool | None = False
    ) -> np.ndarray:
        """Read a tensor of a known shape, at least in float32.

        Args:
            name: its name.
            *axes: its axes.
            whole: `False` for finite floats, `True` for integers, `None` for either.

        Raises:
            LoadError: no such tensor, or one of another shape or type.
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
        integers = array.dtype.kind in "iu"
        if whole and not integers:
            raise LoadError(
                f"{self.path}: tensor '{name}' has dtype {array.dtype}, expected "
                "integers."
            )
        if integers and whole is not False:
            return array
        check_weights(array, name, self.path)
        return array.astype(np.float32) if array.dtype.itemsize < 4 else array

    def maybe(
        self, name: str, *axes: str | int, whole: bool | None = False
    ) -> np.ndarray | None:
        """Read an optional tensor."""
        return self.take(name, *axes, whole=whole) if self.has(name) else None

    def close(self) -> None:
        """Refuse what was not taken.

        Raises:
            LoadError: a tensor that has no place.
        """
        for name in self.left:
            raise LoadError(
                f"{self.path}: tensor '{name}' has no place in this kind of dictionary "
                f"({len(self.left)} such), so the result would not be what was trained."
            )


def read_settings(
    kind: type[R], content: Mapping[str, Any], path: Path, free: Collection[str] = ()
) -> R:
    """Check the config of a dictionary against the record of its keys.

    Args:
        kind: a dataclass; see `mijax.io.read_record`.
        content: keys and values.
        path: the file, named by errors.
        free: keys that describe model, data and training, without effect on what the
            dictionary computes.

    Raises:
        LoadError: a key that is missing, unknown, of another type or out of range.
    """
    kept = {k: v for k, v in content.items() if k not in free or k in keys_of(kind)}
    return read_record(kind, kept, path, thing="dictionary")


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
                    check_entry(entry)
                    if name in shapes:
                        raise ValueError(f"array '{name}' is given twice")
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
        """Read one array."""
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                return arrays[name]
        except BROKEN as error:
            raise self._broken(error) from error

    def _broken(self, error: BaseException) -> LoadError:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        return LoadError(f"{self.path} is not a whole .npz file: {reason}. {AGAIN}")


def header(stream: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Read shape and dtype of an array."""
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"an array of version {version}")
    shape, _, dtype = read(stream)
    return shape, dtype
