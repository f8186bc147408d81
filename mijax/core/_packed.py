"""Packed rows: the suffixes of many lanes in one flat list."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

from mijax.core._recurrence import mark_state, scanned, windows
from mijax.core._rows import AbstractRows, Past, Sequence


class Packed(AbstractRows):
    """Suffixes of many lanes, packed one after the other in one list of rows.

    Lane `i` holds the positions from `start[i]` on, in the rows from `offset[i]` on.
    Keys and values before `start[i]` come from the past of prompt `lane_prompt[i]`.
    Rows that belong to no lane compute on whatever they hold and reach nobody.

    Attributes:
        width: the longest suffix: the number of queries in the grid.
        key_seq: the number of keys in the grid.
        lengths: number of tokens of each lane's prompt before padding, where a model is
            not causal.
        reads: in the last block, the rows that are read from it. Attention's queries
            and all that follows are computed for these alone.
    """

    position: Int[Array, " rows"]
    prompt: Int[Array, " rows"]
    lane: Int[Array, " rows"]
    offset: Int[Array, " lanes"]
    start: Int[Array, " lanes"]
    lane_prompt: Int[Array, " lanes"]
    width: int = eqx.field(static=True)
    key_seq: int = eqx.field(static=True)
    reads: "Reads | None" = None
    lengths: Int[Array, " lanes"] | None = None

    @property
    def after(self) -> AbstractRows:
        """Returns the rows that are read, or all."""
        return self if self.reads is None else self.reads

    def keep(self, x: Shaped[Array, "rows ..."]) -> Shaped[Array, "kept ..."]:
        """Takes the rows that are read, or all."""
        return x if self.reads is None else x[self.reads.row]

    def queries(self, x: Shaped[Array, "rows ..."]) -> Shaped[Array, "lane seq ..."]:
        """Gathers each lane's rows; queries beyond a lane's end repeat some row."""
        row = self.offset[:, None] + jnp.arange(self.width)
        return x[jnp.minimum(row, x.shape[0] - 1)]

    def keys(
        self, x: Shaped[Array, "rows ..."], past: Shaped[Array, "..."] | None
    ) -> Shaped[Array, "lane key_seq ..."]:
        """Gathers each lane's past up to its start and its own rows after it."""
        key = jnp.arange(self.key_seq)
        own = key[None, :] >= self.start[:, None]
        row = self.offset[:, None] + key[None, :] - self.start[:, None]
        rows = x[jnp.clip(row, 0, x.shape[0] - 1)]
        own = own.reshape(own.shape + (1,) * (x.ndim - 1))
        assert past is not None, "packed rows need the past of their lanes"
        return jnp.where(own, rows, past[self.lane_prompt])

    def fixed(
        self,
        name: str,
        make: Callable[[], Array],
        past: Past | None = None,
        *,
        axes: str = "",
    ) -> Shaped[Array, "lane ..."]:
        """Gathers the value of each lane's prompt from the past."""
        assert past is not None, "packed rows need the past of their lanes"
        return past[name][self.lane_prompt]

    def of_prompt(self, x: Shaped[Array, "prompt ..."]) -> Shaped[Array, "lane ..."]:
        """Takes what belongs to each lane's prompt."""
        lane = self.lane_prompt
        return x[jnp.zeros_like(lane) if x.shape[0] == 1 else lane]

    def recur(
        self,
        name: str,
        step: Callable[[Array, Any], Array],
        start: Shaped[Array, "..."],
        xs: Any,
        past: Past | None = None,
        *,
        read: Callable[[Array, Any], Any] = lambda state, x: state,
    ) -> Any:
        """Runs every lane from the state before its first row."""
        each = jax.vmap(lambda state, xs: scanned(name, step, read, state, xs))
        before = self._before(name, start, past)
        found = each(before, jax.tree.map(self.queries, xs))
        states, out = jax.tree.map(self.flat, found)
        mark_state(name, states)
        return out

    def window(
        self,
        name: str,
        x: Shaped[Array, "rows ..."],
        size: int,
        past: Past | None = None,
    ) -> Shaped[Array, "rows size ..."]:
        """Returns each row with those before it in its lane, or in the past."""
        before = self._before(name, jnp.zeros((size, *x.shape[1:]), x.dtype), past)
        found = self.flat(jax.vmap(windows)(self.queries(x), before))
        mark_state(name, found)
        return found

    def at_step(self, step: Int[Array, ""]) -> Sequence:
        """Returns one row of each lane."""
        lane = jnp.arange(len(self.start), dtype=jnp.int32)
        return Sequence(self.start + step, self.lane_prompt, lane)

    def _before(
        self, name: str, start: Shaped[Array, "..."], past: Past | None
    ) -> Shaped[Array, "lane ..."]:
        """Returns the state before the first row of each lane."""
        assert past is not None, "packed rows need the past of their lanes"
        first = (self.start == 0).reshape((-1,) + (1,) * start.ndim)
        return jnp.where(first, start, past[name])

    def flat(self, grid: Shaped[Array, "lane seq ..."]) -> Shaped[Array, "rows ..."]:
        """Gathers every row from its lane and query."""
        query = self.position - self.start[self.lane]
        return grid[self.lane, jnp.clip(query, 0, self.width - 1)]

    def positions(self) -> tuple[Int[Array, "lane seq 1"], Int[Array, " key_seq"]]:
        """Return the positions of each lane's suffix, and those of all keys."""
        query = self.start[:, None] + jnp.arange(self.width)
        return query[:, :, None], jnp.arange(self.key_seq)

    def real_keys(self) -> Bool[Array, "lane 1 1 key_seq"] | None:
        """Tells which keys come before the padding of each lane's prompt."""
        if self.lengths is None:
            return None
        return (jnp.arange(self.key_seq) < self.lengths[:, None])[:, None, None]


class Reads(AbstractRows):
    """The same number of rows of every lane, chosen among those of `Packed`.

    Attributes:
        row: which of the packed rows each one is, lane by lane.
        key_seq: the number of keys in the grid.
        lanes: the number of lanes.
    """

    position: Int[Array, " rows"]
    prompt: Int[Array, " rows"]
    lane: Int[Array, " rows"]
    row: Int[Array, " rows"]
    key_seq: int = eqx.field(static=True)
    lanes: int = eqx.field(static=True)

    def queries(self, x: Shaped[Array, "rows ..."]) -> Shaped[Array, "lane seq ..."]:
        """Splits rows by lane."""
        return x.reshape(self.lanes, -1, *x.shape[1:])

    def keys(
        self, x: Shaped[Array, "rows ..."], past: Shaped[Array, "..."] | None
    ) -> Shaped[Array, "..."]:
        """Returns `x`: these rows ask, and the packed rows answer."""
        return x

    def flat(self, grid: Shaped[Array, "lane seq ..."]) -> Shaped[Array, "rows ..."]:
        """Joins the lanes."""
        return grid.reshape(-1, *grid.shape[2:])

    def positions(self) -> tuple[Int[Array, "lane seq 1"], Int[Array, " key_seq"]]:
        """Return the positions that are read, and those of all keys."""
        return self.queries(self.position)[..., None], jnp.arange(self.key_seq)
