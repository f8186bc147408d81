"""Activations on disk: written in shards, resumed, checked, and read in any order."""

import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mijax._errors import ConfigError, LoadError, OutputError, TokenError, nearest
from mijax._progress import Progress, reports
from mijax.core.internal import digest as digest_of
from mijax.data._files import (
    file_digest,
    plain,
    typed,
    write_file,
    write_json,
)
from mijax.data._records import STORE_DTYPES, STORE_FORM, read_store
from mijax.data._source import AbstractSource
from mijax.io import locked
from mijax.io.internal import named, one_line

MANIFEST, STATE = "manifest.json", "state.npz"
SHARE_OF_SAVING = 0.1


@reports("Activations")
def store(
    source: AbstractSource,
    folder: str | os.PathLike[str],
    n: int,
    *,
    dtype: str = "float32",
    shard: int = 1 << 16,
    digest: str | None = None,
    progress: Progress = None,
) -> None:
    """Writes rows of activations to a folder, once.

    The folder knows what it holds: a digest of weights, sites, tokens and settings,
    and the SHA-256 of every shard. If it holds these rows nothing is done; if writing
    was interrupted it goes on; if it holds something else it is refused. A shard
    appears when it is complete, so a full disk or a crash leaves nothing that would
    be trusted. Only one process at a time can write to a folder.

    Args:
        source: where rows come from, for instance `Activations`; its batches are
            `Batch`es.
        folder: where to write.
        n: number of rows.
        dtype: `"float16"`, `"bfloat16"` or `"float32"`.
        shard: rows of a shard, rounded up to whole batches.
        digest: what `source` gives, in words or numbers, if it has no digest itself.
        progress: called with rows done and in all; `None` draws a bar after three
            seconds in a terminal or notebook, `False` none.

    Raises:
        OutputError: the folder holds something else or cannot be written, or a value
            does not fit the type.
        TokenError: the source ends before `n` rows.
        ConfigError: no such type, no rows, several processes, or a source without a
            digest.

    Examples:
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> corpus = mijax.data.Corpus.from_ids([range(60)])
        >>> tokens = mijax.data.Tokens(corpus, seq=10, batch=2)
        >>> site = mijax.Site("resid_post", layer=1)
        >>> rows = mijax.data.Activations(model, tokens, site, batch=8)
        >>> store(rows, "rows", 100, dtype="float16")
        >>> mijax.data.Stored("rows", batch=10).n
        100
    """
    check(source, n, dtype)
    folder = Path(folder)
    given = getattr(source, "digest", None) if digest is None else digest
    if given is None:
        raise ConfigError(
            f"{type(source).__name__} has no digest: give digest=, a text that is "
            "different for different rows."
        )
    job = digest_of((given, n, dtype))
    if (folder / MANIFEST).exists():
        record = opened(folder, job)
        if record is not None and record["whole"]:
            return
    with locked(folder):
        check_link(folder)
        record = opened(folder, job)
        if record is None or not record["whole"]:
            Writer(source, folder, n, dtype, given, progress).write(shard, record)


def check(source: AbstractSource, n: int, dtype: str) -> None:
    """Refuses what cannot be written, before anything runs."""
    if dtype not in STORE_DTYPES:
        raise ConfigError(
            f"{dtype!r} is not a supported type.{nearest(dtype, STORE_DTYPES)}"
        )
    if n < 1:
        raise ConfigError(f"A store has at least one row, got {n}.")
    if jax.process_count() > 1:
        raise ConfigError("One process writes a store: start a single one.")
    available = getattr(source, "available", None)
    if available is not None and available < n:
        raise TokenError(
            f"The source ends after {available} rows and {n} are to be stored: give "
            "more epochs or text, or store fewer."
        )


def check_link(folder: Path) -> None:
    """Refuse to write through a link."""
    if folder.is_symlink():
        raise OutputError(
            f"{folder} is a link, and mijax does not write through links. Name the "
            "folder that it points to."
        )


def opened(folder: Path, digest: str) -> dict[str, Any] | None:
    """Returns the record of a folder if it is of these rows, `None` of a new one."""
    if not (folder / MANIFEST).exists():
        if folder.exists() and any(not is_first(path) for path in folder.iterdir()):
            raise OutputError(
                f"{folder} holds other files. Nothing was changed: give an empty or "
                "new folder."
            )
        with named(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return None
    record = read_store(folder / MANIFEST)
    if record["digest"] != digest:
        raise OutputError(
            f"{folder} holds other activations ({record['rows']} rows of "
            f"{record['dtype']}; another model, site, text or setting): delete it or "
            "give another folder."
        )
    return record


def is_first(path: Path) -> bool:
    """Return True if a file is what a store killed before its first record leaves."""
    shard = path.name in ("x-00000.npy", "y-00000.npy")
    return shard or ".mijax-" in path.name


class Writer:
    """Writes one store."""

    def __init__(
        self,
        source: AbstractSource,
        folder: Path,
        n: int,
        dtype: str,
        given: str,
        progress: Progress,
    ) -> None:
        self.source = source
        self.folder = folder
        self.n = n
        self.dtype = dtype
        self.given = given
        self.progress: Progress = progress
        self._known: dict[str, str] = {}
        self._saving = 0.0
        self._begun = time.monotonic()

    def write(self, shard: int, record: dict[str, Any] | None) -> None:
        """Writes what is not there yet."""
        state = self.source.start()
        done, state = (0, state) if record is None else self._resumed(state)
        if record is None:
            record = {
                "form": STORE_FORM,
                "digest": digest_of((self.given, self.n, self.dtype)),
                "whole": False,
                "rows": self.n,
                "dtype": self.dtype,
                "shard": shard,
                "shards": [],
            }
        else:
            self._known = {
                entry[name]["file"]: entry[name]["sha256"]
                for entry in record["shards"]
                for name in ("x", "y")
                if name in entry
            }
            record["shards"] = record["shards"][:done]
        start = sum(entry["rows"] for entry in record["shards"])
        while start < self.n:
            state, rows = self._gather(
                state, start, min(record["shard"], self.n - start)
            )
            rows = {name: values[: self.n - start] for name, values in rows.items()}
            record["shards"].append(self._shard(len(record["shards"]), rows))
            start += len(rows["x"])
            record["whole"] = start >= self.n
            write_json(self.folder / MANIFEST, record)
            if not record["whole"]:
                self._save(state, len(record["shards"]))
        (self.folder / STATE).unlink(missing_ok=True)

    def _gather(
        self, state: Any, start: int, wanted: int
    ) -> tuple[Any, dict[str, np.ndarray]]:
        """Takes batches until there are so many rows, or a few more."""
        found: dict[str, list[np.ndarray]] = {"x": [], "y": []}
        count = 0
        while count < wanted:
            state, batch = self.source.batch(state)
            for name, value in (("x", batch.x), ("y", batch.target)):
                if value is not None:
                    found[name].append(self._narrow(np.asarray(value)))
            count += len(batch.x)
            if self.progress:
                self.progress(min(start + count, self.n), self.n)
        return state, {k: np.concatenate(v) for k, v in found.items() if v}

    def _narrow(self, rows: np.ndarray) -> np.ndarray:
        """Converts rows, and refuses values that do not survive it."""
        with np.errstate(over="ignore"):
            narrow = rows.astype(jnp.dtype(self.dtype))
        if not np.isfinite(narrow.astype(np.float32)).all():
            largest = np.abs(rows.astype(np.float32)).max()
            raise OutputError(
                f"Activations of up to {largest:g} do not fit {self.dtype}: store "
                "bfloat16 or float32, or exclude the tokens that have them."
            )
        return narrow

    def _shard(self, index: int, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        """Writes the files of one shard."""
        entry: dict[str, Any] = {"rows": len(rows["x"])}
        for name, values in rows.items():
            path = self.folder / f"{name}-{index:05d}.npy"
            kept = plain(values)
            write_file(
                path,
                lambda file, kept=kept: np.save(file, kept),
                lambda new, path=path: self._check_older(new, path),
            )
            size, found = path.stat().st_size, file_digest(path)
            entry[name] = {"file": path.name, "bytes": size, "sha256": found}
        return entry

    def _check_older(self, new: Path, path: Path) -> None:
        """Refuse to replace a file that no store of these rows wrote."""
        if not path.is_file():
            return
        older = file_digest(path)
        if older not in (file_digest(new), self._known.get(path.name)):
            raise OutputError(
                f"{path} is not the file that is stored here. Nothing was changed: "
                "move it away, or give another folder."
            )

    def _save(self, state: Any, done: int) -> None:
        """Keeps the state, unless that would take too much of the time."""
        begun = time.monotonic()
        if self._saving > SHARE_OF_SAVING * (begun - self._begun):
            return
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
        arrays: dict[str, Any] = {f"leaf{i}": plain(a) for i, a in enumerate(leaves)}
        arrays["done"] = done
        write_file(self.folder / STATE, lambda file: np.savez(file, **arrays))
        self._saving += time.monotonic() - begun

    def _resumed(self, start: Any) -> tuple[int, Any]:
        """Returns the kept state and how many shards were whole then."""
        path = self.folder / STATE
        leaves, tree = jax.tree.flatten(start)
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                done = int(file["done"])
                found = [file[f"leaf{i}"] for i in range(len(leaves))]
        except FileNotFoundError:
            return 0, start
        except Exception as error:  # NumPy and zipfile raise many unrelated kinds
            raise LoadError(
                f"{path} is damaged ({one_line(error)}): delete it to begin again."
            ) from error
        found = [
            typed(value, leaf.dtype.name)
            for value, leaf in zip(found, leaves, strict=True)
        ]
        return done, jax.tree.unflatten(tree, found)
