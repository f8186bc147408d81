"""Sources: the output of a graph node as a shift of the run."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax.graphs._graph import ERROR, FEATURE, TOKEN, AttributionGraph
from mijax.graphs._replacement import Local, Replacement


class Node(NamedTuple):
    """Nodes of a graph as arrays; a single node inside `vmap`."""

    kind: Int[Array, "*n"]
    layer: Int[Array, "*n"]
    position: Int[Array, "*n"]
    feature: Int[Array, "*n"]
    activation: Float[Array, "*n"]


def nodes_of(graph: AttributionGraph, which: np.ndarray) -> Node:
    """Return some nodes of a graph as arrays."""
    part = lambda a: jnp.asarray(a[which], jnp.int32)  # noqa: E731
    return Node(
        part(graph.kind),
        part(np.maximum(graph.layer, 0)),
        part(graph.position),
        part(np.maximum(graph.index, 0)),
        jnp.asarray(graph.activation[which], jnp.float32),
    )


def written(
    replacement: Replacement, found: Local, node: Node
) -> tuple[Float[Array, "seq embed"], Float[Array, "layer seq embed"]]:
    """Return one node's contribution to the embeddings and to the MLP outputs."""
    embed, writes = jnp.zeros_like(found.embed), jnp.zeros_like(found.errors)
    at = node.layer, node.position
    rows = replacement.coders.writers(node.layer[None], node.feature[None])[0]
    rows = rows * node.activation
    if len(rows) == len(writes) and len(rows) > 1:
        of_feature = writes.at[:, node.position].set(rows)
    else:
        of_feature = writes.at[at].set(rows[0])
    of_error = writes.at[at].set(found.errors[at])
    token = embed.at[node.position].set(found.embed[node.position])
    return (
        jnp.where(node.kind == TOKEN, token, 0.0),
        jnp.where(
            node.kind == FEATURE,
            of_feature,
            jnp.where(node.kind == ERROR, of_error, 0.0),
        ),
    )
