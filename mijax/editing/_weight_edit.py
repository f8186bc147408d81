"""`WeightEdit`: a set of weight changes as one value."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from mijax._errors import FrameError, ShapeError
from mijax.core.internal import cut
from mijax.editing._delta import AbstractDelta
from mijax.editing._weights import bare, on_model, read, weight_digest, write


class Change(eqx.Module):
    """A delta and its location.

    Attributes:
        weight: name of the weight, its path in the model's tree.
        layer: index of the block; `None` for a weight outside the blocks.
        delta: the delta to add.
        base: SHA-256 of the weight that the delta was made for; empty to accept any.
    """

    weight: str = eqx.field(static=True)
    layer: int | None = eqx.field(static=True)
    delta: AbstractDelta
    base: str = eqx.field(static=True, default="")

    def __repr__(self) -> str:
        layer = "" if self.layer is None else f", layer {self.layer}"
        return f"{self.weight}{layer}: {self.delta!r}"

    @property
    def place(self) -> tuple[str, int | None]:
        """The weight and the layer."""
        return self.weight, self.layer

    def added_to(self, value: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return a weight plus the delta, summed in float32, in the weight's dtype."""
        if value.shape != self.delta.shape:
            raise ShapeError(
                f"{self.weight} has shape {value.shape} and the delta "
                f"{self.delta.shape}: it was made for another model."
            )
        wide = jnp.promote_types(value.dtype, jnp.float32)
        return (value.astype(wide) + self.delta.dense()).astype(value.dtype)


class WeightEdit(eqx.Module):
    """A permanent edit: deltas at named weights and layers.

    `apply` returns a new model and leaves the original unchanged. The edited model
    works with every method, since only numbers have changed.

    Attributes:
        changes: the deltas, in the order in which they are added.

    Examples:
        >>> import jax, mijax
        >>> from mijax.editing import LowRank
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> delta = LowRank(jnp.ones((64, 1)), 0.1 * jnp.ones((1, 32)))
        >>> edit = WeightEdit.on(model, "blocks.mlp.w_out", delta, layer=1)
        >>> edited = edit.apply(model)
        >>> [(c.layer, c.delta.rank()) for c in edit.changes]
        [(1, 1)]
        >>> tokens = jnp.array([5, 6, 7])
        >>> bool((mijax.run(model, tokens) != mijax.run(edited, tokens)).any())
        True
        >>> same = edit.undo(edited, model)
        >>> bool((same.blocks.mlp.w_out == model.blocks.mlp.w_out).all())
        True
    """

    changes: tuple[Change, ...]

    @classmethod
    def on(
        cls, model: Any, weight: str, delta: AbstractDelta, *, layer: int | None = None
    ) -> "WeightEdit":
        """Create an edit of one weight in a model.

        Args:
            model: the model, or a language model.
            weight: name of the weight, as `weight_names` lists it.
            delta: the delta to add.
            layer: index of the block, for weights in blocks.

        Returns:
            The edit; applying it to a different model raises an error.

        Raises:
            SiteError: no such weight or layer.
            ShapeError: the delta's shape differs from the weight's.
        """
        value = read(bare(model), weight, layer)
        change = Change(weight, layer, delta, weight_digest(value))
        change.added_to(value)
        return cls((change,))

    def __repr__(self) -> str:
        return cut(f"WeightEdit({'; '.join(map(repr, self.changes))})")

    def apply(self, model: Any) -> Any:
        """Return the edited model.

        Args:
            model: the model, or a language model.

        Returns:
            The same kind of model.

        Raises:
            SiteError: a weight or layer that the model does not have.
            ShapeError: a delta's shape differs from its weight's.
            FrameError: the edit was made for a different model.
        """
        return on_model(model, self._applied)

    def _applied(self, model: Any) -> Any:
        original: dict[Any, str] = {}
        for change in self.changes:
            value = read(model, *change.place)
            added = change.added_to(value)
            now = weight_digest(value) if change.base else ""
            first = original.setdefault(change.place, now)
            # Joined edits may each have been made for the unedited model.
            if change.base and now and change.base not in (now, first):
                raise FrameError(
                    f"The edit of {change.weight} in layer {change.layer} was made for "
                    "different weights: apply it to the model that it was made for, "
                    "before other edits of this weight."
                )
            model = write(model, *change.place, added)
        return model

    def undo(self, edited: Any, original: Any) -> Any:
        """Return the model before the edit, bit for bit.

        Rounding makes it impossible to subtract a delta exactly, so the weights are
        copied from the original model, after a check that only this edit changed them.
        Other weights keep their values from `edited`.

        Args:
            edited: the edited model, or a language model.
            original: the model that the edit was applied to.

        Returns:
            The edited model with the original weights at the edited places.

        Raises:
            SiteError: a weight or layer that a model does not have.
            FrameError: the original is a different model, or this edit did not produce
                the weights of `edited`.
        """
        base = bare(original)
        applied = self._applied(base)

        def restore(model: Any) -> Any:
            for place in dict.fromkeys(change.place for change in self.changes):
                now, made = read(model, *place), read(applied, *place)
                known = not isinstance(now, Tracer) and not isinstance(made, Tracer)
                if known and not bool(jnp.array_equal(now, made)):
                    raise FrameError(
                        f"This edit did not produce the weights of {place[0]} in layer "
                        f"{place[1]}: undo later edits of them first."
                    )
                model = write(model, *place, read(base, *place))
            return model

        return on_model(edited, restore)

    def then(self, *others: "WeightEdit") -> "WeightEdit":
        """Combine edits into one, in order.

        Args:
            *others: later edits, made for the model with the earlier edits or for the
                unedited model.

        Returns:
            One edit with all changes.
        """
        return WeightEdit(sum((other.changes for other in others), start=self.changes))

    def scaled(self, factor: float | int | Array) -> "WeightEdit":
        """Return the edit with every delta scaled by a number; 0 changes nothing."""
        return WeightEdit(
            tuple(
                Change(c.weight, c.layer, c.delta.scaled(factor), c.base)
                for c in self.changes
            )
        )

    @property
    def places(self) -> tuple[tuple[str, int | None], ...]:
        """The changed weights and layers, each once."""
        return tuple(dict.fromkeys(change.place for change in self.changes))

    def norms(self) -> Float[Array, " change"]:
        """Return the Frobenius norm of each change."""
        return jnp.stack([change.delta.norm() for change in self.changes])

    def growth(self, model: Any) -> Float[Array, " place"]:
        r"""Return the growth of the norm of each weight.

        $\|W + \Delta W\|_F / \|W\|_F - 1$ for each of `places`. Repeated edits with
        large growth damage a model.

        Args:
            model: the model before the edit, or a language model.

        Returns:
            One number per place.
        """
        base = bare(model)
        after = self._applied(base)
        size = lambda m, place: jnp.linalg.norm(  # noqa: E731
            read(m, *place).astype(jnp.float32).reshape(-1)
        )
        return jnp.stack([size(after, p) / size(base, p) - 1 for p in self.places])
