"""List of the files in a folder that mijax wrote, with the SHA-256 of each.

The list serves two purposes: a folder is replaced only if it holds exactly the listed
files, and loading refuses a file that differs from the list.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mijax._errors import LoadError, OutputError
from mijax.io._digest import file_digest
from mijax.io._json import parse_json

MANIFEST = "mijax_files.json"
FOLDER = "folder"


def write_manifest(folder: Path) -> None:
    """Write the list of everything in a folder into the folder.

    Args:
        folder: a complete folder.
    """
    files = {name: print_of(folder / name) for name in names_in(folder)}
    text = json.dumps({"mijax_files": 1, "files": files}, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def check_replaceable(path: Path, *, contents: bool = True) -> None:
    """Refuse a place that holds anything but a folder written by mijax.

    A folder that does not exist or is empty passes.

    Args:
        path: where a folder is to be written.
        contents: whether to compare the SHA-256 of every file, not only the names.

    Raises:
        OutputError: the place holds a link, a file, or a folder with a file that mijax
            did not write or that was changed later.
    """
    if reason := foreign(path, contents=contents):
        raise OutputError(
            f"{path} {reason}. Nothing was changed: move it away, or name another "
            "folder."
        )


def foreign(folder: Path, *, contents: bool = True) -> str:
    """Describe the first thing in a place that mijax did not write, `""` if none."""
    if folder.is_symlink():
        return "is a link, and mijax does not write through links"
    if not folder.exists():
        return ""
    if not folder.is_dir():
        return "is a file, not a folder"
    return foreign_file(folder, contents) if any(folder.iterdir()) else ""


def foreign_file(folder: Path, contents: bool) -> str:
    """Describe the first file in a folder that mijax did not write, `""` if none."""
    try:
        listed = listed_in(folder)
    except LoadError:
        listed = None
    if listed is None:
        return (
            f"is not a folder that mijax wrote: it has no valid {MANIFEST}, so its "
            "files may be yours"
        )
    for name in names_in(folder):
        if name not in listed:
            return f"holds '{name}', which mijax did not write"
        if contents and print_of(folder / name) != listed[name]:
            return f"holds '{name}', which was changed after mijax wrote it"
    return ""


def check_files(folder: Path, names: Iterable[str] | None = None) -> None:
    """Compare the files of a folder with its list, if the folder has one.

    Args:
        folder: a folder, perhaps written by mijax.
        names: the files to compare, all of the list by default.

    Raises:
        LoadError: a file is missing or differs from the one that was written.
    """
    listed = listed_in(folder)
    if listed is None:
        return
    for name in listed if names is None else listed.keys() & set(names):
        path = folder / name
        if not (path.exists() or path.is_symlink()):
            raise LoadError(
                f"{path} is missing, but {MANIFEST} lists it. Copy the folder again."
            )
        if print_of(path) != listed[name]:
            raise LoadError(
                f"{path} is damaged or was changed: its SHA-256 differs from the one "
                f"in {MANIFEST}. Copy it again; if the change is yours, delete "
                f"{MANIFEST}."
            )


def listed_in(folder: Path) -> dict[str, str] | None:
    """Read the list of a folder, `None` if the folder has none."""
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        return None
    try:
        content: Any = parse_json(path.read_text(encoding="utf-8"))
        version, files = content["mijax_files"], content["files"]
        if version != 1 or not all(isinstance(v, str) for v in files.values()):
            raise ValueError(f"version {version!r} is not known")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadError(
            f"{path} is damaged ({type(error).__name__}). Copy the folder again."
        ) from error
    return files


def names_in(folder: Path) -> list[str]:
    """List files, links and folders below a folder, without the list itself."""
    found = []
    for root, folders, files in os.walk(folder):
        found += [Path(root, name) for name in (*folders, *files)]
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    return [name for name in names if name != MANIFEST]


def print_of(path: Path) -> str:
    """Return the SHA-256 of a file, the target of a link, or the word "folder"."""
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    return FOLDER if path.is_dir() else file_digest(path)
