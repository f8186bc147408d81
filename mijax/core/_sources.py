"""Edits from activations: patching from another run, and mean ablation."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mijax._errors import ShapeError, SiteError
from mijax.core._edits import AbstractEdit
from mijax.core._operands import pick
from mijax.core._rows import Place
from mijax.core._sites import (
    Site,
)


class Patch(AbstractEdit):
    """Activation patching: replaces the activation by that of another run.

    Reads the source at the same prompt, layer and position. Positions beyond the
    source's end (during generation) are left alone.

    Args:
        source: activations of the whole site as `capture(model, tokens, Site(name))`
            returns them, `[*prompt, layer, seq, ...]`; or a mapping from site names to
            such arrays, of which `.at(site)` picks one.

    Examples:
        >>> edit = Patch(jnp.ones((12, 5, 64))).at("resid_pre", layer=3, position=4)
        >>> edit.blocks.resid_pre.edit.source.shape
        (12, 5, 64)
    """

    source: Any
    layered: bool = eqx.field(static=True, default=True)
    prompts: bool = eqx.field(static=True, default=False)

    def bind(self, site: Site) -> "Patch":
        """Picks the site's source and checks its rank."""
        source = pick(self.source, site)
        if source.ndim not in (site.rank, site.rank + 1):
            raise ShapeError(
                f"A source for site {site.name!r} has rank {site.rank}, or "
                f"{site.rank + 1} with prompts; got shape {source.shape}. Capture the "
                f"whole site: capture(model, tokens, Site({site.name!r}))."
            )
        return Patch(source, site.layered, source.ndim > site.rank)

    def check_operand(self, spec: Any, rows: range, batch: tuple[int, ...]) -> None:
        """Refuses activations of other prompts, or of a part of the site."""
        found, own = self.source.shape, batch if self.prompts else ()
        if self.prompts and not batch:
            raise _of_many(self.source)
        at = len(found) - len(spec.shape) + self.layered
        fits = found[:at] == (*own, *spec.shape[: self.layered])
        if not fits or found[at] not in rows:
            axis = self.layered
            needs = (*own, *spec.shape[:axis], rows.start, *spec.shape[axis + 1 :])
            raise ShapeError(
                f"The source has shape {found}, but the run needs {needs}: capture the "
                "whole site in the same number of prompts of that length, or give the "
                "positions that both have."
            )

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Returns the source's rows."""
        rows = place.rows
        index: tuple[Any, ...] = (place.layer,) if self.layered else ()
        if self.prompts:
            if rows.prompt is None:
                raise _of_many(self.source)
            index = (rows.prompt, *index)
        seq = self.source.shape[len(index)]
        new = self.source[(*index, jnp.minimum(rows.position, seq - 1))]
        if new.shape != x.shape:
            raise ShapeError(
                f"The source has rows of shape {new.shape[1:]}, but the site has "
                f"{x.shape[1:]}: both runs need the same model and prompt length."
            )
        inside = (rows.position < seq).reshape((-1,) + (1,) * (x.ndim - 1))
        return jnp.where(inside, new.astype(x.dtype), x)


def _of_many(source: Array) -> ShapeError:
    """Returns the error of a source of several prompts in a run of one."""
    return ShapeError(
        f"The source holds {source.shape[0]} prompts, but a single one is run: index "
        "the source, or run the whole batch."
    )


class Mean(AbstractEdit):
    """Mean ablation: replaces the activation by its mean over prompts.

    Args:
        acts: activations of the whole site over a batch, as `capture` returns them,
            `[prompt, layer, seq, ...]`, or a mapping from site names to such arrays.
        mask: `[prompt, seq]`, which tokens count (`prompts.mask`); all by default.
        per_position: keep one mean per position instead of one over all of them.
    """

    acts: Any
    mask: Bool[Array, "prompt seq"] | None = None
    per_position: bool = eqx.field(static=True, default=False, kw_only=True)

    def bind(self, site: Site) -> AbstractEdit:
        """Averages the site's activations."""
        acts = pick(self.acts, site)
        if acts.ndim != site.rank + 1:
            raise ShapeError(
                f"Mean at site {site.name!r} needs acts of rank {site.rank + 1} "
                f"(prompts first), got shape {acts.shape}."
            )
        seq = 1 + site.layered
        weight = jnp.ones((1,) * acts.ndim, acts.dtype)
        if self.mask is not None:
            tokens = (acts.shape[0], acts.shape[seq])
            if jnp.shape(self.mask) != tokens:
                raise ShapeError(
                    f"Mean's mask of shape {jnp.shape(self.mask)} is not of its acts, "
                    f"which have {tokens[0]} prompts of {tokens[1]} tokens."
                )
            shape = [1] * acts.ndim
            shape[0], shape[seq] = self.mask.shape
            weight = jnp.asarray(self.mask, acts.dtype).reshape(shape)
        weight = jnp.broadcast_to(weight, acts.shape)
        axes = (0,) if self.per_position else (0, seq)
        # In float16 a sum over prompts would overflow.
        sums = {"keepdims": True, "dtype": jnp.promote_types(acts.dtype, jnp.float32)}
        total, count = (acts * weight).sum(axes, **sums), weight.sum(axes, **sums)
        mean = (total / jnp.maximum(count, 1))[0]
        return MeanAt(mean, site.layered)

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Refuses: the mean is known once the edit is placed."""
        raise SiteError("Place the edit first: Mean(acts).at(site).")


class MeanAt(AbstractEdit):
    """A `Mean` placed at its site: one row per layer, or one per layer and position."""

    value: Float[Array, "..."]
    layered: bool = eqx.field(static=True)

    def check_operand(self, spec: Any, rows: range, batch: tuple[int, ...]) -> None:
        """Refuses means of some layers or of shorter prompts."""
        layers, seq = self.layered, self.value.shape[self.layered]
        if self.value.shape[:layers] != spec.shape[:layers] or (1 < seq < rows.start):
            raise ShapeError(
                f"The mean has shape {self.value.shape}, but the site has "
                f"{spec.shape}: capture the whole site in prompts of that length."
            )

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Returns the mean in every row."""
        value = self.value[place.layer] if self.layered else self.value
        row = jnp.minimum(place.rows.position, value.shape[0] - 1)
        return jnp.broadcast_to(value[row], x.shape).astype(x.dtype)
