"""Places of a `FunctionModel` checked against the model's own sites and axes."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mijax._errors import PositionError, ShapeError, SiteError, nearest
from mijax.core._edits import AbstractEdit, Compose, Placed
from mijax.core._operands import Span
from mijax.core._site_table import SiteInfo, SiteTable, check_names
from mijax.core._sites import END, PerPrompt, Site, Sites, filled, get, known
from mijax.core._source_place import check_source_place, source_shape_error
from mijax.core._sources import Mean, Patch, moved
from mijax.core._spot import Spots, StaticLayer, Whole
from mijax.core._traced import bounds_of_index, guarded


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
        layer = checked_index("layer", layer, info.layers or 0, info, batch)
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
    axes = {
        axis: checked_index(axis, index, size_of(info, axis), info, batch)
        for axis, index in axes_of(edit, info).items()
    }
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
        found[last_axis(axis, info)] = index
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


def checked_index(
    axis: str, index: Any, size: int, info: SiteInfo, batch: int | None
) -> Any:
    """Return an index that raises, with checks on, where it is traced and beyond.

    Raises:
        SiteError: an index beyond its axis, or a layer of a site without layers.
        PositionError: one index per example for another batch.
    """
    if axis == "layer" and not info.layers:
        raise SiteError(f"Site {info.name!r} has no layers: it occurs once.")
    span = isinstance(index, Span | slice)
    ends = [i for i in (index.start, index.stop) if i is not None] if span else []
    each = [index.values] if isinstance(index, PerPrompt) else filter(jnp.ndim, ends)
    for values in each:
        if len(values) != batch:
            raise PositionError(
                f"{axis} holds {len(values)} examples, but the run has "
                f"{'one, without a batch' if batch is None else batch}."
            )
    if span:
        found = [v.max() for v in map(known, ends) if v is not None]
        beyond = [v for v in found if (v > size) & (v != END)]
    else:
        value = known(index.values if isinstance(index, PerPrompt) else index)
        beyond = [] if value is None or not np.any(value >= size) else [value.max()]
    if beyond:
        raise SiteError(
            f"{axis} {beyond[0]} is out of range: site {info.name!r} has {axis}s 0 to "
            f"{size - 1}."
        )
    return guarded(index, bounds_of_index(axis, index, size, info.name))


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
        edit = _patch(edit, info, batch)
    if isinstance(edit, Mean):
        return Whole(_mean(edit, info))
    for name in ("value", "coefficient"):
        each = getattr(edit, name, None)
        if isinstance(each, PerPrompt) and each.values.shape[0] != batch:
            raise ShapeError(
                f"An edit's {name} holds {each.values.shape[0]} examples, but the run "
                f"has {'one, without a batch' if batch is None else batch}."
            )
    coefficient = getattr(edit, "coefficient", None)
    shape = jnp.shape(coefficient) if isinstance(coefficient, jax.Array) else ()
    if shape not in ((), (batch,)):
        raise ShapeError(
            f"An edit's coefficient of shape {shape} does not fit "
            f"{batch or 'a single example'}: give one, or one per example."
        )
    return edit


def _patch(patch: Patch, info: SiteInfo, batch: int | None) -> Patch:
    """Return a patch whose source has its place, by names of the site's axes.

    Raises:
        SiteError: an index that the source does not have.
        ShapeError: a source of other examples, or of a part of the site.
    """
    if not patch.place:
        _check_source(patch.source, info, batch)
        return patch
    place = {last_axis(axis, info): index for axis, index in patch.place.items()}
    for axis in place:
        if axis != "layer":
            check_axis(axis, info)
    source = patch.source
    if isinstance(source, tuple):
        layer = known(place["layer"]) if "layer" in place else None
        if layer is None or layer.ndim:
            raise SiteError(
                f"The source has layers of different shapes: give from_place one fixed "
                f"layer of site {info.name!r}."
            )
        check_source_place({"layer": place["layer"]}, {"layer": len(source)}, batch)
        one = source[int(layer)]
        source = jnp.expand_dims(one, one.ndim - len(info.axes))
        place["layer"] = jnp.zeros((), jnp.int32)
    axes = source_sizes(source, info, place)
    check_source_place(place, axes, batch)
    for axis, index in place.items():
        bounds = bounds_of_index(f"source {axis}", index, axes[axis], info.name)
        place[axis] = guarded(index, bounds)
    own, lead = dict(zip(info.axes, info.shapes[0], strict=True)), len(axes)
    own |= {"layer": info.layers}
    # Of unequal layers only the size of the edited one counts, when it is traced.
    wrong = [a for a in axes if a not in place and axes[a] != own[a]]
    if (wrong and not info.ragged) or source.shape[:-lead] not in ((), (batch,)):
        wants = {axis: "any" if axis in place else own[axis] for axis in axes}
        raise source_shape_error(source.shape, wants, info.name)
    return moved(Patch(source, patch.site), place)


def source_sizes(
    source: Any, info: SiteInfo, place: Mapping[str, Any]
) -> dict[str, int]:
    """Return the size of each axis of a source, without that of examples.

    Raises:
        ShapeError: a source of another rank.
    """
    layered = info.layers is not None or "layer" in place
    axes = (*(("layer",) if layered else ()), *info.axes)
    found = jnp.shape(source)
    if len(found) not in (len(axes), len(axes) + 1):
        raise ShapeError(
            f"A source for site {info.name!r} has axes {' '.join(axes)}, and one more "
            f"for examples; got shape {found}."
        )
    return dict(zip(axes, found[-len(axes) :], strict=True))


def last_axis(axis: str, info: SiteInfo) -> str:
    """Return the name of an axis, where `feature` stands for the last one."""
    last = axis == "feature" and axis not in info.axes and info.axes
    return info.axes[-1] if last else axis


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
