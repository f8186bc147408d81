"""Prompts with answers as a source of batches."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax.data import AbstractSource
from mijax.data.internal import permuted_on_device


class Answers(AbstractSource):
    """Batches of prompts with answers, reshuffled for every pass.

    Attributes:
        tokens: `[text, seq]`.
        lengths: number of tokens of each text.
        start_at: first token of each answer; the loss covers this and later tokens.
        acts: activations at the trained site that some methods need, or `None`.
        size: number of texts in a batch.
        seed: seed for the order.
    """

    tokens: Int[Array, "text seq"]
    lengths: Int[Array, " text"]
    start_at: Int[Array, " text"]
    acts: Float[Array, "text seq embed"] | None
    size: int = eqx.field(static=True)
    seed: int = eqx.field(static=True)

    def start(self) -> Int[Array, ""]:
        """Return the initial state: no batches drawn yet."""
        return jnp.int32(0)

    def batch(self, state: Int[Array, ""]) -> tuple[Int[Array, ""], Any]:
        """Return the next batch."""
        return _draw(self, state)


@eqx.filter_jit
def _draw(source: Answers, state: Int[Array, ""]) -> tuple[Int[Array, ""], Any]:
    n, size = len(source.tokens), source.size
    turn, place = state // (n // size), state % (n // size)
    key = jax.random.fold_in(jax.random.key(source.seed), turn)
    index = permuted_on_device(key, place * size + jnp.arange(size), n)
    parts = (source.tokens, source.lengths, source.start_at, source.acts)
    return state + 1, jax.tree.map(lambda rows: rows[index], parts)
