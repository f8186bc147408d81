"""Files of arrays: written whole or not at all, and checked."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from mijax._errors import LoadError, OutputError

BLOCK = 1 << 22


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file under another name and renames it once it is on the disk.

    Raises:
        OutputError: it cannot be written; nothing is left of it.
    """
    part = path.with_name(path.name + ".part")
    with named(path):
        try:
            with part.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Turns what the system says into one line that names the path."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"Cannot write {path}: {reason}. Check the folder and its free space, and "
            "run the same again: what is finished is kept."
        ) from error


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Writes a record."""
    text = json.dumps(record, indent=1) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def read_json(path: Path, form: str) -> dict[str, Any]:
    """Reads a record.

    Args:
        path: the file.
        form: what the record's `"form"` must be.

    Raises:
        LoadError: the file is missing or something else.
    """
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read ({error}).") from error
    if not isinstance(record, dict) or record.get("form") != form:
        raise LoadError(f"{path} is not {form!r}. Name another folder.")
    return record


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()


def check_file(path: Path, size: int, digest: str | None) -> None:
    """Refuses a file that is not what was written.

    Raises:
        LoadError: it is missing, cut or changed.
    """
    advice = "Delete it and store again."
    if not path.is_file():
        raise LoadError(f"{path} is missing. {advice}")
    found = path.stat().st_size
    if found != size:
        raise LoadError(f"{path} has {found} bytes instead of {size}. {advice}")
    if digest is not None and file_digest(path) != digest:
        raise LoadError(f"{path} is damaged: its SHA-256 is not {digest}. {advice}")


def plain(array: Any) -> np.ndarray:
    """Returns an array that NumPy can write: bfloat16 as the bits of it."""
    array = np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array)
    return array.view(np.uint16) if array.dtype == jnp.bfloat16 else array


def typed(array: np.ndarray, dtype: str) -> np.ndarray:
    """Undoes `plain`."""
    return array.view(jnp.bfloat16) if dtype == "bfloat16" else array
