"""The file from which an interrupted sweep goes on."""

import contextlib
import functools
import hashlib
import os
import re
import time
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mijax._errors import OutputError

SECONDS_BETWEEN_SAVES = 2.0


class Journal:
    """Keeps the finished chunks of one sweep on disk; with no path it does nothing.

    Args:
        path: the file, or `None`.
        job: everything that the result depends on; a file of another job is refused.

    Attributes:
        done: number of chunks that the file holds.
    """

    def __init__(self, path: str | os.PathLike[str] | None, job: Any):
        self.path = None if path is None else Path(path)
        self.digest = "" if path is None else digest(job)
        self.done = 0
        self._saved = time.monotonic()

    def load(self, values: np.ndarray) -> None:
        """Fills `values` from the file, if there is one.

        Raises:
            OutputError: if the file is of another sweep or cannot be read.
        """
        if self.path is None or not self.path.exists():
            return
        try:
            with np.load(self.path, allow_pickle=False) as file:
                found, done = str(file["digest"]), int(file["done"])
                kept = file["values"]
        except (OSError, ValueError, KeyError) as error:
            raise OutputError(
                f"{self.path} is not a sweep to resume ({error}): delete it."
            ) from error
        if found != self.digest or kept.shape != values.shape:
            raise OutputError(
                f"{self.path} holds another sweep (other model, prompts, edit, axes "
                "or memory budget): delete it or give another file."
            )
        values[...] = kept
        self.done = done

    def due(self) -> bool:
        """Tells whether it is time to save."""
        waited = time.monotonic() - self._saved
        return self.path is not None and waited > SECONDS_BETWEEN_SAVES

    def save(self, values: np.ndarray, done: int) -> None:
        """Writes the file, at once whole or not at all."""
        if self.path is None:
            return
        part = self.path.with_name(self.path.name + ".part")
        try:
            with open(part, "wb") as file:
                np.savez(file, digest=self.digest, done=done, values=values)
            os.replace(part, self.path)
        except OSError as error:
            raise OutputError(
                f"Cannot write {self.path} ({error.strerror}): give a file in a folder "
                "that exists and is writable."
            ) from error
        self._saved = time.monotonic()


def digest(tree: Any) -> str:
    """Returns the SHA-256 of a tree: its structure, arrays and functions.

    Functions are told apart by what they do (see `_of_function`). It is the same in
    every process.
    """
    return _hash(tree, ()).hex()


def _hash(value: Any, around: tuple[Any, ...]) -> bytes:
    """Hashes a value; `around` are those that hold it, as some hold themselves."""
    if any(value is other for other in around):
        return hashlib.sha256(b"itself").digest()
    raw, parts = _array(value) if _is_array(value) else _parts(value)
    found = hashlib.sha256()
    for piece in raw:
        found.update(piece)
    for part in parts:
        found.update(_hash(part, (*around, value)))
    return found.digest()


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray | np.generic)


def _array(value: Any) -> tuple[list[Any], Iterable[Any]]:
    """Returns what is hashed of an array as it is, and as values of their own."""
    if isinstance(value, jax.Array) and jnp.issubdtype(
        value.dtype, jax.dtypes.prng_key
    ):
        value = jax.random.key_data(value)
    array = np.ascontiguousarray(value)
    raw = [f"{array.dtype}{array.shape}".encode()]
    if array.dtype == object:
        return raw, array.ravel().tolist()
    return [*raw, array.view(np.uint8).data], ()


def _parts(value: Any) -> tuple[list[Any], Iterable[Any]]:
    """Returns the name of a value's kind or its text, and the values that it holds."""
    name = [f"{type(value).__module__}.{type(value).__qualname__}:".encode()]
    if isinstance(value, type | types.ModuleType):
        where = f"{getattr(value, '__module__', '')}.{value.__name__}"
        return [*name, where.encode()], ()
    if isinstance(value, dict):
        return name, (part for item in value.items() for part in item)
    if isinstance(value, set | frozenset):
        return [*name, *sorted(_hash(part, ()) for part in value)], ()
    function = _of_function(value)
    if function is not None:
        return name, function
    level = jax.tree_util.default_registry.flatten_one_level(value)
    if level is not None and value is not None:
        return name, (*level[0], level[1])
    # Where an object lies in memory differs from process to process.
    return [*name, re.sub(r" at 0x[0-9a-f]+", "", str(value)).encode()], ()


def _of_function(value: Any) -> tuple[Any, ...] | None:
    """Returns what a function does: code, defaults, and what it has captured.

    What it calls by the name of a global is in it by that name. `None` of others.
    """
    if isinstance(value, types.FunctionType):
        defaults = (value.__defaults__, value.__kwdefaults__)
        return (value.__qualname__, value.__code__, *defaults, *_captured(value))
    if isinstance(value, types.CodeType):
        takes = (value.co_argcount, value.co_kwonlyargcount, value.co_flags)
        return (value.co_code, value.co_names, value.co_consts, *takes)
    if isinstance(value, types.MethodType):
        return value.__func__, value.__self__
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    wrapped = getattr(value, "__wrapped__", None)
    return None if wrapped is None else (wrapped,)


def _captured(function: types.FunctionType) -> list[Any]:
    """Returns the values that a function has captured."""
    found = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # nothing is in it yet
            found.append(cell.cell_contents)
    return found
