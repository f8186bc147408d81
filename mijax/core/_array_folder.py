"""A folder of `.npy` files that is filled bit by bit and can be gone on with."""

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mijax._errors import LoadError, OutputError
from mijax.core._journal import SECONDS_BETWEEN_SAVES
from mijax.io import locked, read_json, replace_file
from mijax.io.internal import named

RECORD = "mijax_chunks.json"
FORM = "mijax chunks 1"
# Left by a process that was killed while it wrote the record.
SCRATCH = f".{RECORD}.mijax-"


class ArrayFolder:
    """The arrays of one job, a file for each, and a record of how much is done.

    Types that NumPy does not know, such as bfloat16, are stored as unsigned integers of
    the same bits.

    Args:
        path: the folder.
        digest: of everything that the arrays depend on.
        whole: a tree of their shapes and dtypes, prompts first.
    """

    def __init__(self, path: Path, digest: str, whole: Any):
        self.path, self.digest = path, digest
        leaves, _ = jax.tree_util.tree_flatten_with_path(whole)
        self.specs = [leaf for _, leaf in leaves]
        names = names_of([jax.tree_util.keystr(at) for at, _ in leaves])
        self.files = [path / f"{name}.npy" for name in names]
        self._done, self._saved_at = 0, 0.0
        self._values: list[np.memmap] = []

    @contextlib.contextmanager
    def writing(self) -> Iterator[tuple[list[Any], int]]:
        """Yield the arrays, and the number of prompts that are in them.

        Raises:
            OutputError: the folder holds anything else, or another process writes it.
        """
        with locked(self.path):
            with named(self.path):
                saved = self._open()
            self._done, self._saved_at = saved, time.monotonic()
            try:
                yield self._typed(), saved
            finally:
                if self._done > saved:
                    self._save(self._done)
                self._values = []

    def _open(self) -> int:
        """Open the files, or make them, and return the number of prompts in them."""
        saved = self._read()
        if saved is None:
            saved = 0
            self.path.mkdir(parents=True, exist_ok=True)
            self._save(0)
        mode = "r+" if saved else "w+"
        self._values = [self._mapped(i, mode) for i in range(len(self.files))]
        return saved

    def note(self, done: int) -> None:
        """Note that prompts are done, and record it from time to time."""
        self._done = done
        if time.monotonic() - self._saved_at > SECONDS_BETWEEN_SAVES:
            self._save(done)

    def opened(self) -> list[Any]:
        """Return the arrays as read-only memory maps."""
        self._values = [self._mapped(i, "r") for i in range(len(self.files))]
        return self._typed()

    def _typed(self) -> list[Any]:
        pairs = zip(self._values, self.specs, strict=True)
        return [value.view(spec.dtype) for value, spec in pairs]

    def _save(self, done: int) -> None:
        """Record what is done, once it is on the disk."""
        with named(self.path):
            for value in self._values:
                value.flush()
        files = [file.name for file in self.files]
        kept = {"form": FORM, "digest": self.digest, "done": done, "files": files}
        text = json.dumps(kept, indent=2) + "\n"
        replace_file(self.path / RECORD, lambda path: path.write_text(text))
        self._saved_at = time.monotonic()

    def _read(self) -> int | None:
        """Return the number of prompts that the folder holds, `None` of a new one."""
        if not os.path.lexists(self.path):
            return None
        if self.path.is_symlink() or not self.path.is_dir():
            raise self._refused("is not a folder")
        found = {file.name: file for file in self.path.iterdir()}
        if not found:
            return None
        own = {RECORD, *(file.name for file in self.files)}
        try:
            kept = read_json(self.path / RECORD) if RECORD in found else {}
        except LoadError as error:
            raise self._refused("has a record that cannot be read") from error
        done = kept.get("done")
        if kept.get("form") != FORM or type(done) is not int or done < 0:
            raise self._refused("holds what mijax did not write")
        if kept.get("digest") != self.digest:
            raise self._refused(
                "holds another job (other model, inputs, edits, sites or batch)"
            )
        for name, file in found.items():
            if file.is_symlink() or not (name in own or name.startswith(SCRATCH)):
                raise self._refused(f"holds {name!r}, which mijax did not write")
        return done

    def _mapped(self, i: int, mode: Any) -> np.memmap:
        """Open a file, or make it at its full size."""
        file, spec = self.files[i], self.specs[i]
        kind = spec.dtype if spec.dtype.isbuiltin == 1 else f"u{spec.dtype.itemsize}"
        kind = np.dtype(kind)
        if mode == "w+":
            made = np.lib.format.open_memmap(
                file, mode="w+", dtype=kind, shape=spec.shape
            )
            if hasattr(os, "posix_fallocate"):
                # A disk that fills up later would end the process without an error.
                with file.open("r+b") as raw:
                    os.posix_fallocate(raw.fileno(), 0, os.fstat(raw.fileno()).st_size)
            return made
        try:
            found = np.lib.format.open_memmap(file, mode=mode)
        except (OSError, ValueError) as error:
            raise self._refused(f"has no array {file.name!r} any more") from error
        if (found.shape, found.dtype) != (
            spec.shape,
            kind,
        ) or not found.flags.c_contiguous:
            raise self._refused(f"holds another array in {file.name!r}")
        return found

    def _refused(self, reason: str) -> OutputError:
        return OutputError(f"{self.path} {reason}: give another folder, or delete it.")


def names_of(places: list[str]) -> list[str]:
    """Return the names of files for places in a tree, each another one.

    Examples:
        >>> names_of(["['z']", "['mlp'][0]"]), names_of([""])
        (['z', 'mlp.0'], ['values'])
    """
    names = []
    for place in places:
        parts = re.findall(r"[\w-]+", place)
        names.append(".".join(parts)[:100] or "values")
    if len({name.casefold() for name in names}) < len(names):
        names = [f"{i}.{name}" for i, name in enumerate(names)]
    return names
