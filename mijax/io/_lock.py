"""Locks that keep a second process out of an output, and die with their process."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from mijax._errors import OutputError


@contextlib.contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes out of a file or folder until the block ends.

    The operating system drops the lock when its process ends in any way, so a killed
    process never has to be cleaned up after. Without POSIX locks nothing is locked.

    Args:
        path: the file or folder, which need not exist.

    Raises:
        OutputError: another process holds the lock, or the lock cannot be written.

    Examples:
        >>> import tempfile
        >>> path = f"{tempfile.mkdtemp()}/run"
        >>> with locked(path), locked(path):
        ...     pass
        Traceback (most recent call last):
        mijax._errors.OutputError: ... is being written by another process. ...
    """
    path = Path(path)
    lock = path.with_name(f".{path.name}.mijax-lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = acquire(lock)
    except BlockingIOError as error:
        raise OutputError(
            f"{path} is being written by another process. Wait for it, or name another "
            "place."
        ) from error
    except OSError as error:
        raise OutputError(
            f"Cannot write {path}: {error.strerror}. Check its folder."
        ) from error
    try:
        yield
    finally:
        # Whoever waits for this lock sees that its file is gone, and makes a new one.
        with contextlib.suppress(OSError):
            if os.fstat(file).st_size == 0:
                lock.unlink()
        release(file)


def acquire(lock: Path) -> int:
    """Open and lock a file that is still in its place once it is locked."""
    flags = os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    while True:
        file = os.open(lock, flags, 0o666)
        try:
            hold(file)
            if lock.exists() and os.path.samestat(os.fstat(file), lock.stat()):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def hold(file: int) -> None:
    """Lock an open file without waiting."""
    try:
        import fcntl  # noqa: PLC0415 - POSIX only
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def release(file: int) -> None:
    """Unlock and close a file, also for children that inherited it."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl  # noqa: PLC0415 - POSIX only

        fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)
