"""Places in a `FunctionModel`: edits at any axis of a site, by name."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mijax._errors import PositionError, ShapeError, SiteError, nearest
from mijax.core._edits import AbstractEdit, Compose, Placed, Span
from mijax.core._rows import AbstractPlace
from mijax.core._site_table import SiteInfo, SiteTable, check_names
from mijax.core._sites import END, PerPrompt, Site, Sites, filled, get, known
from mijax.core._sources import Mean, Patch


class Spot(AbstractPlace):
    """The value of one example and layer that an edit is given.

    Attributes:
        layer: its layer, `None` for a site without layers; static outside of loops.
        prompt: which example of the batch, `None` for one without a batch.
        axes: names of the axes of the value.
        loops: iteration of each loop within a layer, by name.
    """

    layer: Any
    prompt: Any
    axes: tuple[str, ...] = eqx.field(static=True)
    loops: dict[str, Any]

    def each(self, index: Array, x: Array) -> Array:
        """Return a scalar, or this example's entry."""
        if index.ndim == 0:
            return index
        if self.prompt is None or index.ndim > 1:
            raise PositionError(
                f"An index of shape {index.shape} needs a batch of as many examples."
            )
        return index[self.prompt]

    def fit(self, value: Array, x: Array) -> Array:
        """Return an operand that broadcasts to the value, or refuse it."""
        try:
            fine = jnp.broadcast_shapes(value.shape, x.shape) == x.shape
        except ValueError:
            fine = False
        if not fine:
            raise ShapeError(
                f"A value of shape {value.shape} does not broadcast to a value of "
                f"shape {x.shape} ({' '.join(self.axes)})."
            )
        return value

    def take(self, source: Any, x: Array) -> Array:
        """Return the source's value of the same example and layer."""
        value = self.part(source, x.ndim)
        if value.shape != x.shape:
            raise ShapeError(
                f"The source has a value of shape {value.shape}, but the site's is "
                f"{x.shape}: capture the whole site from inputs of the same shape."
            )
        return value.astype(x.dtype)

    def part(self, source: Any, rank: int) -> Array:
        """Index a whole site's activations by example, layer and loops."""
        index = tuple(self.loops.values())
        if isinstance(source, tuple):
            source = source[self.layer]
        elif self.layer is not None:
            index = (self.layer, *index)
        if source.ndim > rank + len(index):
            if self.prompt is None:
                raise ShapeError(
                    f"The source holds {source.shape[0]} examples, but a single one is "
                    "run: index the source, or run the whole batch."
                )
            index = (self.prompt, *index)
        return source[index]

    def mean(self, mean: Any, x: Array) -> Array:
        """Refuse: the verbs compute means before a run."""
        raise SiteError("A Mean of a FunctionModel is computed by the verbs.")

    def noise(self, key: Any, x: Array) -> Array:
        """Draw the noise of this example, layer and iteration."""
        for index in (self.layer, self.prompt, *self.loops.values()):
            key = jax.random.fold_in(key, 0 if index is None else index)
        return jax.random.normal(key, x.shape)

    def where(self, placed: Any, x: Array) -> Array | None:
        """Return the mask of what is edited; `None` is all."""
        masks = [] if placed.mask is None else [placed.mask]
        if placed.layer is not None:
            masks.append(self.within(placed.layer, self.layer))
        for axis, index in placed.axes.items():
            if "," in axis:
                masks.append(self.joint(axis.split(","), index, x))
                continue
            if axis in self.loops:
                masks.append(self.within(index, self.loops[axis]))
                continue
            i = self.axes.index(axis)
            at = jnp.arange(x.shape[i])
            inside = self.within(index, at)
            masks.append(inside.reshape((-1,) + (1,) * (x.ndim - 1 - i)))
        return None if not masks else jax.tree.reduce(jnp.logical_and, masks)

    def joint(self, names: list[str], mask: Array, x: Array) -> Array:
        """Return the mask of a set of indices on several axes."""
        index: list[Any] = []
        for name in names:
            at = self.layer if name == "layer" else self.loops.get(name)
            if at is None:
                i = self.axes.index(name)
                at = jnp.arange(x.shape[i]).reshape((-1,) + (1,) * (x.ndim - 1 - i))
            index.append(at)
        return mask[tuple(index)]

    def within(self, index: Any, at: Any) -> Array:
        """Return whether coordinates on an axis are in an index."""
        if isinstance(index, Span):
            return (at >= index.start) & (at < index.stop)
        if isinstance(index, PerPrompt):
            return at == self.each(jnp.asarray(index.values), at)
        index = jnp.asarray(index)
        if index.dtype == bool:
            return index[at]
        return (at == index) if index.ndim == 0 else jnp.isin(at, index)


class Whole(AbstractEdit):
    """Replaces the activation by a value that broadcasts to it, by layer."""

    value: Any

    def __call__(self, x: Array, place: Any) -> Array:
        """Return the value of the layer."""
        return jnp.broadcast_to(place.part(self.value, x.ndim), x.shape).astype(x.dtype)


class StaticLayer(eqx.Module):
    """A layer that is fixed when the program is compiled: of a model without a scan."""

    value: int = eqx.field(static=True)


class Spots(AbstractEdit):
    """An edit with a place that is known to exist in a `FunctionModel`.

    Attributes:
        edit: the edit.
        layer: its layer: traced, a `StaticLayer`, or `None` for every layer.
        axes: indices by axis of the site.
        mask: part of the value.
        site: name of the site.
    """

    edit: AbstractEdit
    layer: Any
    axes: dict[str, Any]
    mask: Array | None
    site: str = eqx.field(static=True)

    def __call__(self, x: Array, place: Spot) -> Array:
        """Return the edited value where the place is, and `x` elsewhere."""
        layer = self.layer
        if isinstance(layer, StaticLayer):
            if isinstance(place.layer, int) and place.layer != layer.value:
                return x
            layer = None if isinstance(place.layer, int) else layer.value
        new = self.edit(x, place)
        if getattr(new, "shape", None) != x.shape or new.dtype.kind == "c":
            found = getattr(new, "shape", type(new).__name__)
            raise ShapeError(
                f"An edit keeps the shape of its value: {type(self.edit).__name__} was "
                f"given {x.dtype}{x.shape} at {self.site!r} and returned {found}."
            )
        where = place.where(Spots(self.edit, layer, self.axes, self.mask, self.site), x)
        new = new.astype(x.dtype)
        return new if where is None else jnp.where(where, new, x)


def resolved(edits: Sites[Any], sites: SiteTable, batch: int | None) -> dict[str, Any]:
    """Return the edits of each site, with places and operands that are known to exist.

    Args:
        edits: a record of placed edits.
        sites: the sites of the model.
        batch: number of examples, `None` without an axis for them.

    Returns:
        Edits by site.

    Raises:
        SiteError: a site, axis or index that the model does not have.
        ShapeError: an operand or mask that does not fit.
    """
    names = filled(edits)
    check_names(names, sites)
    return {name: _resolved(get(edits, name), sites[name], batch) for name in names}


def _resolved(edit: Any, info: SiteInfo, batch: int | None) -> AbstractEdit:
    if isinstance(edit, Compose):
        return Compose(tuple(_resolved(one, info, batch) for one in edit.edits))
    layer = edit.layer
    if layer is not None:
        check_index("layer", layer, info.layers or 0, info, batch)
        value = known(layer)
        if not info.scanned:
            if value is None or value.ndim:
                raise SiteError(
                    f"Site {info.name!r} is not in a loop over layers, so its layer is "
                    "a fixed integer: it cannot be traced, nor one per example."
                )
            layer = StaticLayer(int(value))
        elif layer.ndim:
            layer = PerPrompt(layer)
    axes = axes_of(edit, info)
    for axis, index in axes.items():
        check_index(axis, index, size_of(info, axis), info, batch)
    if edit.mask is not None:
        _check_mask(edit.mask, info, layer)
    return Spots(_operand(edit.edit, info, batch), layer, axes, edit.mask, info.name)


def axes_of(placed: Placed | Site, info: SiteInfo) -> dict[str, Any]:
    """Return the indices of a place by axis of the site, the layer left out.

    `feature` is the last axis where no axis has that name.

    Raises:
        SiteError: an axis that the site does not have.
    """
    if isinstance(placed, Placed):
        position = placed.start
        if placed.start is not None and placed.stop is not None:
            position = Span(placed.start, placed.stop)
        elif position is not None and position.ndim:
            position = PerPrompt(position)
        feature = placed.feature if placed.features is None else placed.features
        if placed.features is None and feature is not None and feature.ndim:
            feature = PerPrompt(feature)
        head = placed.head
        head = PerPrompt(head) if head is not None and head.ndim else head
        given = {"position": position, "head": head, "feature": feature}
        given |= placed.axes or {}
    else:
        given = {a: i for a, i in placed.indices.items() if a != "layer"}
        position = given.get("position")
        if not isinstance(position, slice | None) and jnp.ndim(position):
            given["position"] = PerPrompt(position)
    found = {}
    for axis, index in given.items():
        if index is None:
            continue
        last = axis == "feature" and axis not in info.axes and info.axes
        found[info.axes[-1] if last else axis] = index
    for axis in found:
        check_axis(axis, info)
    return found


def check_axis(axis: str, info: SiteInfo) -> None:
    """Refuse an axis that a site does not have."""
    if axis not in info.axes and not (axis == "layer" and info.layers):
        has = (*(("layer",) if info.layers else ()), *info.axes)
        close = nearest(axis, has) if has else " It is a scalar without layers."
        raise SiteError(f"Site {info.name!r} has no axis {axis!r}.{close}")


def size_of(info: SiteInfo, axis: str) -> int:
    """Return the size of an axis, the largest where layers differ."""
    if axis == "layer":
        return info.layers or 0
    i = info.axes.index(axis)
    return max(shape[i] for shape in info.shapes)


def check_index(
    axis: str, index: Any, size: int, info: SiteInfo, batch: int | None
) -> None:
    """Refuse an index beyond its axis, or one per example for another batch."""
    if axis == "layer" and not info.layers:
        raise SiteError(f"Site {info.name!r} has no layers: it occurs once.")
    if isinstance(index, PerPrompt) and len(index.values) != batch:
        raise PositionError(
            f"{axis} holds {len(index.values)} examples, but the run has "
            f"{'one, without a batch' if batch is None else batch}."
        )
    if isinstance(index, Span | slice):
        ends = [i for i in (index.start, index.stop) if i is not None]
        values = [known(end) for end in ends]
        beyond = [v for v in values if v is not None and (v > size) & (v != END)]
    else:
        value = known(index.values if isinstance(index, PerPrompt) else index)
        beyond = [] if value is None or not np.any(value >= size) else [value.max()]
    if beyond:
        raise SiteError(
            f"{axis} {beyond[0]} is out of range: site {info.name!r} has {axis}s 0 to "
            f"{size - 1}."
        )


def _check_mask(mask: Array, info: SiteInfo, layer: Any) -> None:
    """Refuse a mask that does not broadcast to the value that it is for."""
    shapes = info.shapes
    if isinstance(layer, StaticLayer):
        shapes = (shapes[layer.value],)
    for shape in dict.fromkeys(shapes):
        own = shape[info.loops :]
        try:
            fine = jnp.broadcast_shapes(mask.shape, own) == own
        except ValueError:
            fine = False
        if not fine:
            raise ShapeError(
                f"`where` of shape {mask.shape} does not broadcast to site "
                f"{info.name!r}, {own} ({' '.join(info.axes[info.loops :])})."
            )


def _operand(edit: AbstractEdit, info: SiteInfo, batch: int | None) -> AbstractEdit:
    """Return an edit whose operand is known to fit a site."""
    if isinstance(edit, Patch):
        _check_source(edit.source, info, batch)
    if isinstance(edit, Mean):
        return Whole(_mean(edit, info))
    coefficient = getattr(edit, "coefficient", None)
    shape = jnp.shape(coefficient) if isinstance(coefficient, jax.Array) else ()
    if shape not in ((), (batch,)):
        raise ShapeError(
            f"An edit's coefficient of shape {shape} does not fit "
            f"{batch or 'a single example'}: give one, or one per example."
        )
    return edit


def _check_source(source: Any, info: SiteInfo, batch: int | None) -> None:
    """Refuse activations of other examples, or of a part of the site."""
    layers = info.shapes if info.ragged else info.shapes[:1]
    parts = source if isinstance(source, tuple) else (source,)
    if len(parts) != len(layers):
        raise ShapeError(
            f"The source has {len(parts)} layers, but site {info.name!r} has "
            f"{len(layers)}: capture the whole site."
        )
    for part, shape in zip(parts, layers, strict=True):
        needs = shape if info.ragged or not info.layers else (info.layers, *shape)
        if jnp.shape(part) not in (needs, (batch, *needs)):
            prompts = "" if batch is None else f" or {(batch, *needs)}"
            raise ShapeError(
                f"The source has shape {jnp.shape(part)}, but site {info.name!r} needs "
                f"{needs}{prompts}: capture the whole site from the same number of "
                "examples."
            )


def _mean(edit: Mean, info: SiteInfo) -> Any:
    """Average over examples, and over the axis `position` unless it is kept."""

    def one(acts: Any, layered: bool) -> Array:
        whole = Mean(acts, edit.mask, per_position=edit.per_position, site=info.name)
        return whole.over(layered, info.axes)

    if isinstance(edit.acts, tuple):
        return tuple(one(part, False) for part in edit.acts)
    return one(edit.acts, info.layers is not None)


def applied(
    edits: Mapping[str, AbstractEdit], sites: SiteTable, prompt: Any
) -> dict[str, Any]:
    """Return the functions that `harvest` applies at each site.

    Args:
        edits: resolved edits by site.
        sites: the sites of the model.
        prompt: which example of the batch is run, `None` without a batch.
    """

    def at_site(name: str, edit: AbstractEdit) -> Any:
        return lambda value, at: edit(value, spot_of(at, sites[name], prompt))

    return {name: at_site(name, edit) for name, edit in edits.items()}


def spot_of(at: Any, info: SiteInfo, prompt: Any) -> Spot:
    """Return the place of a value that `harvest` hands over."""
    loops = {name: i for name, i in at.index.items() if name in info.axes}
    return Spot(at.layer if info.layers else None, prompt, at.axes, loops)
