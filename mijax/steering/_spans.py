"""Spans of prompts and generated tokens, for the positions of edits."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from mijax._errors import PositionError
from mijax.core.internal import PromptsLike, as_tokens, known


def prompt_only(prompts: Any) -> slice:
    """Return the span of the prompts themselves, without generated tokens.

    Args:
        prompts: `mijax.data.Prompts`, or tokens.

    Returns:
        A slice with one stop per prompt, for `position=`.

    Examples:
        >>> prompt_only(jnp.array([[5, 6, 7], [8, 9, 10]])).stop.tolist()
        [3, 3]
    """
    return slice(0, _lengths(prompts))


def after_prompt(prompts: Any, *, last: int = 0) -> slice:
    """Return the span of generated tokens and the last tokens of the prompt.

    Args:
        prompts: `mijax.data.Prompts`, or tokens.
        last: number of tokens at the end of the prompt to include, such as those in a
            template after the instruction.

    Returns:
        A slice with one start per prompt, for `position=`.

    Raises:
        PositionError: `last` exceeds the length of the shortest prompt.

    Examples:
        >>> after_prompt(jnp.array([[5, 6, 7], [8, 9, 10]]), last=1).start.tolist()
        [2, 2]
    """
    lengths = _lengths(prompts)
    found = known(lengths)
    if last < 0 or (found is not None and last > found.min()):
        least = "" if found is None else f" 0 to {found.min()},"
        raise PositionError(
            f"`last` counts tokens of the shortest prompt,{least} got {last}."
        )
    return slice(lengths - last, None)


def from_span(prompts: Any, name: str) -> slice:
    """Return the span from the first token of a named span to the end.

    CAA steers this way, from the end of the instruction through all answer tokens.

    Args:
        prompts: `mijax.data.Prompts` with the span.
        name: its name.

    Returns:
        A slice with one start per prompt, for `position=`.

    Raises:
        PositionError: the prompts have no such span.

    Examples:
        >>> import mijax
        >>> spans = {"answer": [(1, 2)]}
        >>> prompts = mijax.data.Prompts.from_ids([[5, 6, 7]], spans=spans)
        >>> from_span(prompts, "answer").start.tolist()
        [1]
    """
    return slice(prompts.find(name)[0], None)


def _lengths(prompts: Any) -> Any:
    if isinstance(prompts, PromptsLike):
        return jnp.atleast_1d(jnp.asarray(prompts.lengths, jnp.int32))
    tokens = as_tokens(prompts)
    if tokens.ndim == 1:
        return jnp.asarray(tokens.shape[0], jnp.int32)
    return jnp.asarray(np.full(tokens.shape[0], tokens.shape[1], np.int32))
