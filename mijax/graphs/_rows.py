"""Rows of an attribution graph: the effects of all sources on a target."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mijax.graphs._replacement import Local, Replacement, linear_map


class Features(NamedTuple):
    """Features by location; padding at the end has activation 0."""

    layer: Int[Array, " n"]
    position: Int[Array, " n"]
    feature: Int[Array, " n"]
    activation: Float[Array, " n"]


class Targets(NamedTuple):
    """Targets, with the location and value of each injected gradient.

    Attributes:
        layer: layer of the feature; ignored for a logit.
        position: position of the feature or logit.
        direction: direction that the target reads, at the transcoders' input or in the
            stream after the last block.
        logit: true if the target is a logit.
    """

    layer: Int[Array, " n"]
    position: Int[Array, " n"]
    direction: Float[Array, "n embed"]
    logit: Bool[Array, " n"]


class Rows(NamedTuple):
    """Effects of all sources on some targets."""

    features: Float[Array, "target n"]
    errors: Float[Array, "target layer seq"]
    tokens: Float[Array, "target seq"]


@eqx.filter_jit
def rows(
    replacement: Replacement,
    tokens: Int[Array, " seq"],
    found: Local,
    sources: Features,
    targets: Targets,
    batch: int,
) -> Rows:
    r"""Compute rows of the graph.

    Let $g$ be the gradient of the target at a write, with patterns, scales and errors
    constant. The effect of a feature is $z_f \, w_f^\top g$, that of an error
    $e^\top g$, and that of a token with embedding $x$ is $x^\top g$.

    Args:
        replacement: the model and its transcoders.
        tokens: the prompt.
        found: its run.
        sources: features in the columns.
        targets: targets to explain, with one backward pass each.
        batch: number of targets to run together.
    """
    mapped = linear_map(replacement, tokens)
    zeros = jnp.zeros_like(found.embed), jnp.zeros_like(found.reads)
    (reads, stream, _), pull = jax.vjp(mapped, *zeros)
    writers = replacement.coders.writers(sources.layer, sources.feature)
    own = writers.shape[1] == 1 and found.reads.shape[0] > 1

    def gradient(target: Targets) -> tuple[Array, Array]:
        at_read = jnp.zeros_like(reads)
        at_read = at_read.at[target.layer, target.position].set(target.direction)
        at_end = jnp.zeros_like(stream).at[target.position].set(target.direction)
        return pull(
            (
                jnp.where(target.logit, 0.0, at_read),
                jnp.where(target.logit, at_end, 0.0),
                (),
            )
        )

    def effects(g_write: Array) -> Array:
        if own:
            here = g_write[sources.layer, sources.position]
            return (here * writers[:, 0]).sum(-1) * sources.activation
        here = g_write[:, sources.position]
        return jnp.einsum("lne,nle->n", here, writers) * sources.activation

    def some(targets: Targets) -> Rows:
        g_embed, g_write = jax.vmap(gradient)(targets)
        return Rows(
            # One target at a time: gathered writes of a batch would not fit a cache.
            jax.lax.map(effects, g_write),
            jnp.einsum("tlse,lse->tls", g_write, found.errors),
            jnp.einsum("tse,se->ts", g_embed, found.embed),
        )

    batches = jax.tree.map(lambda a: a.reshape(-1, batch, *a.shape[1:]), targets)
    done = jax.lax.map(some, batches)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), done)
