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
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from mijax._errors import PositionError, ShapeError
from mijax.core._last_axis import last_axis_masks
from mijax.core._mark import edited, site
from mijax.core._operands import rows_per_prompt
from mijax.core._recurrence import mark_state, scanned, windows
from mijax.core._sites import PerPrompt
from mijax.core._source_place import repeated

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


class AbstractPlace(eqx.Module):
    """Which value an edit is given: how its operands and indices apply to it."""

    @abc.abstractmethod
    def each(self, index: Any, x: Array) -> Array:
        """Return a scalar, or a prompt's entry of `[prompt]`, broadcastable to `x`."""

    @abc.abstractmethod
    def fit(self, value: Any, x: Array) -> Array:
        """Return an operand that broadcasts to `x`.

        Raises:
            ShapeError: it does not.
        """

    @abc.abstractmethod
    def take(self, source: Array, x: Array, at: Mapping[str, Any]) -> Array:
        """Return a whole site's activations at `x`, or at other indices by axis."""

    @abc.abstractmethod
    def mean(self, mean: Any, x: Array) -> Array:
        """Return a `Mean`'s value for `x`."""

    @abc.abstractmethod
    def noise(self, key: Any, x: Array) -> Array:
        """Return standard normal numbers in the shape of `x`, by place."""

    @abc.abstractmethod
    def where(self, placed: Any, x: Array) -> Array | None:
        """Return the mask of a `Placed` edit, broadcastable to `x`; `None` is all."""


class Place(AbstractPlace):
    """Where an edit is applied: a layer (`None` outside the blocks) and the rows."""

    rows: AbstractRows
    layer: Int[Array, ""] | int | None = None

    @property
    def after(self) -> "Place":
        """Returns the place of what follows attention's keys and values in a block."""
        return Place(self.rows.after, self.layer)

    def each(self, index: Any, x: Array) -> Array:
        """Look up a scalar, or one value per lane or prompt, for every row of `x`."""
        entry = self.rows.lane
        if isinstance(index, PerPrompt):
            entry, index = self.rows.prompt, jnp.asarray(index.values)
        if index.ndim == 0:
            return index
        if index.ndim > 1:
            raise PositionError(
                f"An index holds one entry per prompt, got shape {index.shape}."
            )
        if entry is None:
            raise PositionError(
                f"An index of shape {index.shape} needs a batch of as many prompts, "
                "but a single one is run."
            )
        value = index[entry]
        return value.reshape(value.shape + (1,) * (x.ndim - 1)) if value.ndim else value

    def among(self, sets: Array, x: Array, at: Any) -> Array:
        """Return a mask of the indices in each lane's set.

        Args:
            sets: `[lane, size]`, or `[lane, layer, size]` for pairs with a layer.
            x: the value.
            at: the indices, broadcastable to `x` without rows.
        """
        own = sets[self.rows.lane]
        own = own[:, self.layer] if own.ndim > 2 else own
        shape = (-1, *(1,) * (x.ndim - 1 - jnp.ndim(at)), *jnp.shape(at))
        return own[:, at].reshape(shape)

    def fit(self, value: Any, x: Array) -> Array:
        """Return an operand that broadcasts to the rows of `x`, or refuse it."""
        row, each = x.shape[1:], isinstance(value, PerPrompt)
        array = jnp.asarray(value.values) if each else value
        shape = array.shape[each:]
        try:
            fine = jnp.broadcast_shapes(shape, row) == row
        except ValueError:
            fine = False
        if not fine:
            raise ShapeError(f"A value of shape {shape} does not fit rows of {row}.")
        return rows_per_prompt(array, self.rows.prompt, x.ndim) if each else array

    def take(self, source: Array, x: Array, at: Mapping[str, Any]) -> Array:
        """Return the source's rows: those of the same prompt, layer and position."""
        rows = self.rows
        index = {axis: self.each(i, rows.position) for axis, i in at.items()}
        layer = index.get("layer", self.layer)
        position = index.get("position", rows.position)
        position = jnp.broadcast_to(position, rows.position.shape)
        lead: tuple[Any, ...] = () if layer is None else (layer,)
        if source.ndim > x.ndim + len(lead):
            if rows.prompt is None:
                raise ShapeError(
                    f"The source holds {source.shape[0]} prompts, but a single one is "
                    "run: index the source, or run the whole batch."
                )
            lead = (rows.prompt, *lead)
        seq = source.shape[len(lead)]
        new = source[(*lead, jnp.minimum(position, seq - 1))]
        for axis, i in (("head", 1), ("feature", x.ndim - 1)):
            if axis in index:
                new = repeated(new, index[axis], i, x.shape[i])
        if new.shape != x.shape:
            raise ShapeError(
                f"The source has rows of shape {new.shape[1:]}, but the site has "
                f"{x.shape[1:]}: both runs need the same model and prompt length."
            )
        inside = (position < seq).reshape((-1,) + (1,) * (x.ndim - 1))
        return jnp.where(inside, new.astype(x.dtype), x)

    def mean(self, mean: Any, x: Array) -> Array:
        """Average over prompts, and over positions unless it keeps them."""
        layered = self.layer is not None
        rest = ("head",) if x.ndim == 3 else ()
        value = mean.over(layered, ("position", *rest, "feature"))
        value = value[self.layer] if layered else value
        row = jnp.minimum(self.rows.position, value.shape[0] - 1)
        return jnp.broadcast_to(value[row], x.shape).astype(x.dtype)

    def noise(self, key: Any, x: Array) -> Array:
        """Draw each row's noise from its prompt, layer and position."""
        rows = self.rows
        key = jax.random.fold_in(key, 0 if self.layer is None else self.layer)
        prompt = jnp.zeros((), jnp.int32) if rows.prompt is None else rows.prompt
        prompt = jnp.broadcast_to(prompt, rows.position.shape)

        def draw(prompt: Array, position: Array) -> Array:
            own = jax.random.fold_in(jax.random.fold_in(key, prompt), position)
            return jax.random.normal(own, x.shape[1:])

        return jax.vmap(draw)(prompt, rows.position)

    def where(self, placed: Any, x: Array) -> Array | None:
        """Return the mask of what is edited, broadcastable to `x`; `None` is all."""
        masks = []
        if placed.layer is not None and placed.layer.dtype == bool:
            masks.append(self.among(placed.layer, x, self.layer))
        elif placed.layer is not None:
            masks.append(self.each(placed.layer, x) == self.layer)
        if placed.start is not None:
            position = self.rows.position.reshape((-1,) + (1,) * (x.ndim - 1))
            start = self.each(placed.start, x)
            stop = start + 1 if placed.stop is None else self.each(placed.stop, x)
            masks.append((position >= start) & (position < stop))
        heads = jnp.arange(x.shape[1])[:, None] if x.ndim > 2 else None
        if placed.head is not None and placed.head.dtype == bool:
            masks.append(self.among(placed.head, x, heads))
        elif placed.head is not None:
            masks.append(self.each(placed.head, x) == heads)
        masks += last_axis_masks(self, placed, x)
        return None if not masks else jax.tree.reduce(jnp.logical_and, masks)
