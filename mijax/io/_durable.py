"""The one writer: files and folders appear complete, and nothing else is replaced.

Everything is written next to its place on the same file system, synced to the disk
together with its folder, and renamed. A reader, or a process that is killed at any
moment, leaves the old version or the new one.
"""

import contextlib
import ctypes
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mijax._errors import OutputError
from mijax.io._lock import acquire, hold, locked, release
from mijax.io._manifest import check_replaceable, foreign, write_manifest

ADVICE = "Check the folder and its free space."
LOCK, NEW, OLD = "mijax-lock", "new", "old"


def replace_file(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> None:
    """Write a file next to its place, sync it, and rename it.

    Args:
        path: the file; an older regular file is replaced.
        write: writes the file at the path that it receives.

    Raises:
        OutputError: the file cannot be written, or a link or folder is in its place.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> replace_file(f"{folder}/a.txt", lambda path: path.write_text("a"))
    """
    path = Path(path)
    check_place(path)
    with named(path), scratch_for(path) as scratch:
        new = scratch / path.name
        write(new)
        sync(new)
        os.replace(new, path)
        sync(path.parent)


def replace_folder(path: str | os.PathLike[str], fill: Callable[[Path], Any]) -> None:
    """Fill a folder next to its place, list and sync its files, and rename it.

    The list, `mijax_files.json`, holds the SHA-256 of every file. Only a folder that
    holds exactly the files of its list is replaced.

    Args:
        path: the folder; an older one that mijax wrote is replaced as a whole.
        fill: writes files into the empty folder that it receives.

    Raises:
        OutputError: the folder cannot be written, another process is writing it, or a
            link, a file, or a folder with anything that mijax did not write is in its
            place.

    Examples:
        >>> import tempfile
        >>> path = f"{tempfile.mkdtemp()}/model"
        >>> replace_folder(path, lambda folder: (folder / "a").write_text("a"))
        >>> sorted(file.name for file in Path(path).iterdir())
        ['a', 'mijax_files.json']
    """
    path = Path(path)
    check_replaceable(path)
    with named(path), locked(path), scratch_for(path) as scratch:
        new = scratch / NEW
        new.mkdir()
        fill(new)
        put(new, path, scratch)


def publish(folder: Path, path: Path) -> None:
    """Put a complete folder in its place, as `replace_folder` does.

    Args:
        folder: the folder, on the same file system; it is renamed.
        path: its place; an older folder that mijax wrote is replaced.

    Raises:
        OutputError: as of `replace_folder`; `folder` is then unchanged.
    """
    check_replaceable(path)
    with named(path), locked(path), scratch_for(path) as scratch:
        put(folder, path, scratch)


def put(new: Path, path: Path, scratch: Path) -> None:
    """List and sync a folder and swap it with what is in its place."""
    write_manifest(new)
    for root, _, files in os.walk(new):
        for name in (*files, "."):
            sync(Path(root, name))
    if not path.exists() or not any(path.iterdir()):
        os.replace(new, path)
    else:
        old = scratch / OLD
        swap(new, path, old)
        # Files that came while the new folder was filled.
        if reason := foreign(old, contents=False):
            swap(old, path, new)
            raise OutputError(f"{path} {reason}. Nothing was changed: move it away.")
    sync(path.parent)


def swap(new: Path, path: Path, old: Path) -> None:
    """Move a folder to `old` and another one into its place, at once if possible."""
    if exchange(new, path):
        os.replace(new, old)
        return
    os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        os.replace(old, path)
        raise


def exchange(one: Path, other: Path) -> bool:
    """Swap two names atomically; false where the system cannot."""
    system = ctypes.CDLL(None) if os.name == "posix" else None
    rename = getattr(system, "renameat2", None)
    if rename is None:
        return False
    here, swapped = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    return rename(here, os.fsencode(one), here, os.fsencode(other), swapped) == 0


def sync(path: Path) -> None:
    """Wait until a file or the entries of a folder are on the disk; skips links."""
    if path.is_symlink() or (os.name == "nt" and path.is_dir()):
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        # Some file systems cannot sync folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(file)


def check_place(path: Path) -> None:
    """Refuse to write a file where a link, a folder or a device is."""
    try:
        kind = path.lstat().st_mode
    except OSError:
        return
    if stat.S_ISLNK(kind):
        raise OutputError(
            f"{path} is a link, and mijax does not write through links. Name the file "
            "that it points to, or another one."
        )
    if not stat.S_ISREG(kind):
        what = "a folder" if stat.S_ISDIR(kind) else "a device"
        raise OutputError(f"{path} is {what}, not a file. Name another file.")


@contextlib.contextmanager
def named(path: Path, advice: str = ADVICE) -> Iterator[None]:
    """Turn an error of the file system into one line with the path.

    Args:
        path: what is written.
        advice: what to do about it.

    Raises:
        OutputError: instead of any `OSError` of the block.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"Cannot write {path}: {reason}. {advice}") from error


@contextlib.contextmanager
def scratch_for(path: Path) -> Iterator[Path]:
    """Make a scratch folder next to a path, removed at the end.

    Scratch folders of killed processes are removed first: they hold a lock file that
    no process holds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name[:100]}.mijax-"
    for left in path.parent.glob(f"{glob_escaped(prefix)}????????"):
        remove_leftover(left, path)
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
    file = os.open(scratch / "lock", os.O_CREAT | os.O_RDWR)
    try:
        # Locked before it has the name by which other processes find it.
        hold(file)
        os.replace(scratch / "lock", scratch / LOCK)
        yield scratch
    finally:
        remove(scratch)
        release(file)


def remove_leftover(scratch: Path, path: Path) -> None:
    """Remove the scratch folder of a killed process, after restoring `path` from it."""
    if scratch.is_symlink() or not (scratch / LOCK).is_file():
        return
    with contextlib.suppress(OSError):
        file = acquire(scratch / LOCK)
        try:
            old = scratch / OLD
            if old.is_dir() and not path.exists():
                os.replace(old, path)
            remove(scratch)
        finally:
            release(file)


def remove(scratch: Path) -> None:
    """Remove a scratch folder, its lock file last: that is what shows whose it is."""
    with contextlib.suppress(OSError):
        for path in scratch.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK:
                path.unlink()
        shutil.rmtree(scratch, ignore_errors=True)


def glob_escaped(text: str) -> str:
    """Escape the characters that `Path.glob` treats as patterns."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)
