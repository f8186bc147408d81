"""What edits are given: looked up for a row, a shape or a site."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from mijax._errors import PositionError, ShapeError, SiteError
from mijax.core._integers import reals
from mijax.core._rows import Place
from mijax.core._sites import Site


def per_row(index: Array, place: Place, x: Array) -> Array:
    """Looks up a scalar, or an array of one value per lane, for every row of `x`."""
    if index.ndim == 0:
        return index
    if index.ndim > 1:
        raise PositionError(
            f"An index holds one entry per prompt, got shape {index.shape}."
        )
    if place.rows.lane is None:
        raise PositionError(
            f"An index of shape {index.shape} needs a batch of as many prompts, but a "
            "single one is run."
        )
    value = index[place.rows.lane]
    return value.reshape(value.shape + (1,) * (x.ndim - 1)) if value.ndim else value


def check_per_prompt(value: Array | None, name: str, batch: tuple[int, ...]) -> None:
    """Refuses what is neither one value nor one per prompt.

    Args:
        value: what `per_row` looks up, if anything.
        name: what it is.
        batch: `(prompts,)`, or `()` for a single prompt.
    """
    if value is None or value.ndim == 0 or value.shape == batch:
        return
    error = PositionError if name == "position" else SiteError
    raise error(
        f"An edit's {name} of shape {value.shape} does not fit "
        f"{f'{batch[0]} prompts' if batch else 'a single prompt'}: give one, or one "
        "per prompt, or an edit for each."
    )


def fits(value: Array, x: Array) -> Array:
    """Returns an operand that broadcasts to the rows of `x`, or refuses it."""
    row = x.shape[1:]
    try:
        fine = jnp.broadcast_shapes(value.shape, row) == row
    except ValueError:
        fine = False
    if not fine:
        raise ShapeError(f"A value of shape {value.shape} does not fit rows of {row}.")
    return value


def pick(operand: Any, site: Site) -> Array:
    """Returns an edit's operand for one site, by name where it is a mapping."""
    if not isinstance(operand, Mapping):
        return reals(operand, "Activations")
    if site.name not in operand:
        raise SiteError(
            f"The edit holds no activations of {site.name!r}, only of "
            f"{', '.join(operand)}."
        )
    return reals(operand[site.name], "Activations")
