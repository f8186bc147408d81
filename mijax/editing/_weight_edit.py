"""`WeightEdit`: changes of weights as one value."""

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
    """A delta and its place.

    Attributes:
        weight: name of the weight, its path in the model's tree.
        layer: index of the block; `None` for a weight outside the blocks.
        delta: what is added.
        base: SHA-256 of the weight that the delta was made for; empty if it fits any.
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

    It is a value. `apply` returns another model and leaves the given one as it is; the
    edited model works with every method, since nothing but numbers has changed.

    Attributes:
        changes: the deltas in the order in which they are added.

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
        """Make an edit of one weight of a model.

        Args:
            model: the model, or a language model.
            weight: name of the weight, as `weight_names` lists it.
            delta: what to add.
            layer: index of the block, for weights of blocks.

        Returns:
            The edit, which other models than this one refuse.

        Raises:
            SiteError: no such weight or layer.
            ShapeError: a delta of another shape.
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
            ShapeError: a delta of another shape.
            FrameError: another model than the edit was made for.
        """
        return on_model(model, self._applied)

    def _applied(self, model: Any) -> Any:
        original: dict[Any, str] = {}
        for change in self.changes:
            value = read(model, *change.place)
            added = change.added_to(value)
            now = weight_digest(value) if change.base else ""
            first = original.setdefault(change.place, now)
            # Edits that are joined may each have been made for the model without any.
            if change.base and now and change.base not in (now, first):
                raise FrameError(
                    f"The edit of {change.weight} of layer {change.layer} was made for "
                    "other weights than this model has: apply it to the model that it "
                    "was made for, before other edits of this weight."
                )
            model = write(model, *change.place, added)
        return model

    def undo(self, edited: Any, original: Any) -> Any:
        """Return the model before the edit, bit for bit.

        Rounding makes it impossible to subtract a delta exactly, so the weights come
        from the original model, after a check that this edit and nothing else is what
        changed them. Weights at other places stay as they are in `edited`.

        Args:
            edited: the edited model, or a language model.
            original: the model that the edit was applied to.

        Returns:
            The edited model with the original's weights where the edit is.

        Raises:
            SiteError: a weight or layer that a model does not have.
            FrameError: the original is another model, or the weights of `edited` are
                not those that this edit makes.
        """
        base = bare(original)
        applied = self._applied(base)

        def restore(model: Any) -> Any:
            for place in dict.fromkeys(change.place for change in self.changes):
                now, made = read(model, *place), read(applied, *place)
                known = not isinstance(now, Tracer) and not isinstance(made, Tracer)
                if known and not bool(jnp.array_equal(now, made)):
                    raise FrameError(
                        f"The weights of {place[0]} of layer {place[1]} are not those "
                        "that this edit makes: undo later edits of it first."
                    )
                model = write(model, *place, read(base, *place))
            return model

        return on_model(edited, restore)

    def then(self, *others: "WeightEdit") -> "WeightEdit":
        """Join edits into one, in order.

        Args:
            *others: later edits, made for the model with the earlier ones or for the
                model without any.

        Returns:
            One edit with the changes of all.
        """
        return WeightEdit(sum((other.changes for other in others), start=self.changes))

    def scaled(self, factor: float | int | Array) -> "WeightEdit":
        """Return the edit with every delta times a number; 0 changes nothing."""
        return WeightEdit(
            tuple(
                Change(c.weight, c.layer, c.delta.scaled(factor), c.base)
                for c in self.changes
            )
        )

    @property
    def places(self) -> tuple[tuple[str, int | None], ...]:
        """Weights and layers that are changed, each once."""
        return tuple(dict.fromkeys(change.place for change in self.changes))

    def norms(self) -> Float[Array, " change"]:
        """Return the Frobenius norm of each change."""
        return jnp.stack([change.delta.norm() for change in self.changes])

    def growth(self, model: Any) -> Float[Array, " place"]:
        r"""Return the growth of the norm of each weight.

        $\|W + \Delta W\|_F / \|W\|_F - 1$ for each of `places`; repeated edits that
        make it large damage a model.

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
