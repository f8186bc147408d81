"""The file from which an interrupted sweep or discovery goes on."""

import contextlib
import hashlib
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all

from mijax._errors import OutputError
from mijax.core._digest import digest
from mijax.io import locked, replace_file

# Jobs ask after every chunk, so a kill costs this much work and one chunk.
SECONDS_BETWEEN_SAVES = 30.0


class Journal:
    """Finished chunks of one job on disk; with no path it does nothing.

    Used as a context manager, it keeps other processes out of the file. Of several
    processes of one job (`jax.distributed`) the first reads and writes it.

    Args:
        path: the file, or `None`.
        job: everything that the result depends on; a file of another job is refused.

    Attributes:
        done: number of chunks that the file holds.
    """

    def __init__(self, path: str | os.PathLike[str] | None, job: Any):
        self._shared = path is not None and jax.process_count() > 1
        first = jax.process_index() == 0
        self.path = Path(path) if path is not None and first else None
        self.digest = "" if self.path is None else digest(job)
        self.done = 0
        self._saved = time.monotonic()
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> "Journal":
        if self.path is not None:
            self._lock.enter_context(locked(self.path))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.close()

    def load(self, values: np.ndarray) -> None:
        """Fill `values` from the file, if it exists.

        Raises:
            OutputError: if the file belongs to another job or was not written by
                `save`, in full and as it is.
        """
        error = None
        try:
            self._read(values)
        except OutputError as refused:
            error = refused
        if self._shared:
            state = (values, np.array([self.done, error is not None]))
            kept, (done, failed) = broadcast_one_to_all(state)
            values[...], self.done = kept, int(done)
            if failed and error is None:
                error = OutputError(
                    "The first process refuses the file to resume from."
                )
        if error is not None:
            raise error

    def _read(self, values: np.ndarray) -> None:
        if self.path is None or not os.path.lexists(self.path):
            return
        try:
            # NumPy leaves a file open that it opened and cannot read.
            with self.path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                found, done = str(file["digest"]), int(file["done"])
                kept, checksum = file["values"], str(file["checksum"])
        except Exception as error:  # NumPy and zipfile raise many unrelated kinds
            raise self._refused("cannot be read as a file to resume from") from error
        if checksum != checksum_of(found, done, kept):
            raise self._refused("was changed after it was written, or is damaged")
        if found != self.digest or kept.shape != values.shape:
            raise self._refused(
                "holds another sweep (other model, prompts, edit, axes or memory "
                "budget)"
            )
        values[...] = kept
        self.done = done

    def due(self) -> bool:
        """Return True if it is time to save."""
        waited = time.monotonic() - self._saved
        return self.path is not None and waited > SECONDS_BETWEEN_SAVES

    def save(self, values: np.ndarray, done: int) -> None:
        """Write the file atomically."""
        if self.path is None:
            return
        checksum = checksum_of(self.digest, done, values)

        def write(scratch: Path) -> None:
            with scratch.open("wb") as file:
                np.savez(
                    file,
                    digest=self.digest,
                    done=done,
                    values=values,
                    checksum=checksum,
                )

        replace_file(self.path, write)
        self._saved = time.monotonic()

    def _refused(self, reason: str) -> OutputError:
        return OutputError(f"{self.path} {reason}: delete it or give another file.")


def checksum_of(job: str, done: int, values: np.ndarray) -> str:
    """Return the SHA-256 of the content of a file."""
    found = hashlib.sha256(f"{job} {done} {values.dtype} {values.shape}".encode())
    found.update(np.ascontiguousarray(values).data)
    return found.hexdigest()
