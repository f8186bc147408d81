"""What edits are given: looked up for a row, a shape or a site."""

from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array

from mijax._errors import PositionError, SiteError
from mijax.core._integers import reals
from mijax.core._sites import Site


def check_per_prompt(value: Array | None, name: str, batch: tuple[int, ...]) -> None:
    """Refuses what is neither one value nor one per prompt.

    Args:
        value: what an edit looks up for each row, if anything.
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
