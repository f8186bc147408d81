"""Rows: which prompt, lane and position each row of a block's input stands for.

A block computes on rows, `x[rows, embed]`. For a plain run the rows are the tokens of
one sequence. For a sweep they are the re-run suffixes of many patched runs (lanes), one
after the other in one flat list; for generation they are the newest token of each
prompt. Only attention looks across rows, and it does so through the methods here.
"""

import abc
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from mijax.core._mark import edited, site
from mijax.core._recurrence import mark_state, scanned, windows

# What a block states in its `cache`, by name.
Past = Mapping[str, Any]
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
    def positions(self) -> tuple[Int[Array, "*lane seq 1"], Int[Array, "... key_seq"]]:
        """Return the position of each query of the grid and of each key."""

    def distance(self) -> Int[Array, "*lane seq key_seq"]:
        """Return the position of each query of the grid minus that of each key."""
        query, key = self.positions()
        return query - key

    def causal(
        self, window: Int[Array, ""] | None = None
    ) -> Bool[Array, "*lane seq key_seq"]:
        """Return which keys each query of the grid may read.

        Args:
            window: number of tokens that a query reads, its own included; all of those
                before it by default.
        """
        query, key = self.positions()
        reads = query >= key
        return reads if window is None else reads & (query - key < window)

    def real_keys(self) -> Bool[Array, "*lane 1 1 key_seq"] | None:
        """Tells which keys are tokens and not padding; `None` is all of them.

        Known where a model is not causal: queries then have to leave padding out.
        """
        return None

    def fixed(
        self,
        name: str,
        make: Callable[[], Array],
        past: Past | None = None,
        *,
        axes: str = "",
    ) -> Shaped[Array, "..."]:
        """Computes a `Fixed` value and marks it, or takes it from the past.

        Args:
            name: its name in the block's `cache`.
            make: computes it.
            past: what the block is given.
            axes: names of its axes.

        Returns:
            The value, with a leading axis of lanes where rows have lanes.
        """
        return site(name, make(), axes)

    def of_prompt(self, x: Shaped[Array, "prompt ..."]) -> Shaped[Array, "..."]:
        """Takes what belongs to the prompt of the rows.

        Args:
            x: one entry for each prompt, or one for all.

        Returns:
            The entry, with a leading axis of lanes where rows have lanes; NaN for a
            prompt without one, and where it is not known which prompt it is.
        """
        if x.shape[0] == 1:
            return x[0]
        prompt = x.shape[0] if self.prompt is None else self.prompt
        return x.at[prompt].get(mode="fill")

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
        """Runs a recurrence over each lane's rows, and marks its `Recurrent` state.

        Args:
            name: name of the state in the block's `cache`.
            step: `(state, x) -> state`, one token.
            start: the state before the first token of a prompt.
            xs: input of every row, an array or a tree of them, rows first.
            past: what the block is given.
            read: `(state, x) -> output` after each step; the state by default.

        Returns:
            The output of every row.
        """
        states, out = scanned(name, step, read, start, xs)
        mark_state(name, states)
        return out

    def window(
        self,
        name: str,
        x: Shaped[Array, "rows ..."],
        size: int,
        past: Past | None = None,
    ) -> Shaped[Array, "rows size ..."]:
        """Returns each row with those before it, oldest first, as a `Recurrent` state.

        Zeros come before the first token; other arguments are those of `recur`.
        """
        found = windows(x, jnp.zeros((size, *x.shape[1:]), x.dtype))
        mark_state(name, found)
        return found

    def at_step(self, step: Int[Array, ""]) -> "AbstractRows":
        """Returns the row, or one row of each lane, that a recurrence has come to."""
        return Sequence(self.position[step][None], self.prompt, self.lane)

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
    """The tokens of one sequence, all of them.

    Attributes:
        length: number of tokens before padding, where a model is not causal.
    """

    position: Int[Array, " rows"]
    prompt: Int[Array, "..."] | None = None
    lane: Int[Array, "..."] | None = None
    length: Int[Array, ""] | None = None

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

    def positions(self) -> tuple[Int[Array, "seq 1"], Int[Array, "1 key_seq"]]:
        """Return the positions of the tokens, twice."""
        return self.position[:, None], self.position[None, :]

    def real_keys(self) -> Bool[Array, "1 1 key_seq"] | None:
        """Tells which tokens come before the padding."""
        if self.length is None:
            return None
        return (self.position < self.length)[None, None]
