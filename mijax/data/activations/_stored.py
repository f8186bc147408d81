"""Activations on disk as shuffled batches."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, Shaped

from mijax._errors import LoadError, ShapeError, TokenError
from mijax.core.internal import digest as digest_of
from mijax.data._files import check_file, typed
from mijax.data._permute import permuted
from mijax.data._records import read_store
from mijax.data._source import AbstractSource
from mijax.data.activations._batch import Batch
from mijax.data.activations._store import MANIFEST
from mijax.data.text._stream import check_seed

DATA = "data"


class Stored(AbstractSource):
    """Rows that `store` wrote, in an order permuted anew in every epoch.

    The state is the number of batches taken, one integer. Files are memory-mapped:
    a batch reads its own rows only, and of several processes each reads its share.
    Batches are float32, whatever the type on disk.

    Args:
        folder: what `store` wrote.
        batch: rows of a batch, of all processes together.
        seed: of the order.
        epochs: how often the rows are gone through; without end if `None`. Rows at the
            end that fill no batch are left out.
        mesh: devices; rows are split over its axis `"data"`.
        verify: whether to compare the SHA-256 of every shard first; sizes always are.

    Raises:
        LoadError: the store is not finished, or a shard is missing or damaged.
        ShapeError: a batch that the rows or the mesh cannot give, or no such seed.

    Examples:
        >>> source = Stored("rows", batch=4096, seed=1)  # doctest: +SKIP
        >>> state, batch = source.batch(source.start())  # doctest: +SKIP
    """

    shards: "Shards"
    rows: int = eqx.field(static=True)
    seed: int = eqx.field(static=True)
    epochs: int | None = eqx.field(static=True)
    mesh: Mesh | None = eqx.field(static=True)

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        batch: int,
        seed: int = 0,
        epochs: int | None = None,
        mesh: Mesh | None = None,
        verify: bool = True,
    ) -> None:
        check_seed(seed)
        self.shards = Shards(Path(folder), verify)
        self.rows, self.seed, self.epochs, self.mesh = batch, seed, epochs, mesh
        split = 1 if mesh is None else mesh.shape.get(DATA, 0)
        if not 0 < batch <= self.n or (epochs is not None and epochs < 1):
            raise ShapeError(
                f"Batches of {batch} rows cannot be taken from {self.n} rows "
                f"{epochs} times: give 1 to {self.n}."
            )
        if not split or batch % split:
            raise ShapeError(
                f"Batches of {batch} rows cannot be split over {split} devices of the "
                "mesh's axis 'data': give a multiple, and a mesh with that axis."
            )

    @property
    def n(self) -> int:
        """Number of rows in the store."""
        return self.shards.rows

    @property
    def length(self) -> int | None:
        """Number of batches, `None` without end."""
        return None if self.epochs is None else self.n * self.epochs // self.rows

    @property
    def digest(self) -> str:
        """SHA-256 of what is stored and of the order."""
        return digest_of((self.shards, self.rows, self.seed, self.epochs))

    def start(self) -> Shaped[np.ndarray, ""]:
        """Returns the state before the first batch: 0."""
        return np.asarray(0, np.int32)

    def batch(self, state: Any) -> tuple[Shaped[np.ndarray, ""], Batch]:
        """Returns the next state and batch.

        Raises:
            TokenError: the epochs are over.
        """
        position = int(state)
        if self.length is not None and position >= self.length:
            raise TokenError(
                f"The {self.epochs} epochs of {self.n} rows are over after "
                f"{self.length} batches: give more epochs or take fewer batches."
            )
        wanted = self._wanted(position)
        x = self._read("x", wanted)
        y = self._read("y", wanted) if self.shards.has_targets else None
        return np.asarray(position + 1, np.int32), Batch(x, y)

    def _wanted(self, position: int) -> Int[np.ndarray, " batch"]:
        """Returns which rows a batch has."""
        index = position * self.rows + np.arange(self.rows, dtype=np.int64)
        epoch = index // self.n
        parts = [
            permuted(index[epoch == e] % self.n, self.n, self.seed, int(e))
            for e in np.unique(epoch)
        ]
        return np.concatenate(parts)

    def _read(self, name: str, wanted: np.ndarray) -> Array:
        read = self.shards.take
        if self.mesh is None:
            return jnp.asarray(read(name, wanted)).astype(jnp.float32)
        shape = (self.rows, *self.shards.shape(name))
        found = jax.make_array_from_callback(
            shape,
            NamedSharding(self.mesh, P(DATA)),
            lambda at: read(name, wanted[at[0]] if at else wanted),
        )
        return found.astype(jnp.float32)


class Shards:
    """The memory-mapped files of a store."""

    def __init__(self, folder: Path, verify: bool) -> None:
        record = read_store(folder / MANIFEST)
        if not record["whole"]:
            done = sum(entry["rows"] for entry in record["shards"])
            raise LoadError(
                f"{folder} holds {done} of {record['rows']} rows: run the same "
                "mijax.data.store again to finish it."
            )
        self.rows: int = record["rows"]
        self._digest: str = record["digest"]
        self._dtype: str = record["dtype"]
        self._start = np.cumsum([0, *(e["rows"] for e in record["shards"])])
        names = [name for name in ("x", "y") if name in record["shards"][0]]
        self._files = {
            name: [
                mapped(folder, e[name], verify, e["rows"], self._dtype)
                for e in record["shards"]
            ]
            for name in names
        }

    def __repr__(self) -> str:
        return f"Shards({self._digest})"

    @property
    def has_targets(self) -> bool:
        """True if what is to be predicted is kept apart."""
        return "y" in self._files

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of one row."""
        return self._files[name][0].shape[1:]

    def take(self, name: str, wanted: np.ndarray) -> np.ndarray:
        """Reads rows, file by file in the order of the disk."""
        files: Sequence[np.ndarray] = self._files[name]
        found = np.empty((len(wanted), *self.shape(name)), files[0].dtype)
        order = np.argsort(wanted, kind="stable")
        shard = np.searchsorted(self._start, wanted[order], side="right") - 1
        for i in np.unique(shard):
            here = order[shard == i]
            found[here] = files[i][wanted[here] - self._start[i]]
        return typed(found, self._dtype)


def mapped(
    folder: Path, entry: dict[str, Any], verify: bool, rows: int, dtype: str
) -> np.ndarray:
    """Opens one file after checking it."""
    path = folder / entry["file"]
    check_file(path, entry["bytes"], entry["sha256"] if verify else None)
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises many unrelated kinds
        raise LoadError(f"{path} is not an array ({error}): store again.") from error
    kind = "uint16" if dtype == "bfloat16" else dtype
    if found.dtype != kind or len(found) != rows:
        raise LoadError(
            f"{path} has {len(found)} rows of {found.dtype}, the manifest has "
            f"{rows} of {dtype}: store again."
        )
    return found
