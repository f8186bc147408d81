"""What makes latents active: a few of them, drawn at random, and their top examples."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax import dictionaries as d
from mijax.data import Tokenizer

from ._activations import HeldOut

# Sequences whose latents are computed at once.
SEQUENCES = 8
# Tokens before and after the one that is shown.
BEFORE, AFTER = 8, 3


class Features(NamedTuple):
    """Some latents.

    Attributes:
        which: they are, `[feature]`.
        values: how active they are, `[sequence, seq, feature]`, 0 where tokens are left
            out.
    """

    which: Int[np.ndarray, " feature"]
    values: Float[np.ndarray, "sequence seq feature"]


def drawn(
    dictionary: d.Dictionary,
    density: Float[np.ndarray, " latent"],
    held: HeldOut,
    *,
    features: int,
    seed: int,
) -> Features:
    """Draws latents that are active now and then, and finds where they are.

    Args:
        dictionary: any.
        density: share of rows in which each latent is active.
        held: sequences.
        features: how many; fewer where fewer are active.
        seed: of the draw.
    """
    alive = np.flatnonzero(density > 0)
    rng = np.random.default_rng(seed)
    which = np.sort(rng.choice(alive, min(features, len(alive)), replace=False))
    parts = []
    for at in range(0, len(held.acts), SEQUENCES):
        acts = jnp.asarray(held.acts[at : at + SEQUENCES])
        parts.append(np.asarray(some(dictionary, acts, jnp.asarray(which))))
    values = np.concatenate(parts)
    return Features(which, np.where(held.kept[:, :, None], values, 0))


def rows(
    found: Features,
    density: Float[np.ndarray, " latent"],
    held: HeldOut,
    tokenizer: Tokenizer | None,
) -> list[list[object]]:
    """Makes a row of a table for each latent: its largest examples, one per sequence.

    Args:
        found: the latents.
        density: share of rows in which each latent is active.
        held: sequences.
        tokenizer: spells tokens; their ids are shown without.
    """
    table = []
    for i, latent in enumerate(found.which):
        values = found.values[:, :, i]
        places = values.argmax(1)
        best = values.max(1)
        order = np.argsort(-best, kind="stable")[:3]
        texts = [
            shown(held.tokens[s], int(places[s]), tokenizer) if best[s] > 0 else None
            for s in order
        ]
        texts += [None] * (3 - len(texts))
        table.append([str(latent), float(density[latent]), float(best.max()), *texts])
    return table


def shown(
    tokens: Int[np.ndarray, " seq"], place: int, tokenizer: Tokenizer | None
) -> str:
    """Spells some tokens around a place, and marks the one there."""
    first = max(0, place - BEFORE)
    ids = [int(i) for i in tokens[first : place + AFTER + 1]]
    pieces = [f" {i}" for i in ids] if tokenizer is None else tokenizer.pieces(ids)
    at = place - first
    return "".join([*pieces[:at], f"«{pieces[at]}»", *pieces[at + 1 :]]).strip()


@eqx.filter_jit
def some(
    dictionary: d.Dictionary, acts: Float[Array, "some seq embed"], which: Array
) -> Float[Array, "some seq feature"]:
    return dictionary.encode(acts)[..., which]
