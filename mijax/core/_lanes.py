"""Which lanes of a sweep change something, and the layer and row they run from."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from mijax._errors import NotFiniteError
from mijax.core._axes import Cells
from mijax.core._chunk import Base, changed
from mijax.core._edits import Placed
from mijax.core._plan import Lanes
from mijax.core._rowwise import check_rowwise
from mijax.core._sites import BLOCK_SITES, END
from mijax.core._source_place import SOURCE


def lanes_of(placed: Placed, grid: Cells, base: Base, causal: bool) -> Lanes:
    """Finds the lanes that change something, and from where they run."""
    layered = placed.site in BLOCK_SITES
    index = grid.places
    edits = [placed.edit]
    if grid.coefficients is not None:
        edits = [_with_coefficient(placed.edit, c) for c in grid.coefficients]
    check_rowwise(edits[0], base.site, layered)
    maps = [changed(one, base, layered) for one in edits]
    if any(key.startswith(SOURCE) for key in index):
        # One map per source place could be many, so that all lanes are run.
        maps = [(np.ones(m.shape, bool), np.zeros(m.shape, bool)) for m, _ in maps]
    # coefficient layer prompt seq head
    differs, nans = (np.stack([np.asarray(m[i]) for m in maps]) for i in (0, 1))
    zero = np.zeros_like(index["prompt"])
    layer, start = _lowest(grid), index.get("start", zero)
    prompt, seq = index["prompt"], base.x.shape[2]
    first = _first(differs, grid)
    broken = _first(nans, grid) < np.minimum(index.get("stop", zero + END), seq)
    if broken.any():
        i = int(broken.argmax())
        raise NotFiniteError(
            f"{type(placed.edit).__name__} gives NaN at {placed.site!r} in prompt "
            f"{prompt[i]}, layer {layer[i]}, from position {start[i]} on: check its "
            "operand for NaN."
        )
    last = np.asarray(base.reads).max(1)[prompt]
    if not causal:
        # Padding changes nothing: no token reads it.
        every = np.full(base.x.shape[1], seq, np.int32)
        last = np.asarray(every if base.lengths is None else base.lengths)[prompt] - 1
    stop = np.minimum(index.get("stop", np.full_like(zero, END)), last + 1)
    cell = np.flatnonzero(first < stop)
    if not causal:
        first = np.zeros_like(first)
    length = last - first + 1
    return Lanes(cell, prompt[cell], layer[cell], first[cell], length[cell])


def _first(rows: np.ndarray, grid: Cells) -> np.ndarray:
    """Return the first of some rows at or after each lane's start, `seq` for none.

    Args:
        rows: `[coefficient, layer, prompt, seq, heads]`.
        grid: the lanes.
    """
    index, seq = grid.places, rows.shape[3]
    if any(index[key].dtype == bool for key in ("layer", "head") if key in index):
        return _first_of_sets(rows, grid)
    if "layer" not in index:
        rows = np.asarray(rows.any(1, keepdims=True))
    if "head" not in index:
        rows = np.asarray(rows.any(-1, keepdims=True))
    at = np.where(rows, np.arange(seq)[:, None], seq)
    following = np.minimum.accumulate(at[:, :, :, ::-1], axis=3)[:, :, :, ::-1]
    zero = np.zeros_like(index["prompt"])
    layer, start, head = (index.get(key, zero) for key in ("layer", "start", "head"))
    return following[grid.coefficient, layer, index["prompt"], start, head]


def _lowest(grid: Cells) -> np.ndarray:
    """Return the first layer that each lane edits, 0 where that is open."""
    index = grid.places
    layer = index.get("layer", np.zeros_like(index["prompt"]))
    if "head" in index and index["head"].ndim == 3:
        layer = np.asarray(index["head"].any(axis=2))
    return np.asarray(layer.argmax(axis=1), np.int32) if layer.ndim == 2 else layer


def _first_of_sets(rows: np.ndarray, grid: Cells) -> np.ndarray:
    """Do the same as `_first` where lanes edit sets of layers or heads."""
    index, (layers, seq, heads) = grid.places, (*rows.shape[1:4:2], rows.shape[4])
    count = len(index["prompt"])
    member = np.ones((count, layers, heads), bool)
    for key, size in (("layer", layers), ("head", heads)):
        if key not in index:
            continue
        at = index[key]
        at = at if at.dtype == bool else at[:, None] == np.arange(size)
        if at.ndim == 2:
            at = at[:, :, None] if key == "layer" else at[:, None, :]
        # At a site without heads all of a row is one head.
        member &= at if heads > 1 or key == "layer" else at.any(2, keepdims=True)
    found = np.zeros(count, int)
    each, which = np.unique(member.reshape(count, -1), axis=0, return_inverse=True)
    start = index.get("start", np.zeros_like(index["prompt"]))
    for i, one in enumerate(each.reshape(-1, layers, heads)):
        lanes = np.flatnonzero(which.reshape(-1) == i)
        hit = (rows & one[:, None, None, :]).any((1, 4))
        at = np.where(hit, np.arange(seq), seq)
        following = np.minimum.accumulate(at[:, :, ::-1], axis=2)[:, :, ::-1]
        place = (grid.coefficient[lanes], index["prompt"][lanes], start[lanes])
        found[lanes] = following[place]
    return found


def _with_coefficient(one: Any, coefficient: Any) -> Any:
    return eqx.tree_at(lambda e: e.coefficient, one, jnp.asarray(coefficient))
