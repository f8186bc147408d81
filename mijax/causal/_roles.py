"""Roles of tokens in prompts with a subject."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mijax.data import Prompts

ROLES = (
    *("first subject", "middle subject", "last subject"),
    *("first after", "further", "last"),
)


def subject_roles(
    prompts: Prompts, *, span: str = "subject"
) -> dict[str, Bool[np.ndarray, "prompt seq"]]:
    """Return the tokens of each role of causal tracing.

    A subject of one token is its first and its last one.

    Args:
        prompts: prompts with a named place of their subject.
        span: its name.

    Returns:
        Masks of the first, middle and last token of the subject, the first one after
        it, the further ones before the last, and the last one of the prompt.

    Raises:
        PositionError: the prompts have no such place.

    Examples:
        >>> prompts = Prompts.from_ids([[1, 2, 3, 4]], spans={"subject": [(0, 2)]})
        >>> subject_roles(prompts)["first after"].tolist()
        [[False, False, True, False]]
    """
    start, stop = (np.asarray(ends)[:, None] for ends in prompts.find(span))
    last = np.asarray(prompts.last)[:, None]
    at = np.arange(prompts.tokens.shape[1])
    masks = (
        at == start,
        (at > start) & (at < stop - 1),
        at == stop - 1,
        (at == stop) & (at < last),
        (at > stop) & (at < last),
        at == last,
    )
    return dict(zip(ROLES, masks, strict=True))


def mean_over_roles(
    values: Float[Array, "prompt layer position"], prompts: Prompts, span: str
) -> dict[str, Float[Array, "prompt layer"]]:
    """Return the mean over the tokens of each role, NaN where there are none."""
    found = {}
    for role, mask in subject_roles(prompts, span=span).items():
        here = jnp.asarray(mask)[:, None]
        total = jnp.where(here, values, 0.0).sum(-1)
        found[role] = total / jnp.where(here.any(-1), here.sum(-1), jnp.nan)
    return found
