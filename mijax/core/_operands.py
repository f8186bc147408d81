"""What edits are given: looked up for a row, a shape or a site."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from mijax._errors import PositionError, ShapeError, SiteError
from mijax.core._integers import reals
from mijax.core._sites import PerPrompt, Site


def value_of(given: Any) -> Any:
    """Return a value of an edit as real numbers, `PerPrompt` where that is stated."""
    if isinstance(given, PerPrompt):
        return PerPrompt(reals(given.values))
    return reals(given)


def coefficient_of(given: Any) -> Any:
    """Return a coefficient as a number, or `PerPrompt` where that is stated.

    Raises:
        ShapeError: an array of any other shape.
    """
    value = value_of(given)
    rank = value.values.ndim - 1 if isinstance(value, PerPrompt) else value.ndim
    if rank:
        shape = value.values.shape if isinstance(value, PerPrompt) else value.shape
        raise ShapeError(
            f"A coefficient is one number, got shape {shape}: for one per prompt give "
            "mijax.PerPrompt([...])."
        )
    return value


class Span(eqx.Module):
    """A half-open range of indices on an axis."""

    start: Array
    stop: Array


def rows_per_prompt(values: Array, prompt: Any, rank: int) -> Array:
    """Return the value of each row's prompt, broadcastable to rows of some rank.

    Args:
        values: `[batch, ...]`.
        prompt: prompt of each row, one for all, or `None` for a single prompt.
        rank: rank of the rows.

    Raises:
        PositionError: a single prompt.
    """
    if prompt is None:
        raise PositionError("A value per prompt needs a batch of prompts.")
    own, rest = values[prompt], values.shape[1:]
    return own.reshape(*jnp.shape(prompt), *(1,) * (rank - 1 - len(rest)), *rest)


def check_per_prompt(value: Any, name: str, batch: tuple[int, ...]) -> None:
    """Refuses what is neither one value nor one per prompt.

    Args:
        value: what an edit looks up for each row, if anything.
        name: what it is.
        batch: `(prompts,)`, or `()` for a single prompt.
    """
    if isinstance(value, PerPrompt):
        value = value.values[(slice(None), *(0,) * (value.values.ndim - 1))]
    if value is None or value.ndim == 0 or value.shape == batch:
        return
    error = PositionError if name == "position" else SiteError
    raise error(
        f"An edit's {name} of shape {value.shape} does not fit "
        f"{f'{batch[0]} prompts' if batch else 'a single prompt'}: give one, or one "
        "per prompt, or an edit for each."
    )


def pick(operand: Any, site: Site) -> Any:
    """Returns an edit's operand for one site, by name where it is a mapping."""
    if not isinstance(operand, Mapping):
        return _activations(operand)
    if site.name not in operand:
        raise SiteError(
            f"The edit holds no activations of {site.name!r}, only of "
            f"{', '.join(operand)}."
        )
    return _activations(operand[site.name])


def _activations(value: Any) -> Any:
    """Return activations as an array, or those of unequal layers as a tuple."""
    if isinstance(value, tuple) and all(isinstance(v, jax.Array) for v in value):
        return tuple(reals(layer, "Activations") for layer in value)
    return reals(value, "Activations")
