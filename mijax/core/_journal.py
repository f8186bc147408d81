"""The file from which an interrupted sweep goes on."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from mijax._errors import OutputError
from mijax.core._digest import digest

SECONDS_BETWEEN_SAVES = 2.0


class Journal:
    """Keeps the finished chunks of one sweep on disk; with no path it does nothing.

    Args:
        path: the file, or `None`.
        job: everything that the result depends on; a file of another job is refused.

    Attributes:
        done: number of chunks that the file holds.
    """

    def __init__(self, path: str | os.PathLike[str] | None, job: Any):
        self.path = None if path is None else Path(path)
        self.digest = "" if path is None else digest(job)
        self.done = 0
        self._saved = time.monotonic()

    def load(self, values: np.ndarray) -> None:
        """Fills `values` from the file, if there is one.

        Raises:
            OutputError: if the file is of another sweep or cannot be read.
        """
        if self.path is None or not self.path.exists():
            return
        try:
            with np.load(self.path, allow_pickle=False) as file:
                found, done = str(file["digest"]), int(file["done"])
                kept = file["values"]
        except (OSError, ValueError, KeyError) as error:
            raise OutputError(
                f"{self.path} is not a sweep to resume ({error}): delete it."
            ) from error
        if found != self.digest or kept.shape != values.shape:
            raise OutputError(
                f"{self.path} holds another sweep (other model, prompts, edit, axes "
                "or memory budget): delete it or give another file."
            )
        values[...] = kept
        self.done = done

    def due(self) -> bool:
        """Tells whether it is time to save."""
        waited = time.monotonic() - self._saved
        return self.path is not None and waited > SECONDS_BETWEEN_SAVES

    def save(self, values: np.ndarray, done: int) -> None:
        """Writes the file, at once whole or not at all."""
        if self.path is None:
            return
        part = self.path.with_name(self.path.name + ".part")
        try:
            with open(part, "wb") as file:
                np.savez(file, digest=self.digest, done=done, values=values)
            os.replace(part, self.path)
        except OSError as error:
            raise OutputError(
                f"Cannot write {self.path} ({error.strerror}): give a file in a folder "
                "that exists and is writable."
            ) from error
        self._saved = time.monotonic()
