"""Axes of a sweep: from names and values to one index per lane."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mijax._errors import PositionError, ShapeError, SiteError, nearest, quoted
from mijax.core._axis import Axis
from mijax.core._check import check_place
from mijax.core._decoder_sites import own_names
from mijax.core._edits import Placed
from mijax.core._function_axes import (
    every,
    joint,
    labeled,
    single,
    spread_masks,
)
from mijax.core._integers import integers
from mijax.core._resolve import size_of
from mijax.core._site_table import SiteInfo
from mijax.core._sites import (
    BLOCK_SITES,
    PerPrompt,
    Site,
    Sites,
    as_position,
    get,
    span_ends,
)
from mijax.core._source_place import (
    SOURCE,
    check_source_place,
    source_axes,
    source_indices,
)
from mijax.core._sources import Patch

SITE_AXES = ("layer", "position", "head", "feature")
AXES = (*SITE_AXES, "coefficient", *(SOURCE + axis for axis in SITE_AXES))
PAIRS = ("layer", "head")


class Cells(NamedTuple):
    """Every lane of a sweep, flattened from `[prompt, *axes]`.

    Attributes:
        axes: the swept axes.
        shape: `(prompts, *sizes)`.
        places: per lane, `prompt` always; `layer`, `start`, `stop`, `head`, `feature`,
            `coefficient` where swept or fixed; `source_layer` and the like where swept.
            A boolean mask per lane stands for a set: `[lane, size]`, or `[lane, layer,
            head]` for pairs, as `head`.
        coefficient: index into the swept coefficients per lane, 0 without them.
        coefficients: the swept coefficients, or `None`.
    """

    axes: tuple[Axis, ...]
    shape: tuple[int, ...]
    places: dict[str, np.ndarray]
    coefficient: np.ndarray
    coefficients: np.ndarray | None


def cells(
    placed: Placed,
    over: Any,
    shapes: Sites[Any],
    batch: tuple[int, int],
    spans: Mapping[str, Any],
) -> Cells:
    """Lays out a sweep.

    Args:
        placed: the edit whose open indices are swept.
        over: names of axes, or a mapping from names to values.
        shapes: shapes of all sites.
        batch: number of prompts and of positions.
        spans: starts and stops of the places that have names.

    Returns:
        The cells.

    Raises:
        SiteError: an unknown axis, one that the site or edit lacks, or one that the
            edit fixes already.
        PositionError: positions that the prompts do not have.
    """
    own = own_names(placed.site)
    over = _names(over, own)
    prompts = np.arange(batch[0])
    columns: dict[str, tuple[np.ndarray, int]] = {"prompt": (prompts, 0)}
    axes = []
    for at, (name, values) in enumerate(over.items(), start=1):
        for one in name if isinstance(name, tuple) else (name,):
            _check_axis(one, placed)
        if name == "position":
            labels, found = _positions(values, batch, spans)
        else:
            labels, found = _values(name, values, placed, shapes, batch)
        axes.append(Axis(_shown(name, own), labels))
        columns |= {key: (array, at) for key, array in found.items()}
    shape = (batch[0], *(len(axis.labels) for axis in axes))
    for key in ("layer", "start", "stop", "head", "feature"):
        fixed = getattr(placed, key)
        if fixed is not None:
            columns[key] = (np.asarray(fixed), 0)
    coefficient = getattr(placed.edit, "coefficient", None)
    if "coefficient" not in over and getattr(coefficient, "ndim", 0) == 1:
        columns["coefficient"] = (np.asarray(coefficient), 0)
    if "start" in columns and "stop" not in columns:
        start, at = columns["start"]
        columns["stop"] = (np.asarray(start + 1), at)
    index = {key: _spread(array, at, shape) for key, (array, at) in columns.items()}
    swept = None
    which = np.zeros(index["prompt"].shape, np.int32)
    if "coefficient" in over:
        swept, at = columns["coefficient"]
        which = _spread(np.arange(len(swept)), at, shape)
    return Cells(tuple(axes), shape, index, which, swept)


def _shown(name: Any, own: Mapping[str, str]) -> str:
    """Return the name of a swept axis; experts are not called heads or features."""
    names = name if isinstance(name, tuple) else (name,)
    expert = own.get("expert")
    return ", ".join("expert" if one == expert else one for one in names)


def _names(over: Any, own: Mapping[str, str]) -> Mapping[Any, Any]:
    """Returns axes as a mapping, by the indices that stand for a site's own names."""
    if isinstance(over, str):
        over = (over,)
    if not isinstance(over, Mapping | Sequence | set):
        raise SiteError(
            f"over takes names of axes, or a mapping to values, got {quoted(over)}."
        )
    given = over if isinstance(over, Mapping) else dict.fromkeys(over)
    named = {_index(name, own): values for name, values in given.items()}
    for name in named:
        if name not in AXES and name != PAIRS:
            names = (*AXES, *own)
            raise SiteError(f"There is no axis {name!r}.{nearest(str(name), names)}")
    if len(named) < len(given):
        both = next(axis for axis, index in own.items() if {axis, index} <= {*given})
        raise SiteError(
            f"Axes {own[both]!r} and {both!r} are the same: give one of them."
        )
    if not named:
        raise SiteError(f"A sweep needs at least one axis of {', '.join(AXES)}.")
    return named


def _index(name: Any, own: Mapping[str, str]) -> Any:
    """Return the index, or the pair of them, that the name of an axis stands for."""
    if isinstance(name, tuple):
        return tuple(_index(one, own) for one in name)
    return own.get(name, name) if isinstance(name, str) else name


def _check_axis(name: str, placed: Placed) -> None:
    """Refuses an axis that the edit lacks or fixes."""
    if name.startswith(SOURCE):
        return
    if name == "coefficient":
        if not hasattr(placed.edit, "coefficient"):
            raise SiteError(
                f"{type(placed.edit).__name__} has no coefficient to sweep over; "
                "Add, Scale and Noise have."
            )
        return
    fixed = "start" if name == "position" else name
    own = own_names(placed.site)
    listed = name == "feature" and placed.features is not None
    listed = listed or any(own[axis] == name for axis in placed.axes or {})
    if listed or getattr(placed, fixed) is not None:
        raise SiteError(f"The edit has a fixed {name}: sweep over it or fix it.")


def _values(
    name: Any, values: Any, placed: Placed, shapes: Sites[Any], batch: tuple[int, int]
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Returns an axis's labels and its index arrays, values first."""
    if name == "coefficient":
        if values is None:
            raise SiteError("Give the coefficients: over={'coefficient': [0, 1, 2]}.")
        found = _flat(name, np.asarray(values))
        if found.dtype.kind not in "fiu" or not np.isfinite(found).all():
            raise ShapeError(f"Coefficients are finite numbers, got {values!r:.60}.")
        found = found.astype(np.float32)
        return tuple(f"{value:g}" for value in found), {name: found}
    if name != PAIRS and name.startswith(SOURCE):
        return _sources(name, values, placed, batch[0])
    info = _info(placed.site, get(shapes, placed.site))
    if name == PAIRS:
        labels, each = labeled(every(name, info) if values is None else values)
        found = joint(PAIRS, each, info, batch[0])
        return labels, {"head": found["layer,head"]} if len(found) == 1 else found
    check_place(
        shapes,
        jax.device_put(np.zeros(batch, np.int32)),
        Site(placed.site, **{name: 0}),
    )
    axis = info.axes[-1] if name == "feature" else name
    size = size_of(info, axis)
    labels, each = labeled(range(size) if values is None else _listed(name, values))
    return labels, {name: single(axis, each, info, batch[0])}


def _sources(
    name: str, values: Any, placed: Placed, prompts: int
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Returns labels and indices of an axis of the source, `[value]` or per prompt."""
    patch = placed.edit
    if not isinstance(patch, Patch):
        raise SiteError(f"{type(patch).__name__} has no {name} to sweep over.")
    axis, axes = name.removeprefix(SOURCE), source_axes(patch.site, patch.place)
    size = patch.source.shape[axes.index(axis) - len(axes)]
    labels, each = labeled(range(size) if values is None else _listed(name, values))
    found = []
    for value in each:
        place = source_indices({axis: value})
        check_source_place(place, {axis: size}, prompts)
        index = place[axis]
        each_of = index.values if isinstance(index, PerPrompt) else index
        found.append(np.asarray(each_of))
    if any(index.ndim for index in found):
        found = [np.broadcast_to(index, prompts) for index in found]
    return labels, {name: np.stack(found)}


def _info(name: str, spec: Any) -> SiteInfo:
    """Describe a site of a decoder."""
    layered = name in BLOCK_SITES
    shape = spec.shape[layered:]
    heads = ("head",) if len(shape) == 3 else ()
    layers = spec.shape[0] if layered else None
    axes = ("position", *heads, "feature")
    return SiteInfo(name, layers, axes, (shape,) * (layers or 1), spec.dtype)


def _listed(name: str, values: Any) -> Any:
    """Return the values of an axis, and refuse what is not a list of them."""
    if isinstance(values, PerPrompt) or not hasattr(values, "__len__"):
        raise ShapeError(
            f"Axis {name!r} takes a list of integers or groups, got "
            f"{type(values).__name__}."
        )
    if isinstance(values, np.ndarray | jax.Array) and values.ndim != 1:
        raise ShapeError(
            f"Axis {name!r} takes a flat array, or a list of groups, got shape "
            f"{values.shape}."
        )
    return values


def _flat(name: str, found: np.ndarray) -> np.ndarray:
    """Return the values of an axis as a flat list of at least one."""
    if found.ndim > 1 or not found.size:
        raise ShapeError(f"Axis {name!r} takes a flat list of values, got {found}.")
    return found.reshape(-1)


def _positions(
    values: Any, batch: tuple[int, int], spans: Mapping[str, Any]
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Returns labels, and starts and stops `[value, prompt]`."""
    if values is None:
        values = range(batch[1])
    if isinstance(values, str):
        values = (values,)
    try:
        pairs = (
            list(values.items())
            if isinstance(values, Mapping)
            else [(v, v) for v in values]
        )
    except TypeError:
        raise PositionError(
            f"Axis 'position' takes a list of positions, got {values!r:.60}."
        ) from None
    if not pairs:
        raise ShapeError("Axis 'position' has no values to sweep over.")
    labels = tuple(str(label) for label, _ in pairs)
    starts, stops = [], []
    for label, given in pairs:
        value = as_position(_span(given, spans))
        ends = [integers(end, "A position") for end in span_ends(value)]
        if value is None or any(np.any(np.asarray(end) < 0) for end in ends):
            raise PositionError(f"Positions count from 0, got {label}.")
        if isinstance(value, slice):
            start = 0 if value.start is None else value.start
            stop = batch[1] if value.stop is None else value.stop
        else:
            start = np.asarray(ends[0])
            stop = start + 1
        try:
            starts.append(np.broadcast_to(np.asarray(start), batch[:1]))
            stops.append(np.broadcast_to(np.asarray(stop), batch[:1]))
        except ValueError:
            raise PositionError(
                f"Position {label!r} holds {np.shape(start)} values; give one, or one "
                f"for each of {batch[0]} prompts."
            ) from None
    start, stop = np.stack(starts), np.stack(stops)
    if np.any(start >= batch[1]) or np.any(stop > batch[1]):
        raise PositionError(
            f"Positions {start.min()} to {stop.max() - 1} are not all within the "
            f"prompts, which have {batch[1]} tokens (0 to {batch[1] - 1})."
        )
    return labels, {"start": start, "stop": stop}


def _span(value: Any, spans: Mapping[str, Any]) -> Any:
    """Returns a place by its name, or by starts and stops, as a slice."""
    if isinstance(value, str):
        if value not in spans:
            hint = (
                nearest(value, spans)
                if spans
                else " To name one give mijax.data.Prompts in place of their tokens."
            )
            raise PositionError(f"There is no place {value!r}.{hint}")
        value = spans[value]
    pair = isinstance(value, tuple) and len(value) == 2
    return slice(*value) if pair and all(map(np.ndim, value)) else value


def _spread(array: np.ndarray, axis: int, shape: tuple[int, ...]) -> np.ndarray:
    """Broadcasts `[]`, `[value]` or `[value, prompt]` of an axis to all lanes."""
    if array.dtype == bool:
        return spread_masks(array, axis, shape)
    if array.ndim == 2:
        sizes = [1] * len(shape)
        sizes[0], sizes[axis] = shape[0], shape[axis]
        array = array.T.reshape(sizes)
    elif array.ndim == 1:
        sizes = [1] * len(shape)
        sizes[axis] = len(array)
        array = array.reshape(sizes)
    dtype = np.float32 if array.dtype.kind == "f" else np.int32
    return np.broadcast_to(array, shape).reshape(-1).astype(dtype)
