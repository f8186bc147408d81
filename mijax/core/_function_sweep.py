"""`sweep` of a `FunctionModel`: one edit at every cell, in one compiled program.

What a cell does not change is not run again:

- upstream of the site nothing depends on the cell, so those equations run once for all
  cells of an example (`vmap` leaves them unbatched);
- where the site is in a scan over layers, the unedited run keeps the carry of every
  layer, and a block of cells starts at the lowest layer of its cells;
- where the edit leaves the unedited value as it is, the metric is that of the unedited
  run.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from mijax._errors import NotFiniteError, SiteError
from mijax._progress import Progress
from mijax.core._buckets import bucket
from mijax.core._edits import Compose, compose
from mijax.core._evaluate import Start
from mijax.core._function import FunctionModel
from mijax.core._function_axes import COEFFICIENT, WHERE, Grid, grid
from mijax.core._function_run import (
    Door,
    checked_metrics,
    measured,
    opened_function,
)
from mijax.core._harvest import harvest_parts
from mijax.core._jobs import Piece, run_pieces
from mijax.core._peak import peak_bytes
from mijax.core._plan import Chunks
from mijax.core._resolve import resolved, source_sizes
from mijax.core._site_table import SiteInfo
from mijax.core._source_place import SOURCE
from mijax.core._sources import Patch, moved, with_sources
from mijax.core._spot import OneOf, Spots, StaticLayer, applied
from mijax.core._sweep_result import Sweep, Work
from mijax.core._trace import trace

# Programs for the layers of a model without a scan: more of them compile longer, fewer
# run more layers in vain.
MOST_PROGRAMS = 4


class Swept(eqx.Module):
    """State shared by all blocks of a sweep.

    Attributes:
        door: the model, its inputs and the edits that stay.
        edit: the swept edit, with its fixed place.
        metrics: a metric, or several by name.
    """

    door: Door
    edit: Spots
    metrics: Any


def sweep_function(
    model: FunctionModel,
    inputs: Any,
    edit: Any,
    *,
    over: Any,
    metric: Any,
    edits: Any,
    mesh: Mesh | None,
    progress: Progress,
    chunks: Chunks,
) -> Any:
    """See `mijax.sweep`."""
    door = opened_function(model, inputs, edits)
    metric = checked_metrics(metric, door)
    edit = with_sources(compose(edit), over)
    swept = Swept(door, _only(edit, door), metric)
    info = door.sites[swept.edit.site]
    if isinstance(swept.edit.layer, StaticLayer):
        # Of a ragged site only the shape of this layer counts.
        info = info._replace(shapes=(info.shapes[swept.edit.layer.value],))
    fixed = [*swept.edit.axes, *([] if swept.edit.layer is None else ["layer"])]
    cells = grid(over, info, fixed, door.batch, _source(swept.edit, info))
    if COEFFICIENT in cells.places and not hasattr(swept.edit.edit, COEFFICIENT):
        raise SiteError(
            f"{type(swept.edit.edit).__name__} has no coefficient to sweep over; Add, "
            "Scale and Noise have."
        )
    base = jax.device_get(_base(door, metric))
    groups = _groups(swept, cells, info.scanned, info.layers)
    differs = _differing(swept, groups)
    names = list(metric) if isinstance(metric, Mapping) else None
    of_base = (
        [np.atleast_1d(base[n]) for n in names] if names else [np.atleast_1d(base)]
    )
    count = int(np.prod(cells.shape))
    values = np.stack([np.repeat(b[:, None], count, 1) for b in of_base])
    pieces = _pieces(swept, groups, differs, chunks.memory, mesh)
    job = (door.fn, door.inputs, door.edits, swept.edit, metric, cells, chunks.memory)
    run_pieces(pieces, values, job, progress, chunks.resume)
    work = Work(values[0].size, int(differs.sum()), chunks=len(pieces))
    shape = (len(of_base[0]), *cells.shape)
    found = [
        _result(v.reshape(shape), b, cells, work, door.batch is None)
        for v, b in zip(values, of_base, strict=True)
    ]
    return dict(zip(names, found, strict=True)) if names else found[0]


def _source(spots: Spots, info: SiteInfo) -> SiteInfo | None:
    """Return the site with the sizes of a patch's source; `None` for other edits."""
    patch = spots.edit
    if not isinstance(patch, Patch) or not patch.place:
        return None
    sizes = source_sizes(patch.source, info, patch.place)
    shape = tuple(sizes[axis] for axis in info.axes)
    return info._replace(layers=sizes.get("layer"), shapes=(shape,))


def _result(values: Any, base: Any, cells: Grid, work: Work, alone: bool) -> Sweep:
    if alone:
        values, base = values[0], base[0]
    return Sweep(jax.device_put(values), jax.device_put(base), cells.axes, work)


def _only(edit: Any, door: Door) -> Spots:
    """Return the one edit that is swept."""
    found = list(resolved(compose(edit), door.sites, door.batch).values())
    if len(found) != 1 or isinstance(found[0], Compose):
        raise SiteError(
            "A sweep moves one edit: give one edit.at(site); edits that stay are given "
            "as edits=."
        )
    return found[0]


@eqx.filter_jit
def _base(door: Door, metric: Any) -> Any:
    def one(example: Any, prompt: Any) -> Any:
        edits = applied(door.edits, door.sites, prompt)
        return measured(door, metric, edits, example, prompt)

    return door.over(one)


class Group(NamedTuple):
    """Cells that share a program.

    Attributes:
        layer: the layers, where they are fixed when the program is compiled.
        cells: their indices, by first layer.
        first: first layer of each, 0 where that is not used.
        places: their places.
        layers: number of layers that a block can start at, 0 without a scan.
    """

    layer: tuple[int, ...] | None
    cells: np.ndarray
    first: np.ndarray
    places: dict[str, np.ndarray]
    layers: int


def _groups(
    swept: Swept, cells: Grid, scanned: bool, layers: int | None
) -> list[Group]:
    """Group cells by program: by ranges of layers, unless the layer is in a scan."""
    count = int(np.prod(cells.shape))
    every, sets = np.arange(count), cells.layers
    lone = sets is not None and all(len(one) == 1 for one in sets)
    first = np.array([min(one) for one in sets] if sets else [0] * count, np.int32)
    if scanned:
        fixed = swept.edit.layer
        if sets is None and fixed is not None and not hasattr(fixed, "values"):
            first = np.full(count, int(fixed), np.int32)
        order = np.argsort(first, kind="stable")
        places = {key: value[order] for key, value in cells.places.items()}
        return [Group(None, order, first[order], places, layers or 0)]
    if not lone:
        return [Group(None, every, np.zeros_like(first), cells.places, 0)]
    found = []
    unique = np.unique(first)
    for some in np.array_split(unique, min(MOST_PROGRAMS, len(unique))):
        own = every[np.isin(first, some)]
        places = {key: value[own] for key, value in cells.places.items()}
        fixed = tuple(map(int, some))
        found.append(Group(fixed, own, np.zeros(len(own), np.int32), places, 0))
    return found


def _placed(
    swept: Swept, place: Mapping[str, Any], layer: tuple[int, ...] | None
) -> Spots:
    """Return the swept edit at one cell."""
    edit, mask = swept.edit.edit, swept.edit.mask
    axes, at = dict(swept.edit.axes), swept.edit.layer
    for key, value in place.items():
        if key == COEFFICIENT:
            edit = eqx.tree_at(lambda e: e.coefficient, edit, value)
        elif key == WHERE:
            mask = value if mask is None else mask & value
        elif key.startswith(SOURCE):
            edit = moved(edit, {key.removeprefix(SOURCE): value})
        elif key == "layer":
            at = value
        else:
            axes[key] = value
    at = at if layer is None else OneOf(layer, at)
    return Spots(edit, at, axes, mask, swept.edit.site)


def _differing(swept: Swept, groups: list[Group]) -> np.ndarray:
    """Find the cells and examples that change the value at the site.

    Returns:
        `[example, cell]`.

    Raises:
        NotFiniteError: an edit that gives NaN where the value has none.
    """
    total = sum(len(group.cells) for group in groups)
    found = np.zeros((swept.door.batch or 1, total), bool)
    for group in groups:
        places = jax.tree.map(jnp.asarray, group.places)
        change, nan = _changes(swept, places, group.layer, len(group.cells))
        found[:, group.cells] = np.atleast_2d(np.asarray(change))
        if np.any(nan):
            i = int(np.argmax(np.atleast_2d(np.asarray(nan)).any(0)))
            raise NotFiniteError(
                f"{type(swept.edit.edit).__name__} gives NaN at {swept.edit.site!r} in "
                f"cell {group.cells[i]} of the sweep: check its operand for NaN."
            )
    return found


@eqx.filter_jit
def _changes(
    swept: Swept, places: Any, layer: tuple[int, ...] | None, count: int
) -> Any:
    """Compare the edited with the unedited value, for every example and cell."""
    door, name = swept.door, swept.edit.site

    def one(example: Any, prompt: Any) -> Any:
        before = applied(door.edits, door.sites, prompt)

        def compare(value: Array, at: Any) -> Any:
            def cell(place: Any) -> Any:
                own = {name: _placed(swept, place, layer)}
                new = applied(own, door.sites, prompt)[name](value, at)
                nan = jnp.isnan(new) & ~jnp.isnan(value)
                return (new != value).any(), nan.any()

            if not places:
                return jax.tree.map(lambda a: jnp.repeat(a, count), cell({}))
            return jax.lax.map(cell, places)

        found = harvest_parts(door.fn, (name,), before, {name: compare})(example)[1]
        # Every axis but the last, the cells, is a layer or another loop.
        return tuple(
            jnp.stack([p.reshape(-1, count).any(0) for p in _parts(a)]).any(0)
            for a in found[name]
        )

    return door.over(one)


def _parts(value: Any) -> tuple[Array, ...]:
    return value if isinstance(value, tuple) else (value,)


def _pieces(
    swept: Swept,
    groups: list[Group],
    differs: np.ndarray,
    memory: int,
    mesh: Mesh | None,
) -> list[Piece]:
    """Cut the cells and examples that change something into calls of a program."""
    examples, _total = differs.shape
    lanes = max(1, memory // _lane_bytes(swept))
    rows = min(examples, lanes, 64)
    devices = 1 if mesh is None else mesh.devices.size
    pieces = []
    for group in groups:
        for start in range(0, examples, rows):
            # The last block is filled up with the last example.
            ids = np.minimum(np.arange(start, start + rows), examples - 1)
            own = np.flatnonzero(differs[start : start + rows, group.cells].any(0))
            if not len(own):
                continue
            most = max(1, min(lanes // rows, len(group.cells)))
            width = bucket(-(-len(own) // -(-len(own) // most)))
            width = -(-width // devices) * devices
            for i in range(0, len(own), width):
                now = own[i : i + width]
                padded = np.pad(now, (0, width - len(now)), mode="edge")
                pieces.append(_piece(swept, group, ids, now, padded, differs, mesh))
    return pieces


def _piece(
    swept: Swept,
    group: Group,
    ids: np.ndarray,
    now: np.ndarray,
    padded: np.ndarray,
    differs: np.ndarray,
    mesh: Mesh | None,
) -> Piece:
    """Return one call: some examples at some cells of a group."""
    cells, real = group.cells[now], len(np.unique(ids))
    changed = differs[np.ix_(ids[:real], cells)]
    names = list(swept.metrics) if isinstance(swept.metrics, Mapping) else [None]

    def call() -> Any:
        places = {key: value[padded] for key, value in group.places.items()}
        if mesh is None:
            places = jax.device_put(places)
        else:
            # With automatic axes: the compiler lays out what follows.
            auto = Mesh(mesh.devices, mesh.axis_names)
            spread = NamedSharding(auto, PartitionSpec(mesh.axis_names))
            places = jax.device_put(places, spread)
        first = jnp.int32(group.first[now].min()) if group.layers else None
        out = _block(swept, jnp.asarray(ids), places, first, group.layer, len(padded))
        return [out if name is None else out[name] for name in names]

    def store(out: Any, values: np.ndarray) -> None:
        at = np.ix_(ids[:real], cells)
        for into, found in zip(values, out, strict=True):
            fresh = np.asarray(found)[:real, : len(cells)]
            into[at] = np.where(changed, fresh, into[at])

    return Piece(int(changed.sum()), call, store)


@eqx.filter_jit
def _block(
    swept: Swept,
    ids: Array,
    places: dict[str, Array],
    first: Array | None,
    layer: tuple[int, ...] | None,
    count: int,
) -> Any:
    """Return the metric of some examples at some cells, `[example, cell]`."""
    door = swept.door

    def one(example: Any, prompt: Any) -> Any:
        before = applied(door.edits, door.sites, prompt)

        def cell(place: Any) -> Any:
            moved = _placed(swept, place, layer)
            name = moved.site
            both = Compose((door.edits[name], moved)) if name in door.edits else moved
            edits = applied(dict(door.edits) | {name: both}, door.sites, prompt)
            start = None if first is None else Start(name, before, first)
            return measured(door, swept.metrics, edits, example, prompt, start)

        if not places:
            return jax.tree.map(lambda a: jnp.repeat(a, count), cell({}))
        return jax.vmap(cell)(places)

    if door.batch is None:
        return jax.tree.map(lambda a: a[None], one(door.inputs, None))
    return jax.vmap(one)(jax.tree.map(lambda a: a[ids], door.inputs), ids)


def _lane_bytes(swept: Swept) -> int:
    """Estimate the memory of one edited run."""
    door = swept.door
    example = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape[door.batch is not None :], a.dtype),
        door.inputs,
    )
    return max(1, peak_bytes(trace(door.fn, (example,), {})[0].closed.jaxpr))
