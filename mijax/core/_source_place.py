"""The part of a source that `Patch` reads, where it is not the edited place itself."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mijax._errors import PositionError, ShapeError, SiteError, nearest
from mijax.core._integers import integers
from mijax.core._sites import BLOCK_SITES, PerPrompt, has_second_axis, known

# Names of swept axes of a source: "source_layer", "source_position", ...
SOURCE = "source_"


def source_indices(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the indices of a source as data: one for all prompts, or one for each.

    Raises:
        SiteError: no index, a negative one, or a list where `PerPrompt` is meant.
        PositionError: a span, or a negative position.
    """
    found = {}
    for axis, index in given.items():
        if index is None:
            continue
        error = PositionError if axis == "position" else SiteError
        if isinstance(index, slice):
            raise error(
                f"A source {axis} is one index, or one per prompt, got {index}: for a "
                "span make one edit per index."
            )
        each = index.values if isinstance(index, PerPrompt) else index
        array = integers(each, f"A source {axis}", error)
        listed = axis != "position" and not isinstance(index, PerPrompt)
        if array.ndim > 1 - listed:
            raise error(
                f"A source {axis} is one index, or mijax.PerPrompt, got shape "
                f"{array.shape}."
            )
        value = known(array)
        if value is not None and np.any(value < 0):
            raise error(f"A source {axis} counts from 0, got {value.min()}.")
        data = jnp.asarray(array, jnp.int32)
        found[axis] = PerPrompt(data) if data.ndim else data
    if not found:
        raise SiteError("from_place takes at least one index, such as layer=3.")
    return found


def source_axes(site: str | None, place: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the axes of a source for a decoder's site, without that of prompts."""
    layered = site in BLOCK_SITES or "layer" in place
    heads = ("head",) if has_second_axis(site) else ()
    axes = (*(("layer",) if layered else ()), "position", *heads, "feature")
    for axis in place:
        if axis not in axes:
            raise SiteError(
                f"A source for site {site!r} has no axis {axis!r}.{nearest(axis, axes)}"
            )
    return axes


def check_source_place(
    place: Mapping[str, Any], sizes: Mapping[str, int], batch: int | None
) -> None:
    """Refuse indices that a source does not have.

    Args:
        place: the indices, by axis.
        sizes: size of each axis of the source.
        batch: number of prompts that are run, `None` for a single one.

    Raises:
        SiteError: an index beyond its axis, or one per prompt for other prompts.
        PositionError: the same for positions.
    """
    for axis, index in place.items():
        error = PositionError if axis == "position" else SiteError
        each = index.values if isinstance(index, PerPrompt) else index
        if each.ndim and each.shape[0] != batch:
            raise error(
                f"The source {axis} holds {each.shape[0]} prompts, but the run has "
                f"{'a single one' if batch is None else batch}."
            )
        value = known(each)
        if value is not None and np.any(value >= sizes[axis]):
            raise error(
                f"Source {axis} {value.max()} is out of range: the source has "
                f"{axis}s 0 to {sizes[axis] - 1}."
            )


def repeated(rows: Array, index: Array, axis: int, size: int) -> Array:
    """Return each row's entry at an index of one axis, repeated along that axis.

    Args:
        rows: `[rows, ...]`.
        index: one for all rows, or `[rows]`.
        axis: the axis.
        size: number of repetitions.
    """
    own = jnp.broadcast_to(index, rows.shape[:1]).reshape(-1, *(1,) * (rows.ndim - 1))
    one = jnp.take_along_axis(rows, own, axis)
    return jnp.broadcast_to(one, (*rows.shape[:axis], size, *rows.shape[axis + 1 :]))


def swept_sources(over: Any) -> tuple[str, ...]:
    """Return the axes of a source that a sweep runs over, without their prefix."""
    names = (over,) if isinstance(over, str) else over
    if not isinstance(names, Mapping | list | tuple | set):
        return ()
    found = (name for name in names if isinstance(name, str))
    return tuple(n.removeprefix(SOURCE) for n in found if n.startswith(SOURCE))


def source_shape_error(found: tuple[int, ...], needs: Any, site: str) -> ShapeError:
    """Return the error of a source that has another shape than its place needs."""
    return ShapeError(
        f"The source has shape {found}, but the run needs {needs} at site {site!r}: "
        "capture the whole site in the same number of prompts, and give from_place "
        "each axis that differs."
    )
