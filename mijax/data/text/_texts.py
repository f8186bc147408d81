"""Documents, one text at a time, from files and data sets."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mijax._errors import LoadError, NetworkError, nearest

JSON_LINES = (".jsonl", ".ndjson")
PIECE = 1 << 20


def read_texts(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    field: str = "text",
    separator: str | None = None,
) -> Iterable[str]:
    r"""Reads documents from text files and JSON-lines files, as they are asked for.

    Args:
        paths: a file, or several. In `.jsonl` and `.ndjson` files every line is a
            document; any other file is text.
        field: the field of a JSON object that holds the text.
        separator: what stands between the documents of a text file (`"\n\n"`,
            `"<|endoftext|>"`); without it, a file is one document.

    Returns:
        The documents, in order; they can be gone through more than once.

    Raises:
        LoadError: a file is missing, not UTF-8, or a line has no such field.

    Examples:
        >>> import pathlib
        >>> _ = pathlib.Path("a.txt").write_text("one\n\ntwo")
        >>> list(read_texts("a.txt", separator="\n\n"))
        ['one', 'two']
    """
    several = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    files = [Path(path) for path in several]
    for file in files:
        if not file.is_file():
            raise LoadError(f"{file} is not a file. Name files of texts.")
    if separator == "":
        raise LoadError("Documents cannot be separated by nothing: give a separator.")
    return Texts(files, field, separator)


class Texts:
    """The documents of some files."""

    def __init__(self, files: list[Path], field: str, separator: str | None) -> None:
        self.files = files
        self.field = field
        # Line breaks of a separator may be those of Windows.
        spelled = re.escape(separator or "").replace("\\\n", "\r?\n")
        self.separator = re.compile(spelled) if separator else None

    def __iter__(self) -> Iterator[str]:
        """Reads the files from the first."""
        for file in self.files:
            try:
                if file.suffix.lower() in JSON_LINES:
                    yield from self._lines(file)
                else:
                    yield from self._split(file)
            except UnicodeDecodeError as error:
                raise LoadError(
                    f"{file} is not UTF-8 text ({error.reason}). Convert it first."
                ) from error

    def _lines(self, file: Path) -> Iterator[str]:
        with file.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise LoadError(
                        f"{file}, line {number} is not JSON ({error.msg})."
                    ) from error
                yield text_of(row, self.field, f"{file}, line {number}")

    def _split(self, file: Path) -> Iterator[str]:
        rest = ""
        with file.open(encoding="utf-8", newline="") as stream:
            while piece := stream.read(PIECE):
                rest += piece
                if self.separator is not None:
                    *whole, rest = self.separator.split(rest)
                    yield from (text for text in whole if text.strip())
        if rest.strip():
            yield rest


def text_of(row: Any, field: str, where: str) -> str:
    """Returns the text of one row.

    Raises:
        LoadError: it has none.
    """
    if not isinstance(row, dict) or field not in row:
        names = list(row) if isinstance(row, dict) else []
        raise LoadError(f"{where} has no field {field!r}.{nearest(field, names)}")
    if not isinstance(row[field], str):
        raise LoadError(
            f"{where}: field {field!r} is {type(row[field]).__name__}, expected text."
        )
    return row[field]


def read_dataset(
    name: str, *, split: str = "train", field: str = "text", **options: Any
) -> Iterable[str]:
    """Reads documents from a data set of the Hugging Face `datasets` library.

    Args:
        name: as `datasets.load_dataset` takes it.
        split: which part of it.
        field: the column that holds the text.
        **options: what else `datasets.load_dataset` takes, for instance
            `streaming=True`.

    Returns:
        The documents, in order; they can be gone through more than once.

    Raises:
        LoadError: the library is not installed, or there is no such column.
        NetworkError: the data set cannot be fetched.

    Examples:
        >>> texts = read_dataset("roneneldan/TinyStories")  # doctest: +SKIP
    """
    try:
        import datasets  # noqa: PLC0415 # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise LoadError(
            "Reading a data set of the Hugging Face hub needs the package `datasets`: "
            "pip install datasets, or give files to mijax.data.read_texts."
        ) from error
    try:
        rows = datasets.load_dataset(name, split=split, **options)
    except OSError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NetworkError(f"Cannot fetch the data set {name!r}: {reason}") from error
    return Column(rows, field, f"The data set {name!r}")


class Column:
    """The texts of one column of a data set."""

    def __init__(self, rows: Iterable[Any], field: str, where: str) -> None:
        self.rows = rows
        self.field = field
        self.where = where

    def __iter__(self) -> Iterator[str]:
        """Reads the rows from the first."""
        for row in self.rows:
            yield text_of(row, self.field, self.where)
