"""Masks of an edit in a decoder: indices on axes by name, and `where`."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from mijax.core._operands import Span
from mijax.core._sites import SECOND_AXES, PerPrompt


def last_axis_masks(place: Any, placed: Any, x: Array) -> list[Array]:
    """Return masks of what is edited, each broadcastable to the rows of `x`.

    Args:
        place: the rows.
        placed: the edit with its indices.
        x: the value, rows first.
    """
    at, masks = jnp.arange(x.shape[-1]), []
    if placed.feature is not None and placed.feature.dtype == bool:
        masks.append(place.among(placed.feature, x, at))
    elif placed.feature is not None:
        masks.append(place.each(placed.feature, x) == at)
    if placed.features is not None:
        masks.append(jnp.isin(at, placed.features))
    # Other names are those of the last axis, or of experts, which come before it.
    for axis, index in (placed.axes or {}).items():
        second = axis == SECOND_AXES.get(placed.site)
        along = jnp.arange(x.shape[1])[:, None] if second else at
        if isinstance(index, Span):
            masks.append((along >= index.start) & (along < index.stop))
        elif isinstance(index, PerPrompt):
            masks.append(place.each(index, x) == along)
        else:
            masks.append(jnp.isin(along, index))
    if placed.mask is not None:
        masks.append(_rows_of(placed.mask, place.rows.position, x.ndim))
    return masks


def _rows_of(mask: Array, position: Array, rank: int) -> Array:
    """Return each row of a mask over one prompt, `[position, ...]` or without rows."""
    if mask.ndim < rank or mask.shape[0] == 1:
        return mask
    # Positions after the end of the mask, which generation adds, are not edited.
    inside = (position < len(mask)).reshape(-1, *(1,) * (rank - 1))
    return mask[jnp.minimum(position, len(mask) - 1)] & inside
