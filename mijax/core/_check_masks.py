"""Checks of an edit's indices on axes by name, and of its mask."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from mijax._errors import ShapeError, SiteError
from mijax.core._operands import Span, check_per_prompt
from mijax.core._sites import END, SECOND_AXES, PerPrompt, known


def check_masks(
    placed: Any, shape: tuple[int, ...], batch: tuple[int, ...], tokens: int
) -> None:
    """Refuse indices on axes by name that do not exist, and masks that do not fit.

    Args:
        placed: the edit with its place.
        shape: shape of the value in one prompt and layer, `[seq, ...]`.
        batch: `(prompts,)`, or `()` for a single prompt.
        tokens: number of tokens with those that are yet to come.

    Raises:
        SiteError: an index beyond the axis, or one that is given twice.
        ShapeError: a mask that does not broadcast.
    """
    for axis, index in (placed.axes or {}).items():
        second = axis == SECOND_AXES.get(placed.site)
        same, size = ("head", shape[1]) if second else ("feature", shape[-1])
        twice = (placed.head,) if second else (placed.feature, placed.features)
        if any(given is not None for given in twice):
            raise SiteError(
                f"Site {placed.site!r} is given {same}= and {axis}=, which are one "
                "axis."
            )
        if isinstance(index, PerPrompt):
            check_per_prompt(jnp.asarray(index.values), axis, batch)
        ends = (index.start, index.stop - 1) if isinstance(index, Span) else ()
        each = index.values if isinstance(index, PerPrompt) else index
        for end in ends or (each,):
            value = known(end)
            whole = isinstance(index, Span) and value is not None and value == END - 1
            if value is not None and not whole and np.any(value >= size):
                raise SiteError(
                    f"{axis} {value.max()} is out of range: site {placed.site!r} has "
                    f"{axis}s 0 to {size - 1}."
                )
    if placed.mask is None:
        return
    for seq in {shape[0], tokens}:
        own = (seq, *shape[1:])
        try:
            if jnp.broadcast_shapes(placed.mask.shape, own) == own:
                return
        except ValueError:
            continue
    raise ShapeError(
        f"`where` of shape {placed.mask.shape} does not broadcast to site "
        f"{placed.site!r}, {tuple(shape)} for one prompt and layer."
    )
