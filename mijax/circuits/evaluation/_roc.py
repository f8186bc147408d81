"""How well scores, or circuits, find a circuit that is known."""

import math
from collections.abc import Sequence
from typing import Literal

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float

from mijax._errors import ConfigError
from mijax.circuits._circuit import Circuit, owners, same_graph, touched
from mijax.circuits._scores import Scores
from mijax.circuits._select import greedy, ranking
from mijax.circuits.evaluation._areas import MIB_FRACTIONS, area
from mijax.core.internal import checked

Part = Literal["edge", "node", "head"]
PARTS = ("edge", "node", "head")


class Roc(eqx.Module):
    """Points of a receiver operating characteristic, from (0, 0) to (1, 1).

    Attributes:
        fpr: share of what is not in the true circuit that was taken, not decreasing.
        tpr: share of the true circuit that was taken.
    """

    fpr: Float[np.ndarray, " point"]
    tpr: Float[np.ndarray, " point"]

    @property
    def auroc(self) -> float:
        """The area under straight lines between the points."""
        return float(area(self.fpr, self.tpr))

    @property
    def pessimistic(self) -> float:
        """The area under the staircase below the points."""
        return pessimistic_auc(self.fpr, self.tpr)


@checked
def roc(
    found: Scores | Sequence[Circuit],
    truth: Circuit,
    *,
    level: Part = "edge",
    absolute: bool = False,
) -> Roc:
    """Compares a ranking, or circuits of several sizes, with a known circuit.

    Heads and MLPs are compared as wholes whatever was scored: at level `"node"` and
    `"head"` query, key and value of a head are one, a node scores as much as the best
    edge that enters or leaves it, and is in a circuit if an edge of it touches it.

    Args:
        found: scores of edges (or of nodes, at the coarse levels), which give a point
            for each threshold; or circuits, which give one each.
        truth: the known circuit.
        level: `"edge"`, `"node"` (input, heads, MLPs) or `"head"`.
        absolute: rank by size, whatever the sign.

    Returns:
        The points, with (0, 0) and (1, 1) added.

    Raises:
        ConfigError: an unknown level, scores that are too coarse or too fine for it,
            or a true circuit with everything or nothing in it.

    Examples:
        >>> from mijax.circuits import Graph
        >>> graph = Graph.decoder(1, heads=1)
        >>> truth = Circuit.of(graph, ["logits <- m0", "m0 <- input"])
        >>> whole = Circuit.full(graph)
        >>> roc([truth.without("m0"), truth, whole], truth).auroc
        1.0
    """
    true = parts(truth, level)
    if true.all() or not true.any():
        raise ConfigError(
            f"The true circuit has {int(true.sum())} of {len(true)} {level}s: a ROC "
            "needs some that are in it and some that are not."
        )
    if isinstance(found, Scores):
        check_graph(found, truth)
        x, y = swept(keys(found, level, absolute), true)
    else:
        for circuit in found:
            same_graph(circuit, truth)
        taken = np.array([parts(circuit, level) for circuit in found])
        taken = taken.reshape(-1, len(true))
        x, y = taken[:, ~true].mean(1), taken[:, true].mean(1)
    x, y = np.concatenate([[0.0], x, [1.0]]), np.concatenate([[0.0], y, [1.0]])
    order = np.lexsort((y, x))
    return Roc(x[order], y[order])


def pessimistic_auc(
    fpr: Sequence[float | int] | np.ndarray, tpr: Sequence[float | int] | np.ndarray
) -> float:
    r"""Area under the staircase of points, $\sum_i (1 - x_i)(y_i - y_{i-1})$.

    Between two points only the worse true positive rate is granted, as Conmy et al.
    2023 (arXiv:2304.14997) do: a method that gives few points is not helped by lines
    between them. A point that is worse than one to its left counts like it.

    Args:
        fpr: false positive rates, in any order.
        tpr: true positive rates.

    Returns:
        The area.

    Raises:
        ConfigError: not as many of one as of the other.

    Examples:
        >>> round(pessimistic_auc([0, 0, 0, 1], [0, 0.133, 0.2, 1]), 3)
        0.2
    """
    x, y = np.asarray(fpr, np.float64), np.asarray(tpr, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ConfigError(
            f"Points have as many false as true positive rates, got shapes {x.shape} "
            f"and {y.shape}."
        )
    order = np.lexsort((y, x))
    x, y = x[order], np.maximum.accumulate(y[order])
    return float(((1 - x[1:]) * np.diff(y)).sum())


@checked
def interpbench_auroc(scores: Scores, truth: Circuit) -> float:
    """The area that the Mechanistic Interpretability Benchmark quotes on InterpBench.

    Rates of greedy circuits of the ranking by size, pruned, at the benchmark's ten
    fractions of edges rounded up; trapezoids over the false positive rate divided by
    its last value, without the corner (0, 0). With few points it is a coarse area and
    not the one of `roc`.

    Args:
        scores: of edges.
        truth: the known circuit.

    Returns:
        The area.

    Raises:
        ConfigError: scores that are not of edges, or a true circuit with everything
            or nothing in it.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mijax.circuits import Graph
        >>> graph = Graph.decoder(9, heads=2)
        >>> truth = Circuit.of(graph, ["logits <- m0", "m0 <- input"])
        >>> values = jnp.asarray(truth.edges, jnp.float32)
        >>> scores = Scores(values, None, None, graph, "edge", "by hand")
        >>> interpbench_auroc(scores, truth)
        1.0
    """
    check_graph(scores, truth)
    sizes = [math.ceil(fraction * truth.graph.n_edges) for fraction in MIB_FRACTIONS]
    found = [greedy(scores, size, absolute=True) for size in sizes]
    points = roc(found, truth)
    x, y = points.fpr[1:-1], points.tpr[1:-1]
    return float(area(x / x[-1], y))


def parts(circuit: Circuit, level: Part) -> Bool[np.ndarray, " part"]:
    """Returns which of the graph's edges, nodes or heads are in a circuit."""
    graph = circuit.graph
    if level == "edge":
        return circuit.edges[graph.edges]
    return touched(circuit)[counted(circuit.graph.senders, level)]


def keys(scores: Scores, level: Part, absolute: bool) -> Float[np.ndarray, " part"]:
    """Returns what each edge, node or head is ranked by."""
    key, graph = ranking(scores, absolute), scores.graph
    if scores.level == "neuron" or (scores.level == "node" and level == "edge"):
        raise ConfigError(
            f"Scores of {scores.level}s do not rank {level}s: discover at level "
            f"{'edge' if level == 'edge' else 'node'!r}."
        )
    if level == "edge":
        return key[graph.edges]
    if scores.level == "edge":
        best = key.max(1)
        owner = owners(graph)[:-1]
        np.maximum.at(best, owner, key.max(0)[:-1])
        key = best
    return key[counted(graph.senders, level)]


def swept(
    key: Float[np.ndarray, " part"], true: Bool[np.ndarray, " part"]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns both rates at every threshold; parts of equal score go together."""
    order = np.argsort(-key, kind="stable")
    last = np.append(np.diff(key[order]) != 0, True)
    hits, misses = np.cumsum(true[order])[last], np.cumsum(~true[order])[last]
    return misses / (~true).sum(), hits / true.sum()


def counted(senders: Sequence[str], level: Part) -> Bool[np.ndarray, " sender"]:
    """Returns which senders are counted at a level."""
    return np.array([level == "node" or ".h" in name for name in senders])


def check_graph(scores: Scores, truth: Circuit) -> None:
    """Refuses scores and truth of different graphs."""
    same_graph(Circuit.empty(scores.graph), truth)
