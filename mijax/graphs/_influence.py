"""Influence of nodes on the outputs, pruning, and quality scores."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from mijax._errors import ConfigError, ShapeError

SMALL = 1e-10


def normalized(edges: Float[np.ndarray, "target source"]) -> np.ndarray:
    """Return the absolute effects as fractions of each target's incoming total."""
    size = np.abs(edges, dtype=np.float64)
    return size / np.maximum(size.sum(1, keepdims=True), SMALL)


def influence(
    edges: Float[np.ndarray, "node node"], weights: Float[np.ndarray, " node"]
) -> Float[np.ndarray, " node"]:
    r"""Return the influence of each node on weighted outputs along all paths.

    $w (A + A^2 + \ldots)$ with $A$ the normalized edges, target by source. The sum is
    finite, since a graph has no cycles.

    Args:
        edges: effects, `[target, source]`.
        weights: weights of the outputs, 0 elsewhere.

    Returns:
        Influence of each node, in units of the weights.

    Raises:
        ShapeError: edges with cycles.

    Examples:
        >>> edges = np.array([[0.0, 0, 0], [2, 0, 0], [1, 3, 0]])
        >>> influence(edges, np.array([0.0, 0, 1])).tolist()
        [1.0, 0.75, 0.0]
    """
    step = normalized(edges)
    total = current = np.asarray(weights, np.float64) @ step
    for _ in range(len(step)):
        if not current.any():
            return total
        current = current @ step
        total = total + current
    raise ShapeError(
        "The graph has cycles, so influence is not defined: give edges from earlier to "
        "later nodes only."
    )


def threshold(scores: np.ndarray, fraction: float) -> float:
    """Return the smallest of the top scores that make up a fraction of the sum."""
    ordered = np.sort(scores.ravel())[::-1]
    total = ordered.sum()
    if total == 0:
        return 0.0
    at = int(np.searchsorted(np.cumsum(ordered) / total, fraction))
    return float(ordered[min(at, len(ordered) - 1)])


class Kept(NamedTuple):
    """Masks of kept nodes and edges, and each node's cumulative influence."""

    nodes: Bool[np.ndarray, " node"]
    edges: Bool[np.ndarray, "node node"]
    cumulative: Float[np.ndarray, " node"]


def prune(
    edges: Float[np.ndarray, "node node"],
    weights: Float[np.ndarray, " node"],
    *,
    inner: int,
    features: int,
    nodes: float,
    kept_edges: float,
) -> Kept:
    """Keep the nodes and edges that carry most of the influence.

    Keep the fewest nodes that carry the fraction `nodes`, then the fewest edges among
    them that carry the fraction `kept_edges`. Then drop nodes without outgoing edges
    and features without incoming ones. Embeddings and outputs always stay.

    Args:
        edges: effects, `[target, source]`: features, errors, tokens, outputs.
        weights: weights of the outputs.
        inner: number of features and errors.
        features: number of features.
        nodes: fraction of the nodes' influence to keep.
        kept_edges: fraction of the edges' influence to keep.

    Raises:
        ConfigError: a fraction outside 0 to 1.
    """
    if not (0 < nodes <= 1 and 0 < kept_edges <= 1):
        raise ConfigError(
            f"Fractions to keep must be above 0 and at most 1, got {nodes} and "
            f"{kept_edges}."
        )
    total = influence(edges, weights)
    alive = total >= threshold(total, nodes)
    alive[inner:] = True
    cut = np.where(alive[:, None] & alive, edges, 0.0)
    score = normalized(cut) * (influence(cut, weights) + weights)[:, None]
    strong = score >= threshold(score, kept_edges)
    before = None
    while before is None or (before != alive).any():
        before = alive.copy()
        strong &= alive[:, None] & alive
        alive[:inner] &= strong[:, :inner].any(0)
        alive[:features] &= strong[:features].any(1)
    order = np.argsort(-total, kind="stable")
    cumulative = np.empty(len(total))
    cumulative[order] = np.cumsum(total[order]) / max(total.sum(), SMALL)
    return Kept(alive, strong & (edges != 0), cumulative)


class Quality(NamedTuple):
    """Fraction of the outputs that the features explain.

    Attributes:
        replacement: fraction of the influence that starts at tokens, not at errors.
        completeness: fraction of nodes' incoming effects that does not come from
            errors, weighted by the nodes' influence.
    """

    replacement: float
    completeness: float


def quality(
    edges: Float[np.ndarray, "node node"],
    weights: Float[np.ndarray, " node"],
    errors: slice,
    tokens: slice,
) -> Quality:
    """Return both quality scores of a graph."""
    total = influence(edges, weights)
    by_error, by_token = total[errors].sum(), total[tokens].sum()
    clean = 1 - normalized(edges)[:, errors].sum(1)
    out = total + weights
    return Quality(
        float(by_token / max(by_token + by_error, SMALL)),
        float((clean * out).sum() / max(out.sum(), SMALL)),
    )
