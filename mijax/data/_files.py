"""Files of arrays and records, written durably and checked."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from mijax._errors import LoadError
from mijax.io import replace_file
from mijax.io.internal import ADVICE, file_digest, named, parse_json

RESUME = f"{ADVICE[:-1]}, and run the same again: what is finished is kept."


def write_file(
    path: Path,
    write: Callable[[BinaryIO], Any],
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a file durably.

    Args:
        path: the file.
        write: writes to the open file that it receives.
        check: receives the complete file before it replaces an older one, and raises
            if it must not.

    Raises:
        OutputError: it cannot be written; nothing is left of it.
    """

    def fill(scratch: Path) -> None:
        with named(path, RESUME), scratch.open("wb") as file:
            write(file)
        if check is not None:
            check(scratch)

    replace_file(path, fill)


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record with its checksum."""
    text = json.dumps({**record, "checksum": checksum_of(record)}, indent=1) + "\n"
    write_file(path, lambda file: file.write(text.encode()))


def checksum_of(record: dict[str, Any]) -> str:
    """Return the SHA-256 of a record."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def read_json(path: Path, form: str) -> dict[str, Any]:
    """Read a record and verify its checksum; records of 0.1.0 have none.

    Args:
        path: the file.
        form: what the record's `"form"` must be.

    Raises:
        LoadError: the file is missing, damaged or something else.
    """
    try:
        record = parse_json(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read ({error}).") from error
    if not isinstance(record, dict) or record.get("form") != form:
        raise LoadError(f"{path} is not {form!r}. Name another folder.")
    checksum = record.pop("checksum", None)
    if checksum is not None and checksum != checksum_of(record):
        raise LoadError(f"{path} is damaged or was changed. Delete it and store again.")
    return record


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
