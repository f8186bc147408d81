"""Axes of a sweep over a `FunctionModel`: any axis of a site, groups, regions."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mijax._errors import ShapeError, SiteError, quoted
from mijax.core._axis import Axis
from mijax.core._integers import integers
from mijax.core._resolve import check_axis, checked_index, last_axis, size_of
from mijax.core._site_table import SiteInfo
from mijax.core._sites import PerPrompt
from mijax.core._source_place import SOURCE

COEFFICIENT, WHERE = "coefficient", "where"


class Grid(NamedTuple):
    """The cells of a sweep, flattened from `[*axes]`.

    Attributes:
        axes: name and labels of each swept axis.
        places: for each axis of the site (or several, joined by a comma) an integer per
            cell, or a boolean mask per cell; `where` and `coefficient` likewise.
        layers: layers of each cell, where the layer is swept.
    """

    axes: tuple[Axis, ...]
    places: dict[str, np.ndarray]
    layers: list[frozenset[int]] | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of values of each axis."""
        return tuple(len(axis.labels) for axis in self.axes)


def grid(
    over: Any,
    info: SiteInfo,
    fixed: Sequence[str],
    batch: int | None,
    source: SiteInfo | None = None,
) -> Grid:
    """Lay out the cells of a sweep.

    Args:
        over: names of axes, or a mapping from names to values. A value is an index, or
            a list, range or slice of several that are edited together; several axes,
            as a tuple of names, have tuples of indices as values, or lists of those;
            values of `where` are masks.
        info: the site.
        fixed: axes that the edit fixes already.
        batch: number of examples.
        source: the site with the sizes of a patch's source, if any.

    Returns:
        The cells.

    Raises:
        SiteError: an axis or index that the site does not have, or a fixed axis.
        ShapeError: values of another kind.
    """
    named = _named(over)
    axes, columns = [], {}
    for i, (given, values) in enumerate(named.items()):
        together = given if isinstance(given, tuple) else (given,)
        joint = tuple(last_axis(axis, info) for axis in together)
        if source is not None and joint[0].startswith(SOURCE):
            labels, found = _source_column(joint[0], values, source, batch)
        else:
            _check_axes(joint, info, fixed)
            name = joint if isinstance(given, tuple) else joint[0]
            labels, found = _column(name, values, info, batch)
        axes.append(Axis(", ".join(together), labels))
        columns |= {key: (array, i) for key, array in found.items()}
    shape = tuple(len(axis.labels) for axis in axes)
    places = {key: spread_masks(array, i, shape) for key, (array, i) in columns.items()}
    return Grid(tuple(axes), places, _layers(places))


def _check_axes(names: tuple[str, ...], info: SiteInfo, fixed: Sequence[str]) -> None:
    """Refuse axes that the site lacks or the edit fixes."""
    for axis in names:
        if axis in fixed:
            raise SiteError(f"The edit has a fixed {axis}: sweep over it or fix it.")
        if axis not in (COEFFICIENT, WHERE):
            check_axis(axis, info)


def _source_column(
    name: str, values: Any, source: SiteInfo, batch: int | None
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Return the labels and the indices of an axis of the source."""
    axis = last_axis(name.removeprefix(SOURCE), source)
    check_axis(axis, source)
    labels, found = _column(axis, values, source, batch)
    if found[axis].dtype == bool:
        raise ShapeError(
            f"Axis {name!r} takes one index per cell: a source place is no group."
        )
    return labels, {SOURCE + axis: found[axis]}


def _named(over: Any) -> dict[Any, Any]:
    """Return axes as a mapping to their values, `None` for all."""
    if isinstance(over, str):
        over = (over,)
    if not isinstance(over, Mapping | Sequence) or not over:
        raise SiteError(
            "over takes names of axes, or a mapping from names to values, got "
            f"{quoted(over)}."
        )
    return dict(over) if isinstance(over, Mapping) else dict.fromkeys(over)


def _column(
    name: Any, values: Any, info: SiteInfo, batch: int | None
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Return the labels of one axis, and its indices or masks, values first."""
    if values is None:
        values = every(name, info)
    labels, each = labeled(values)
    named = isinstance(values, Mapping)
    if name == COEFFICIENT:
        found = np.asarray(each, np.float32)
        if not named:
            labels = tuple(f"{value:g}" for value in found)
        return labels, {name: found}
    if name == WHERE:
        masks = [np.asarray(mask) for mask in each]
        if any(mask.dtype != bool or mask.shape != masks[0].shape for mask in masks):
            raise ShapeError("Values of `where` are boolean masks of one shape.")
        if not named:
            labels = tuple(map(str, range(len(masks))))
        return labels, {name: np.stack(masks)}
    if isinstance(name, tuple):
        return labels, joint(name, each, info, batch)
    return labels, {name: single(name, each, info, batch)}


def labeled(values: Any) -> tuple[tuple[str, ...], list[Any]]:
    """Return the labels and the values of an axis, given a list or a mapping.

    Raises:
        ShapeError: no values.
    """
    each = list(values.values() if isinstance(values, Mapping) else values)
    if not each:
        raise ShapeError("An axis has no values to sweep over.")
    labels = values if isinstance(values, Mapping) else map(_label, each)
    return tuple(map(str, labels)), each


def every(name: Any, info: SiteInfo) -> Any:
    """Return all indices of an axis, or all tuples of several."""
    if name in (COEFFICIENT, WHERE):
        raise SiteError(f"Give the values of {name!r}: over={{{name!r}: ...}}.")
    names = name if isinstance(name, tuple) else (name,)
    if not info.ragged or names == ("layer",):
        found = itertools.product(*(range(size_of(info, one)) for one in names))
    elif names[0] == "layer":
        at = [info.axes.index(one) for one in names[1:]]
        found = (
            (layer, *rest)
            for layer, shape in enumerate(info.shapes)
            for rest in itertools.product(*(range(shape[i]) for i in at))
        )
    else:
        raise SiteError(
            f"Layers of site {info.name!r} have different sizes of axis {name!r}: "
            f"sweep over pairs, over=[('layer', {name!r})], or one layer, .at(layer=i)."
        )
    return list(found) if isinstance(name, tuple) else [one for (one,) in found]


def _label(value: Any) -> str:
    if isinstance(value, slice):
        return f"{'' if value.start is None else value.start}:{value.stop}"
    return str(list(value)) if isinstance(value, range) else str(value)


def single(name: str, each: list[Any], info: SiteInfo, batch: int | None) -> np.ndarray:
    """Return an integer for each value, or a mask where any is a group."""
    size = size_of(info, name)
    members = []
    for value in each:
        if isinstance(value, PerPrompt):
            raise ShapeError(
                f"Axis {name!r} takes indices or groups of them; fix an index per "
                "example in .at(...)."
            )
        listed = range(size)[value] if isinstance(value, slice) else value
        found = np.asarray(integers(_plain(listed), f"Axis {name!r}"))
        if found.ndim > 1 or not found.size or np.any(found < 0):
            raise ShapeError(
                f"Axis {name!r} takes indices from 0 on, got {value!r:.60}."
            )
        checked_index(name, found, size, info, batch)
        members.append(found)
    if all(found.ndim == 0 for found in members):
        return np.array(members, np.int32)
    masks = np.zeros((len(members), size), bool)
    for mask, found in zip(masks, members, strict=True):
        mask[found] = True
    return masks


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, range | tuple | set | frozenset) else value


def joint(
    names: tuple[str, ...], each: list[Any], info: SiteInfo, batch: int | None
) -> dict[str, np.ndarray]:
    """Return integers for each axis, or a mask over all where any value is a group."""
    sizes = tuple(size_of(info, name) for name in names)
    members = []
    for value in each:
        found = np.asarray(integers(_plain(value), f"Axes {names}"))
        one = found.ndim == 1
        found = np.atleast_2d(found)
        if found.ndim != 2 or found.shape[1] != len(names) or np.any(found < 0):
            raise ShapeError(
                f"A value of axes {names} is one index for each, or a list of such "
                f"tuples, got {value!r:.60}."
            )
        for i, name in enumerate(names):
            checked_index(name, found[:, i], sizes[i], info, batch)
        members.append((one, found))
    if all(one for one, _ in members):
        every = np.concatenate([found for _, found in members]).astype(np.int32)
        return {name: every[:, i] for i, name in enumerate(names)}
    masks = np.zeros((len(members), *sizes), bool)
    for mask, (_, found) in zip(masks, members, strict=True):
        mask[tuple(found.T)] = True
    return {",".join(names): masks}


def spread_masks(array: np.ndarray, at: int, shape: tuple[int, ...]) -> np.ndarray:
    """Repeat the values of one axis, with any axes after the first, for every cell."""
    rest = array.shape[1:]
    sizes = [1] * len(shape)
    sizes[at] = len(array)
    spread = np.broadcast_to(array.reshape(*sizes, *rest), (*shape, *rest))
    return spread.reshape(-1, *rest)


def _layers(places: dict[str, np.ndarray]) -> list[frozenset[int]] | None:
    """Return the layers of each cell, `None` where they are not swept."""
    for key, array in places.items():
        names = key.split(",")
        if "layer" not in names:
            continue
        if array.ndim == 1:
            return [frozenset((int(layer),)) for layer in array]
        other = tuple(i + 1 for i in range(len(names)) if names[i] != "layer")
        rows = np.asarray(array.any(axis=other))
        return [frozenset(np.flatnonzero(row).tolist()) for row in rows]
    return None
