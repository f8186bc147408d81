"""SHA-256 of files."""

import hashlib
from collections.abc import Iterable
from pathlib import Path


def digest(files: Iterable[Path]) -> str:
    """Hashes files as one stream, in the order of their names.

    Args:
        files: the files.

    Returns:
        `"sha256:"` and 64 hexadecimal digits. For one file this is its plain SHA-256.

    Examples:
        >>> import pathlib
        >>> digest([pathlib.Path(__file__)])[:7]
        'sha256:'
    """
    total = hashlib.sha256()
    for file in sorted(files):
        with file.open("rb") as stream:
            hashlib.file_digest(stream, lambda: total)
    return f"sha256:{total.hexdigest()}"


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits.

    Args:
        path: the file.
    """
    return digest([path]).removeprefix("sha256:")
