"""Places: which rows an edit changes, and its operands for each of them."""

import abc
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from mijax._errors import PositionError, ShapeError
from mijax.core._last_axis import last_axis_masks
from mijax.core._operands import rows_per_prompt
from mijax.core._rows import AbstractRows
from mijax.core._sites import PerPrompt
from mijax.core._source_place import repeated


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
    """Layer (`None` outside the blocks) and rows to which an edit is applied."""

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
