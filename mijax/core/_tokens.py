"""Token ids, or prompts that hold some, as every verb takes them."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from mijax._errors import PositionError, ShapeError
from mijax.core._integers import integers
from mijax.core._sites import known


@runtime_checkable
class PromptsLike(Protocol):
    """Prompts padded on the right, such as `mijax.data.Prompts`."""

    tokens: Any
    lengths: Any
    spans: Any


TokensLike = (
    Int[Array, "*batch seq"]
    | Int[np.ndarray, "*batch seq"]
    | Sequence[int]
    | Sequence[Sequence[int]]
    | PromptsLike
)


def as_tokens(tokens: Any) -> Int[Array, "..."]:
    """Returns tokens, or those of prompts, as an int32 array `[seq]` or `[batch, seq]`.

    Raises:
        ShapeError: for another rank, an empty prompt, or values that are not integers.
    """
    if isinstance(tokens, PromptsLike):
        tokens = tokens.tokens
    if _ragged(tokens):
        raise ShapeError(
            "Tokens are integers [seq] or [batch, seq], all prompts of one length: for "
            "prompts of several lengths give mijax.data.Prompts."
        )
    array = integers(tokens, "A token id")
    if array.ndim not in (1, 2) or array.size == 0:
        raise ShapeError(
            f"Tokens are [seq] or [batch, seq] and not empty, got shape {array.shape}."
        )
    ids = known(array)
    if ids is not None and ids.min() < 0:
        raise ShapeError(f"Token ids count from 0, got {ids.min()} to {ids.max()}.")
    # Unlike jnp.asarray, this compiles nothing.
    return jax.device_put(array.astype(np.int32))


def _ragged(tokens: Any) -> bool:
    """Return True if tokens are lists of several lengths."""
    if not isinstance(tokens, list | tuple):
        return False
    return len({np.shape(row) for row in tokens if np.ndim(row) < 2}) > 1


class Padded(eqx.Module):
    """Tokens padded on the right, and their lengths.

    Attributes:
        tokens: `[batch, seq]`, or `[seq]` of one prompt.
        lengths: number of tokens of each prompt.
        spans: first and one past the last token of each named place, by name.
    """

    tokens: Int[Array, "*batch seq"]
    lengths: Int[Array, "..."]
    spans: dict[str, Any] = eqx.field(default_factory=dict)


def as_pairs(clean: Any, corrupt: Any) -> tuple[Any, Any]:
    """Return prompts and their counterparts, with lengths where either has them.

    Raises:
        PositionError: counterparts that do not align token by token.
    """
    check_pairs(clean, corrupt)
    tokens = as_tokens(clean), as_tokens(corrupt)
    known = [one.lengths for one in (clean, corrupt) if isinstance(one, PromptsLike)]
    if not known:
        return tokens
    return Padded(tokens[0], known[0]), Padded(tokens[1], known[0])


def check_pairs(clean: Any, corrupt: Any) -> None:
    """Refuse counterparts that do not align token by token.

    Args:
        clean: tokens or prompts.
        corrupt: their counterparts.

    Raises:
        PositionError: different shapes, or prompts and counterparts of different
            lengths.
    """
    shapes = [as_tokens(given).shape for given in (clean, corrupt)]
    if shapes[0] != shapes[1]:
        raise PositionError(
            f"Clean prompts have shape {shapes[0]} and corrupt ones {shapes[1]}: give "
            "one counterpart of equal length for each."
        )
    lengths = lengths_of(clean), lengths_of(corrupt)
    if lengths[0] is None or lengths[1] is None:
        return
    different = np.flatnonzero(lengths[0] != lengths[1])
    if len(different):
        i = int(different[0])
        raise PositionError(
            f"Prompt {i} has {lengths[0][i]} tokens and its counterpart "
            f"{lengths[1][i]}: give counterparts with the same number of tokens."
        )


def padded_lengths(given: Any, seq: int) -> Int[Array, "..."] | None:
    """Return the lengths of prompts, `None` where no token is padding."""
    if not isinstance(given, PromptsLike):
        return None
    lengths = known(given.lengths)
    if lengths is not None and np.all(lengths == seq):
        return None
    return jnp.atleast_1d(given.lengths)


def lengths_of(given: Any) -> np.ndarray | None:
    """Returns the lengths of prompts, `None` of tokens and where they are traced."""
    lengths = known(given.lengths) if isinstance(given, PromptsLike) else None
    return None if lengths is None else np.atleast_1d(lengths)


def length_of(lengths: Array | None, prompt: Array | None) -> Array | None:
    """Return the length of one prompt, where lengths are given."""
    return None if lengths is None else lengths[0 if prompt is None else prompt]


def over_prompts(one: Any, tokens: Array, prompts: Array | None = None) -> Any:
    """Maps `one(tokens, prompt)` over a batch, or calls it on a single prompt.

    Args:
        one: the function.
        tokens: `[seq]` or `[batch, seq]`.
        prompts: which prompts of a larger batch these are; all of one by default.
    """
    if tokens.ndim == 1:
        return one(tokens, None)
    if prompts is None:
        prompts = jnp.arange(tokens.shape[0], dtype=jnp.int32)
    return jax.vmap(one)(tokens, prompts)
