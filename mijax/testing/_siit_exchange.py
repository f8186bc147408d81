"""The causal model of indirect-object identification, and exchanges that test it."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from mijax.core import AbstractEdit, Place, compose
from mijax.nn import Transformer

NAMES, FILLERS = 10, 4
START, END = NAMES + FILLERS, NAMES + FILLERS + 1
VOCAB, SEQ, AT = NAMES + FILLERS + 2, 6, 4  # the third name is at position 4
LAYERS, HEADS, HEAD_DIM, EMBED, HIDDEN = 3, 4, 8, 32, 64
# Where each node of the causal model is: layer and head.
NODES: Mapping[str, tuple[int, int]] = {
    "duplicate": (0, 1),
    "inhibition": (1, 2),
    "mover": (2, 0),
}


class Prompts(NamedTuple):
    """Prompts and what the causal model says of them.

    Attributes:
        tokens: `[start, name, name, filler, one of the two again, end]`.
        again: which of the two names comes again, 0 or 1.
    """

    tokens: Int[Array, "batch seq"]
    again: Int[Array, " batch"]

    @property
    def answer(self) -> Int[Array, " batch"]:
        """The name that comes once."""
        return other(self, self.again)


def draw(key: PRNGKeyArray, n: int) -> Prompts:
    """Draws prompts."""
    names, again, filler = jax.random.split(key, 3)
    two = jax.vmap(lambda k: jax.random.permutation(k, NAMES)[:2])(
        jax.random.split(names, n)
    )
    repeated = jax.random.randint(again, (n,), 0, 2)
    three = two[jnp.arange(n), repeated]
    between = NAMES + jax.random.randint(filler, (n,), 0, FILLERS)
    start, end = jnp.full(n, START), jnp.full(n, END)
    tokens = jnp.stack([start, *two.T, between, three, end], axis=1)
    return Prompts(tokens.astype(jnp.int32), repeated.astype(jnp.int32))


def other(prompts: Prompts, again: Int[Array, " batch"]) -> Int[Array, " batch"]:
    """The name that comes once if `again` says which comes twice."""
    return prompts.tokens[jnp.arange(len(again)), 2 - again]


class Exchange(AbstractEdit):
    """Takes some heads, or an MLP, from another run.

    Attributes:
        source: activations of that run, `[layer, seq, ...]`.
        taken: which are taken, `[layer]` or `[layer, heads]`.
    """

    source: Float[Array, "layer seq ..."]
    taken: Bool[Array, "layer ..."]

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Returns the rows of either run."""
        taken = self.taken[place.layer]
        return jnp.where(taken[..., None], self.source[place.layer], x)


class Sources(NamedTuple):
    """What heads and MLPs write in each prompt of a batch."""

    z: Float[Array, "batch layer seq heads head_dim"]
    mlp_out: Float[Array, "batch layer seq embed"]


class Taken(NamedTuple):
    """Which heads and MLPs are exchanged in each prompt."""

    z: Bool[Array, "batch layer heads"]
    mlp_out: Bool[Array, "batch layer"]


def exchanged(
    model: Transformer, tokens: Array, sources: Sources, taken: Taken
) -> Float[Array, "batch vocab"]:
    """Logits at the end of runs in which some parts are taken from elsewhere."""

    def one(tokens: Array, source: Sources, taken: Taken) -> Array:
        edits = [
            Exchange(source.z, taken.z).at("z"),
            Exchange(source.mlp_out, taken.mlp_out).at("mlp_out"),
        ]
        return model(tokens, compose(edits))[0][-1]

    return jax.vmap(one)(tokens, sources, taken)


def plain(
    model: Transformer, tokens: Array
) -> tuple[Float[Array, "batch vocab"], Sources]:
    """Logits at the end, and what every part writes."""
    logits, acts = jax.vmap(model)(tokens)
    return logits[:, -1], Sources(acts.blocks.z, acts.blocks.mlp_out)


def interchange(
    key: PRNGKeyArray, prompts: Prompts, sources: Sources
) -> tuple[Sources, Taken, Int[Array, " batch"]]:
    """Exchanges nodes of the circuit, and says what the causal model then answers."""
    n = len(prompts.again)
    pick, *keys = jax.random.split(key, 1 + len(NODES))
    # One set of nodes of the seven that are not empty.
    chosen = jax.random.randint(pick, (n,), 1, 2 ** len(NODES))
    z, taken = sources.z, jnp.zeros((n, LAYERS, HEADS), bool)
    answer = prompts.answer
    for i, (name, (layer, head)) in enumerate(NODES.items()):
        # The causal order: a later node overrules those before it.
        here = (chosen >> i) & 1 == 1
        rows = jax.random.permutation(keys[i], n)
        z = z.at[:, layer, :, head].set(sources.z[rows, layer, :, head])
        taken = taken.at[:, layer, head].set(here)
        new = prompts.answer[rows]
        if name != "mover":
            new = other(prompts, prompts.again[rows])
        answer = jnp.where(here, new, answer)
    mlps = jnp.zeros((n, LAYERS), bool)
    return Sources(z, sources.mlp_out), Taken(taken, mlps), answer


def outside(
    key: PRNGKeyArray, sources: Sources, *, share: Float[Array, " batch"]
) -> tuple[Sources, Taken]:
    """Exchanges what is outside the circuit, each part with a chance of its own."""
    n = sources.z.shape[0]
    order, heads, mlps = jax.random.split(key, 3)
    rows = jax.random.permutation(order, n)
    free = jnp.ones((LAYERS, HEADS), bool)
    for layer, head in NODES.values():
        free = free.at[layer, head].set(False)
    taken = Taken(
        jax.random.bernoulli(heads, share[:, None, None], (n, LAYERS, HEADS)) & free,
        jax.random.bernoulli(mlps, share[:, None], (n, LAYERS)),
    )
    return Sources(*(source[rows] for source in sources)), taken
