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
    """Return the tokens with each role in causal tracing.

    The only token of a one-token subject is both first and last.

    Args:
        prompts: prompts with a named span for the subject.
        span: name of the span.

    Returns:
        Masks for the first, middle and last tokens of the subject, the first token
        after it, the further tokens, and the last token of the prompt.

    Raises:
        PositionError: the prompts have no such span.

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
    """Return the mean over the tokens with each role, NaN if there are none."""
    found = {}
    for role, mask in subject_roles(prompts, span=span).items():
        here = jnp.asarray(mask)[:, None]
        total = jnp.where(here, values, 0.0).sum(-1)
        found[role] = total / jnp.where(here.any(-1), here.sum(-1), jnp.nan)
    return found
