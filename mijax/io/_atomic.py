"""Files and folders that appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from mijax._errors import OutputError


def replace_file(path: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
    """Writes a file beside its place, then renames it there.

    Args:
        path: where the file is to be; an older file is replaced.
        write: writes the file at the path that it is given.

    Raises:
        OutputError: the file cannot be written.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> replace_file(f"{folder}/a.txt", lambda path: path.write_text("a") and None)
    """
    path = Path(path)
    with named(path), beside(path) as scratch:
        write(scratch / path.name)
        os.replace(scratch / path.name, path)


def replace_folder(path: str | os.PathLike[str], fill: Callable[[Path], None]) -> None:
    """Fills a folder beside its place, then renames it there.

    Args:
        path: where the folder is to be; an older folder is replaced as a whole.
        fill: writes files into the empty folder that it is given.

    Raises:
        OutputError: the folder cannot be written, or a file stands in its place.

    Examples:
        >>> import tempfile
        >>> path = f"{tempfile.mkdtemp()}/model"
        >>> replace_folder(path, lambda folder: (folder / "a").write_text("a") and None)
    """
    path = Path(path)
    if path.is_file():
        raise OutputError(f"{path} is a file, not a folder. Name another folder.")
    with named(path), beside(path) as scratch:
        new, old = scratch / "new", scratch / "old"
        new.mkdir()
        fill(new)
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(new, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Turns what the system says into one line that names the path."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"Cannot write {path}: {reason}. Check the folder and its free space."
        ) from error


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A scratch folder on the same file system, removed at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
