"""Masks of an edit in a decoder: indices on the last axis, and `where`."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from mijax.core._operands import Span
from mijax.core._sites import PerPrompt


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
    # A decoder has one axis more than those that have their own argument: the last.
    for index in (placed.axes or {}).values():
        if isinstance(index, Span):
            masks.append((at >= index.start) & (at < index.stop))
        elif isinstance(index, PerPrompt):
            masks.append(place.each(index, x) == at)
        else:
            masks.append(jnp.isin(at, index))
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
