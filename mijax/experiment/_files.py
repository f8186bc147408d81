"""Text and JSON files of runs, written durably."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mijax._errors import OutputError
from mijax.io import replace_file


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turns an `OSError` of the file system into an `OutputError` that names `path`."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"cannot write {path}: {reason}. Choose another place with --out."
        ) from error


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
