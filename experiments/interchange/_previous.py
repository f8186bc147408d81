"""Prompts in which one token's predecessor decides what is copied."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from mijax.causal import CausalModel, Counterfactuals

# Token 0 begins a prompt.
BOS = 0
VARIABLES = ("token before", "token itself")
PLACES = ("before", "here", "query")


def _label(previous: Array, content: Array, query: Array, other: Array) -> Array:
    return jnp.where(previous == query, content, other)


# `here` is the token at the place; `other` follows the query elsewhere, if it is there.
PROGRAM = CausalModel(
    ("before", "here", "query", "other"),
    {
        "previous": lambda before: before,
        "content": lambda here: here,
        "label": _label,
    },
)

Tasks = tuple[Counterfactuals, Counterfactuals, Counterfactuals]


def draw(key: PRNGKeyArray, *, vocab: int, length: int, place: int) -> Tasks:
    """Draws an interchange intervention on each variable, and the plain task.

    All tokens of a prompt differ but for the query, its last one. In half of all bases
    it came elsewhere, before another token, and no swap changes what is copied. In the
    others, for the token before: it came nowhere, but the source has it before the
    place; for the token itself: it came before the place, and the source has another
    token there, with another one before.

    Args:
        key: random.
        vocab: number of token ids.
        length: tokens of a prompt, the first one included.
        place: position of the token whose predecessor, and itself, are the variables.

    Returns:
        Interventions on the token before and on the token itself; and a prompt with the
        query before the place or elsewhere, in which nothing is swapped.
    """
    keys = jax.random.split(key, 4)
    base, source = (_distinct(one, vocab, length) for one in keys[:2])
    query, spare = base[-1], base[-2]
    elsewhere = jax.random.bernoulli(keys[2], 0.5)
    at = _elsewhere(keys[3], length, place)
    # The query comes nowhere in the source, and its token here is another one.
    source = jnp.where((source == query) | (source == base[place]), spare, source)
    lacks = base.at[at - 1].set(jnp.where(elsewhere, query, base[at - 1]))
    plain = lacks.at[place - 1].set(jnp.where(elsewhere, base[place - 1], query))
    asks = source.at[place - 1].set(jnp.where(elsewhere, source[place - 1], query))

    def task(
        name: str, base: Array, source: Array, *, swapped: bool
    ) -> Counterfactuals:
        values = {"query": query, "other": base[at]}
        one, two = (
            {**values, "before": x[place - 1], "here": x[place]} for x in (base, source)
        )
        label = PROGRAM.interchange(one, {name: two}, {name: swapped})["label"]
        on = jnp.array([swapped])
        return Counterfactuals(base, source[None], on, label, length)

    return (
        task("previous", lacks, asks, swapped=True),
        task("content", plain, source, swapped=True),
        task("previous", plain, source, swapped=False),
    )


def _distinct(key: PRNGKeyArray, vocab: int, length: int) -> Int[Array, " length"]:
    drawn = jax.random.permutation(key, vocab - 1)[: length - 1] + 1
    return jnp.concatenate([jnp.array([BOS]), drawn]).astype(jnp.int32)


def _elsewhere(key: PRNGKeyArray, length: int, place: int) -> Int[Array, ""]:
    """Draws a position that shares no token with the place or the query."""
    first, last = 2, length - 3
    spots = jnp.array([i for i in range(first, last + 1) if abs(i - place) > 1])
    return jax.random.choice(key, spots)
