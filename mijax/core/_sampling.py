"""Choose the next token from logits: temperature, top-k, top-p and min-p."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import NotFiniteError, ShapeError
from mijax.core._metric import wide

# Stands for the next token where logits are NaN.
NOTHING = -2


class Sampling(eqx.Module):
    """Limits on the tokens that may be drawn; the values are data, not structure.

    Attributes:
        temperature: divisor of the logits; 0 takes the largest.
        top_k: number of tokens to keep.
        top_p: probability that the kept tokens reach together.
        min_p: least probability, as a fraction of the largest.
    """

    temperature: Any
    top_k: Any = None
    top_p: Any = None
    min_p: Any = None

    @classmethod
    def of(cls, temperature: Any, top_k: Any, top_p: Any, min_p: Any) -> "Sampling":
        """Check the limits.

        Raises:
            ShapeError: a limit out of its range, or limits without a temperature.
        """
        _number("temperature", temperature, 0.0, np.inf, "at least 0")
        limits = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
        given = [name for name, value in limits.items() if value is not None]
        if given and not np.asarray(temperature) > 0:
            raise ShapeError(
                f"{given[0]} limits what is sampled, and temperature=0 takes the most "
                "likely token: give a temperature above 0 and a key."
            )
        if top_k is not None:
            whole = isinstance(top_k, int | np.integer) and not isinstance(top_k, bool)
            if not whole or not 1 <= top_k < 2**31:
                raise ShapeError(f"top_k is a number of tokens, got {top_k!r:.60}.")
            limits["top_k"] = jnp.asarray(top_k, jnp.int32)
        for name, value in (("top_p", top_p), ("min_p", min_p)):
            if value is None:
                continue
            if name == "top_p" and value == 0:
                raise ShapeError("top_p is above 0: for the best token give top_k=1.")
            _number(name, value, 0.0, 1.0, "from 0 to 1")
            limits[name] = jnp.asarray(value, jnp.float32)
        return cls(jnp.asarray(temperature, jnp.float32), **limits)


def _number(name: str, value: Any, least: float, most: float, says: str) -> None:
    """Refuse a value that is not a number of a range."""
    array = np.asarray(value)
    fits = array.ndim == 0 and array.dtype.kind in "fiu" and np.isfinite(array)
    if not fits or not least <= array <= most:
        raise ShapeError(f"{name} is a number {says}, got {value!r:.60}.")


def pick(
    logits: Float[Array, "prompt vocab"],
    keys: Array,
    sampling: Sampling,
    step: Int[Array, ""],
) -> Int[Array, " prompt"]:
    """Choose the next token of each prompt.

    Args:
        logits: logits of each prompt's last token.
        keys: one key per prompt.
        sampling: temperature and limits.
        step: number of the new token, folded into the keys.

    Returns:
        Token ids.
    """
    logits, heat = wide(logits), sampling.temperature
    own = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)
    scaled = logits / jnp.maximum(heat, 1e-6)
    allowed = jax.vmap(lambda row: limited(row, sampling))(scaled)
    drawn = jax.vmap(jax.random.categorical)(own, allowed)
    token = jnp.where(heat > 0, drawn, logits.argmax(-1)).astype(jnp.int32)
    return jnp.where(jnp.isnan(logits).any(-1), NOTHING, token)


def refuse_nothing(tokens: np.ndarray) -> None:
    """Refuse continuations in which logits were NaN.

    Raises:
        NotFiniteError: a step had no next token.
    """
    if np.any(tokens == NOTHING):
        raise NotFiniteError(
            "The logits of a new token are NaN, so there is no next token: check the "
            "model's weights and the edits for NaN."
        )


def limited(
    logits: Float[Array, " vocab"], sampling: Sampling
) -> Float[Array, " vocab"]:
    """Return logits with minus infinity at the tokens that may not be drawn.

    Top-k, then top-p of what is left (Holtzman et al. 2020, arXiv:1904.09751), then
    min-p (Nguyen et al. 2024, arXiv:2407.01082), each on renormalized probabilities,
    as Hugging Face transformers apply them.

    Args:
        logits: logits divided by the temperature.
        sampling: the limits.

    Returns:
        The logits of the tokens that are left.
    """
    vocab = logits.shape[0]
    if sampling.top_k is not None:
        # Ties with the k-th logit are kept.
        least = jnp.sort(logits)[vocab - jnp.minimum(sampling.top_k, vocab)]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p is not None:
        order = jnp.argsort(-logits)
        p = jax.nn.softmax(logits[order])
        # A token is kept while the more likely ones together stay below top_p.
        keep = (jnp.cumsum(p) - p < sampling.top_p) | (sampling.top_p >= 1)
        keep = jnp.zeros(vocab, bool).at[order].set(keep)
        logits = jnp.where(keep, logits, -jnp.inf)
    if sampling.min_p is not None:
        least = logits.max() + jnp.log(sampling.min_p)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits
