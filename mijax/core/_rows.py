"""Rows: which prompt, lane and position each row of a block's input stands for.

A block computes on rows, `x[rows, embed]`. For a plain run the rows are the tokens of
one sequence. For a sweep they are the re-run suffixes of many patched runs (lanes), one
after the other in one flat list; for generation they are the newest token of each
prompt. Only attention looks across rows, and it does so through the methods here.
"""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from mijax.core._mark import edited, site

Past = tuple[Array, Array]
HEADS = "position head head_dim"
GRID = "position head key_position"
# A grid of packed rows, as it is computed.
PACKED_GRID = "lane head query key_position"


class AbstractRows(eqx.Module):
    """Where the rows of `x` stand.

    Attributes:
        position: position of each row in its prompt, `[rows]`.
        prompt: prompt of each row, `[rows]` or one for all; `None` for a single prompt.
        lane: lane of each row, `[rows]` or one for all: the index into edits that hold
            one place per lane; `None` for a single lane.
    """

    position: eqx.AbstractVar[Int[Array, " rows"]]
    prompt: eqx.AbstractVar[Any]
    lane: eqx.AbstractVar[Any]

    @abc.abstractmethod
    def queries(self, x: Shaped[Array, "rows ..."]) -> Shaped[Array, "..."]:
        """Lays rows out on a (lane, query) grid."""

    @abc.abstractmethod
    def keys(
        self, x: Shaped[Array, "rows ..."], past: Shaped[Array, "..."] | None
    ) -> Shaped[Array, "..."]:
        """Lays rows out on a (lane, key) grid, the rest filled from the past."""

    @abc.abstractmethod
    def flat(self, grid: Shaped[Array, "..."]) -> Shaped[Array, "rows ..."]:
        """Takes the rows back from a (lane, query) grid."""

    @abc.abstractmethod
    def causal(self) -> Bool[Array, "*lane seq key_seq"]:
        """Tells which keys each query of the grid may read."""

    @property
    def after(self) -> "AbstractRows":
        """Returns the rows that leave a block: all of them, if not said otherwise."""
        return self

    def keep(self, x: Shaped[Array, "rows ..."]) -> Shaped[Array, "kept ..."]:
        """Takes the rows that leave a block."""
        return x

    def mark_grid(
        self, name: str, grid: Float[Array, "*lane heads seq key_seq"]
    ) -> Float[Array, "*lane heads seq key_seq"]:
        """Names a value of every head, query and key.

        Its site has rows first, `[rows, heads, key_seq]`. A grid of packed rows is
        marked as it is, and brought into this layout where something reads or edits it.
        """
        return site(name, grid, PACKED_GRID)

    def from_grid(
        self, grid: Float[Array, "*lane heads seq key_seq"]
    ) -> Float[Array, "rows heads key_seq"]:
        """Lays a grid out as its site has it."""
        return self.flat(jnp.moveaxis(grid, -3, -2))

    def to_grid(
        self, x: Float[Array, "rows heads key_seq"]
    ) -> Float[Array, "*lane heads seq key_seq"]:
        """Lays the value of a grid's site out as a grid."""
        return jnp.moveaxis(self.queries(x), -2, -3)

    def mark_heads(
        self, name: str, x: Float[Array, "rows kv_heads head_dim"], groups: int
    ) -> Float[Array, "rows heads head_dim"]:
        """Names keys or values, each query head's view of them.

        Args:
            name: name of the site.
            x: keys or values, of which `groups` query heads share one.
            groups: number of query heads for each.

        Returns:
            The views; where nothing edits them, what the heads share.
        """
        views = site(name, jnp.repeat(x, groups, axis=1), HEADS)
        return views if groups == 1 or edited(name) else x


class Sequence(AbstractRows):
    """The tokens of one sequence, all of them."""

    position: Int[Array, " rows"]
    prompt: Int[Array, ""] | None = None
    lane: Int[Array, ""] | None = None

    def queries(self, x: Shaped[Array, "rows ..."]) -> Shaped[Array, "seq ..."]:
        """Returns `x`: the rows are the grid."""
        return x

    def keys(
        self, x: Shaped[Array, "rows ..."], past: Shaped[Array, "..."] | None
    ) -> Shaped[Array, "key_seq ..."]:
        """Returns `x`: a whole sequence has no past."""
        return x

    def flat(self, grid: Shaped[Array, "seq ..."]) -> Shaped[Array, "rows ..."]:
        """Returns the grid."""
        return grid

    def mark_grid(
        self, name: str, grid: Float[Array, "heads seq key_seq"]
    ) -> Float[Array, "heads seq key_seq"]:
        """Names a grid, rows first."""
        return self.to_grid(site(name, self.from_grid(grid), GRID))

    def causal(self) -> Bool[Array, "seq key_seq"]:
        """Returns the lower triangle."""
        return self.position[:, None] >= self.position[None, :]


class Packed(AbstractRows):
    """Suffixes of many lanes, packed one after the other in one list of rows.

    Lane `i` holds the positions from `start[i]` on, in the rows from `offset[i]` on.
    Keys and values before `start[i]` come from the past of prompt `lane_prompt[i]`.
    Rows that belong to no lane compute on whatever they hold and reach nobody.

    Attributes:
        width: the longest suffix: the number of queries in the grid.
        key_seq: the number of keys in the grid.
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

    def flat(self, grid: Shaped[Array, "lane seq ..."]) -> Shaped[Array, "rows ..."]:
        """Gathers every row from its lane and query."""
        query = self.position - self.start[self.lane]
        return grid[self.lane, jnp.clip(query, 0, self.width - 1)]

    def causal(self) -> Bool[Array, "lane seq key_seq"]:
        """Compares each query's position with each key's."""
        query = self.start[:, None] + jnp.arange(self.width)
        return query[:, :, None] >= jnp.arange(self.key_seq)


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

    def causal(self) -> Bool[Array, "lane seq key_seq"]:
        """Compares each query's position with each key's."""
        return self.queries(self.position)[..., None] >= jnp.arange(self.key_seq)


class Place(eqx.Module):
    """Where an edit is applied: a layer (`None` outside the blocks) and the rows."""

    rows: AbstractRows
    layer: Int[Array, ""] | int | None = None

    @property
    def after(self) -> "Place":
        """Returns the place of what follows attention's keys and values in a block."""
        return Place(self.rows.after, self.layer)
