"""Attention in graphs: the heads that carry an edge, and the sources of a score."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import ConfigError, SiteError
from mijax.graphs._attribute import logit_directions, prepared
from mijax.graphs._graph import LOGIT, AttributionGraph
from mijax.graphs._replacement import Local, Replacement, linear_map, pushed
from mijax.graphs._sources import Node, nodes_of, written

# Number of sources to push through the model together.
BATCH = 8


class HeadLoadings(NamedTuple):
    """Contribution of each attention head to each edge.

    Attributes:
        sources: names of the sources, strongest first.
        edges: effect of each source on the target.
        heads: part of the edge through each head, `[source, layer, head]`. In each
            layer, `heads` and `bypass` sum to the edge.
        bypass: part of the edge that bypasses a layer's heads, `[source, layer]`.
    """

    sources: tuple[str, ...]
    edges: Float[np.ndarray, " source"]
    heads: Float[np.ndarray, "source layer head"]
    bypass: Float[np.ndarray, "source layer"]


def head_loadings(
    replacement: Replacement,
    prompt: Any,
    graph: AttributionGraph,
    target: str,
    *,
    k: int = 10,
    tokenizer: Any = None,
) -> HeadLoadings:
    r"""Split the edges into a target over the attention heads.

    With frozen patterns, an edge is linear in the output of every head:
    $A_{ts} = \sum_h \langle g_{a,h}, z_{a,h} \rangle + \text{bypass}$ in each layer
    $a$, with $g$ the gradient of the target at the head's output and $z$ the source's
    contribution to that output (Kamath et al. 2025, "Tracing Attention Computation
    Through Feature Interactions").

    Args:
        replacement: the model and its transcoders.
        prompt: the prompt of the graph.
        graph: a graph from `attribute`.
        target: name of a feature or logit in the graph.
        k: number of strongest sources to split.
        tokenizer: tokenizer for a text prompt.

    Returns:
        The loadings.

    Raises:
        SiteError: no such node, or one without sources.
    """
    at = graph.node(target)
    row = graph.edges[at]
    chosen = np.argsort(-np.abs(row), kind="stable")[:k]
    chosen = chosen[row[chosen] != 0]
    if not len(chosen):
        raise SiteError(f"No node in the graph has an effect on {target!r}.")
    ids, _, found, _ = prepared(replacement, prompt, tokenizer)
    node = jax.tree.map(lambda a: a[0], nodes_of(graph, np.array([at])))
    logit = graph.kind[at] == LOGIT
    if logit:
        direction = logit_directions(
            replacement.model, found.stream, jnp.asarray(graph.index[[at]])
        )[0]
    else:
        direction = replacement.coders.readers(node.layer[None], node.feature[None])[0]
    sources = nodes_of(graph, chosen)
    heads = np.asarray(
        _loadings(replacement, ids, found, sources, node, direction, bool(logit))
    )
    names = graph.names
    return HeadLoadings(
        tuple(names[i] for i in chosen),
        row[chosen],
        heads,
        row[chosen, None] - heads.sum(2),
    )


@eqx.filter_jit
def _loadings(
    replacement: Replacement,
    tokens: Array,
    found: Local,
    sources: Node,
    target: Node,
    direction: Array,
    logit: bool,
) -> Float[Array, "source layer head"]:
    mapped = linear_map(replacement, tokens, sites=("z",), shifts=("z",))
    z = replacement.model(tokens)[1].blocks.z
    zeros = (
        jnp.zeros_like(found.embed),
        jnp.zeros_like(found.errors),
        jnp.zeros_like(z),
    )
    outputs, pull = jax.vjp(mapped, *zeros)
    none = jax.tree.map(jnp.zeros_like, outputs)
    reads, stream, _ = none
    if logit:
        stream = stream.at[target.position].set(direction)
    else:
        reads = reads.at[target.layer, target.position].set(direction)
    gradient = pull((reads, stream, none[2]))[2]

    def one(node: Node) -> Array:
        shifts = (*written(replacement, found, node), zeros[2])
        (moved,) = jax.vjp(pull, none)[1](shifts)[0][2]
        return (gradient * moved).sum((1, 3))

    return jax.lax.map(one, sources, batch_size=BATCH)


class QK(NamedTuple):
    """Attention score for one head and one pair of tokens, split by pairs of sources.

    Attributes:
        sources: names of the sources; the last row and column, `"bias"`, is the rest.
        table: contribution of each pair to the score, `[query source, key source]`.
    """

    sources: tuple[str, ...]
    table: Float[np.ndarray, "query key"]

    def top(self, k: int = 10) -> list[tuple[str, str, float]]:
        """Return the largest pairs: query source, key source, contribution."""
        order = np.argsort(-np.abs(self.table).ravel(), kind="stable")[:k]
        pairs = zip(*np.unravel_index(order, self.table.shape), strict=True)
        return [
            (self.sources[q], self.sources[s], float(self.table[q, s]))
            for q, s in pairs
        ]


def qk_attribution(
    replacement: Replacement,
    prompt: Any,
    graph: AttributionGraph,
    *,
    layer: int,
    head: int,
    query: int,
    key: int,
    tokenizer: Any = None,
) -> QK:
    r"""Split an attention score over pairs of sources.

    The score is bilinear in the stream at the two tokens,
    $s = \frac{1}{\sqrt d} \sum_{i,j} q_i^\top k_j$, with $q_i$ and $k_j$ the
    contributions of sources $i$ and $j$ to the rotated query and key, for frozen norm
    scales and earlier patterns. Biases and nodes outside the graph form one more
    source.

    Args:
        replacement: the model and its transcoders.
        prompt: the prompt of the graph.
        graph: a graph whose features, errors and tokens are the sources. Prune it
            first, since each source is pushed through the model.
        layer: layer of the head.
        head: index of the query head.
        query: position of the query.
        key: position of the key, not after the query.
        tokenizer: tokenizer for a text prompt.

    Returns:
        The table; it sums to the score before any cap.

    Raises:
        ConfigError: the blocks' attention is not an `nn.Attention`.
        SiteError: a layer, head or position that does not exist.
    """
    attention = getattr(replacement.model.blocks, "attention", None)
    sites = ("q_rotated", "k_rotated")
    ids, _, found, count = prepared(replacement, prompt, tokenizer)
    if attention is None or not hasattr(attention, "rotary"):
        raise ConfigError("qk_attribution needs blocks with nn.Attention.")
    if attention.rotary is None:
        sites = ("q", "k")
    limits = (len(found.errors), attention.heads, count, query + 1)
    if any(
        not 0 <= i < n for i, n in zip((layer, head, query, key), limits, strict=True)
    ):
        raise SiteError(
            f"Expected layer, head, query and key below {limits}, got "
            f"{(layer, head, query, key)}."
        )
    chosen = np.flatnonzero(graph.kind != LOGIT)
    place = jnp.array([layer, head, query, key])
    q, k, whole = _sides(replacement, ids, found, nodes_of(graph, chosen), place, sites)
    scale = attention.scale
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    sides = []
    for added, total in ((q, whole[0]), (k, whole[1])):
        parts = np.asarray(added, np.float64)
        rest = np.asarray(total, np.float64) - parts.sum(0)
        sides.append(np.concatenate([parts, rest[None]]))
    names = graph.names
    return QK(
        (*(names[i] for i in chosen), "bias"),
        (scale * sides[0] @ sides[1].T).astype(np.float32),
    )


@eqx.filter_jit
def _sides(
    replacement: Replacement,
    tokens: Array,
    found: Local,
    sources: Node,
    place: Int[Array, " 4"],
    sites: tuple[str, str],
) -> tuple[Array, Array, tuple[Array, Array]]:
    """Return each source's contribution to a query and a key, and their values."""
    layer, head, query, key = place
    mapped = linear_map(replacement, tokens, sites=sites)
    zeros = jnp.zeros_like(found.embed), jnp.zeros_like(found.errors)
    pick = lambda q, k: (q[layer, query, head], k[layer, key, head])  # noqa: E731
    acts = replacement.model(tokens)[1].blocks
    whole = pick(*(getattr(acts, name) for name in sites))

    def one(node: Node) -> tuple[Array, Array]:
        moved = pushed(mapped, zeros, written(replacement, found, node))
        return pick(*moved[2])

    return (*jax.lax.map(one, sources, batch_size=BATCH), whole)
