"""Edits from activations: patching from another run, and mean ablation."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mijax._errors import ShapeError, SiteError
from mijax.core._edits import AbstractEdit
from mijax.core._operands import pick
from mijax.core._place import AbstractPlace, Place
from mijax.core._sites import BLOCK_SITES, Site, has_second_axis
from mijax.core._source_place import (
    SOURCE,
    check_source_place,
    source_axes,
    source_indices,
    source_shape_error,
    swept_sources,
)


class Patch(AbstractEdit):
    """Activation patching: replaces the activation by that of another run.

    Reads the source at the same prompt, layer and position, or at the indices of
    `from_place`. Positions beyond the source's end (during generation) are left alone.

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
    site: str | None = eqx.field(static=True, default=None)
    place: dict[str, Any] = eqx.field(default_factory=dict, kw_only=True)

    def from_place(
        self,
        *,
        layer: Any = None,
        position: Any = None,
        head: Any = None,
        feature: Any = None,
        **axes: Any,
    ) -> "Patch":
        """Reads the source at a place other than the edited one.

        Axes that are not given are read where the edit is placed. The source may then
        come from another model, or from prompts of another length: only axes without
        an index here have to be of the site's size.

        Args:
            layer: index of the source's layer, an integer or a traced integer, or one
                for each prompt (`PerPrompt`).
            position: token index in the source, or one per prompt (`[batch]`). Each
                edited position reads it.
            head: head in the source.
            feature: index on the last axis.
            **axes: index on any other axis of the site, by name.

        Returns:
            The same edit with a source place; `sweep` runs over an index that is not
            given as `"source_layer"`, `"source_position"` and so on.

        Raises:
            SiteError: no index, a negative one, or a list that is not `PerPrompt`.
            PositionError: a span of positions.

        Examples:
            >>> import jax, mijax
            >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
            >>> one, other = jax.numpy.array([5, 6, 7]), jax.numpy.array([8, 9])
            >>> acts = mijax.capture(model, one, "resid_post")
            >>> moved = mijax.Patch(acts).from_place(layer=0, position=2)
            >>> edit = moved.at("resid_post", layer=1, position=0)
            >>> mijax.run(model, other, edit).shape
            (2, 64)
        """
        given = {"layer": layer, "position": position, "head": head}
        found = source_indices(given | {"feature": feature} | axes)
        return Patch(self.source, self.site, place=self.place | found)

    def bind(self, site: Site) -> "Patch":
        """Pick the site's source."""
        return Patch(pick(self.source, site), site.name, place=self.place)

    def check_operand(self, spec: Any, rows: range, batch: tuple[int, ...]) -> None:
        """Refuse activations of other prompts, or of a part of the site."""
        axes, found = source_axes(self.site, self.place), jnp.shape(self.source)
        rank, layered = len(axes), self.site in BLOCK_SITES
        if len(found) not in (rank, rank + 1):
            raise ShapeError(
                f"A source for site {self.site!r} has rank {rank}, or {rank + 1} with "
                f"prompts; got shape {found}. Capture the whole site: "
                f"capture(model, tokens, Site({self.site!r}))."
            )
        prompts = len(found) > rank
        own = batch if prompts else ()
        if prompts and not batch:
            raise ShapeError(
                f"The source holds {found[0]} prompts, but a single one is run: index "
                "the source, or run the whole batch."
            )
        if self.place:
            self._check_place(axes, spec, rows, batch)
            return
        at = prompts + layered
        fits = found[:at] == (*own, *spec.shape[:layered])
        if not fits or found[at] not in rows:
            needs = (
                *own,
                *spec.shape[:layered],
                rows.start,
                *spec.shape[layered + 1 :],
            )
            raise ShapeError(
                f"The source has shape {found}, but the run needs {needs}: capture the "
                "whole site in the same number of prompts of that length, or give the "
                "positions that both have."
            )

    def _check_place(
        self, axes: tuple[str, ...], spec: Any, rows: range, batch: tuple[int, ...]
    ) -> None:
        """Refuse a source that lacks its place, or differs in size elsewhere."""
        found = jnp.shape(self.source)
        sizes = dict(zip(axes, found[-len(axes) :], strict=True))
        check_source_place(self.place, sizes, batch[0] if batch else None)
        needs = dict(zip(reversed(axes), reversed(spec.shape), strict=False))
        fits = found[: -len(axes)] in ((), batch)
        for axis in axes:
            if axis in self.place:
                continue
            size = sizes[axis]
            fits &= size in rows if axis == "position" else size == needs[axis]
        if not fits:
            wants = {
                axis: "any" if axis in self.place else needs[axis] for axis in axes
            }
            raise source_shape_error(found, wants, str(self.site))

    def __call__(self, x: Float[Array, "rows ..."], place: AbstractPlace) -> Array:
        """Return the part of the source that belongs to `x`."""
        return _outside(place, self.site).take(self.source, x, self.place)


def with_sources(edits: Any, over: Any) -> Any:
    """Return a swept edit whose source has an index on each swept axis of the source.

    Raises:
        SiteError: an edit without a source, or a source whose index is fixed already.
    """
    axes = swept_sources(over)
    if not axes:
        return edits
    is_patch = lambda node: isinstance(node, Patch)  # noqa: E731
    patches = [n for n in jax.tree.leaves(edits, is_leaf=is_patch) if is_patch(n)]
    if not patches:
        raise SiteError(f"The edit has no {SOURCE}{axes[0]} to sweep over; Patch has.")
    for axis in axes:
        if any(axis in patch.place for patch in patches):
            raise SiteError(
                f"The source has a fixed {axis}: sweep over it or give from_place one."
            )
    first = {axis: jnp.int32(0) for axis in axes}
    return jax.tree.map(
        lambda n: moved(n, first) if is_patch(n) else n, edits, is_leaf=is_patch
    )


def moved(patch: Any, place: Mapping[str, Any]) -> Patch:
    """Return a patch that reads its source at other indices."""
    return Patch(patch.source, patch.site, place=patch.place | dict(place))


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
    site: str | None = eqx.field(static=True, default=None, kw_only=True)

    def bind(self, site: Site) -> AbstractEdit:
        """Pick the site's activations."""
        acts = pick(self.acts, site)
        return Mean(acts, self.mask, per_position=self.per_position, site=site.name)

    def over(self, layered: bool, axes: tuple[str, ...]) -> Float[Array, "..."]:
        """Average over prompts, and over the axis `position` where there is one.

        Args:
            layered: True if `acts` has an axis of layers, after that of prompts.
            axes: names of the axes after that.

        Returns:
            The mean, of the rank of `acts` without prompts.

        Raises:
            ShapeError: activations of another rank, or a mask for other prompts.
        """
        acts = self.acts
        rank = 1 + layered + len(axes)
        if acts.ndim != rank:
            raise ShapeError(
                f"Mean at site {self.site!r} needs acts of rank {rank} (prompts "
                f"first), got shape {acts.shape}."
            )
        seq = 1 + layered + axes.index("position") if "position" in axes else None
        weight = jnp.ones((1,) * acts.ndim, acts.dtype)
        if self.mask is not None:
            tokens = (acts.shape[0], acts.shape[seq] if seq else None)
            if jnp.shape(self.mask) != tokens:
                raise ShapeError(
                    f"Mean's mask of shape {jnp.shape(self.mask)} is not of its acts, "
                    f"which have {tokens[0]} prompts of {tokens[1]} tokens."
                )
            shape = [1] * acts.ndim
            shape[0], shape[seq or 0] = self.mask.shape
            weight = jnp.asarray(self.mask, acts.dtype).reshape(shape)
        weight = jnp.broadcast_to(weight, acts.shape)
        over = (0,) if self.per_position or seq is None else (0, seq)
        # In float16 a sum over prompts would overflow.
        sums = {"keepdims": True, "dtype": jnp.promote_types(acts.dtype, jnp.float32)}
        total, count = (acts * weight).sum(over, **sums), weight.sum(over, **sums)
        return (total / jnp.maximum(count, 1))[0]

    def __call__(self, x: Float[Array, "rows ..."], place: AbstractPlace) -> Array:
        """Return the mean in every row; verbs compute it once, at their door."""
        if self.site is None:
            raise SiteError("Place the edit first: Mean(acts).at(site).")
        return _outside(place, self.site).mean(self, x)


def _outside(place: AbstractPlace, site: str | None) -> AbstractPlace:
    """Return a decoder's place without its layer for sources that have no layers.

    Latents of a splice are such values: they are inside a layer, and like `embed`.
    """
    if isinstance(place, Place) and site is not None and site not in BLOCK_SITES:
        return Place(place.rows)
    return place


def settled(edits: Any) -> Any:
    """Return edits of a decoder with the mean of each `Mean` computed."""
    is_mean = lambda node: isinstance(node, Mean)  # noqa: E731
    return jax.tree.map(
        lambda node: _settled(node) if is_mean(node) else node, edits, is_leaf=is_mean
    )


def _settled(mean: Mean) -> AbstractEdit:
    layered = mean.site in BLOCK_SITES
    rest = ("head",) if has_second_axis(mean.site) else ()
    return MeanAt(mean.over(layered, ("position", *rest, "feature")), layered)


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
