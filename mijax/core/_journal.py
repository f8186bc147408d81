"""The file from which an interrupted sweep goes on."""

import hashlib
import os
import re
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mijax._errors import OutputError

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


def digest(tree: Any) -> str:
    """Returns the SHA-256 of a tree's structure and arrays."""
    leaves, structure = jax.tree.flatten(tree)
    # Where a function lies in memory differs from process to process.
    plain = lambda value: re.sub(r" at 0x[0-9a-f]+", "", str(value)).encode()  # noqa: E731
    found = hashlib.sha256(plain(structure))
    for leaf in leaves:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        ):
            leaf = jax.random.key_data(leaf)  # noqa: PLW2901
        array = np.ascontiguousarray(leaf)
        found.update(f"{array.dtype}{array.shape}".encode())
        known = array.dtype != object
        found.update(array.view(np.uint8).data if known else plain(leaf))
    return found.hexdigest()
