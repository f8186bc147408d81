"""Text and JSON files of runs, written durably."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from mijax.io import replace_file
from mijax.io.internal import named


def writable(path: Path) -> AbstractContextManager[None]:
    """Turns an `OSError` of the file system into an `OutputError` that names `path`."""
    return named(path, "Choose another place with --out.")


def write(path: Path, content: str | bytes) -> Path:
    """Writes a file by atomic rename: a reader sees the old file or the new one.

    Args:
        path: where the file goes.
        content: text (stored as UTF-8) or bytes.

    Returns:
        `path`.

    Raises:
        OutputError: when the file cannot be written.
    """

    def fill(scratch: Path) -> None:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)

    replace_file(path, fill)
    return path


def write_json(path: Path, value: Mapping[str, object]) -> Path:
    """Writes strict JSON (no NaN), indented, by atomic rename."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return write(path, text + "\n")
