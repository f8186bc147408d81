"""How Conmy et al. 2023 count edges and nodes, and the area under their curves.

Every query, key and value has an edge of its own, from what it reads to what it is, and
both ends of it are nodes. So have the heads and the MLPs (of which the inputs do not
count), the embeddings and the logits.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mijax.circuits import Graph, pessimistic_auc

# The circuits that count as true, in `acdc/tracr_task/utils.py` of the published code:
# what ACDC found there with zero ablation and a threshold near 0.
EDGES: Mapping[str, str] = {
    "reverse": """
        logits <- a3.h0
        a3.h0<q> <- m2
        a3.h0<k> <- position
        a3.h0<v> <- token
        m2 <- m1
        m1 <- m0
        m1 <- token
        m1 <- position
        m0 <- a0.h0
        m0 <- token
        a0.h0<v> <- token
    """,
    "xproportion": """
        logits <- a1.h0
        a1.h0<q> <- token
        a1.h0<q> <- position
        a1.h0<k> <- token
        a1.h0<k> <- position
        a1.h0<v> <- m0
        m0 <- token
    """,
}


class Found(NamedTuple):
    """A circuit: edges between senders and receivers, and receivers kept as a whole."""

    edges: frozenset[str]
    whole: frozenset[str]

    @property
    def nodes(self) -> frozenset[str]:
        """What any edge touches."""
        pairs = [edge.split(" <- ") for edge in self.edges]
        inputs = {f"{name} input" if "<" in name else name for name, _ in pairs}
        own = {end for name in self.whole for end in (name, f"{name} input")}
        return frozenset(inputs | own | {sender for _, sender in pairs})

    def __len__(self) -> int:
        return len(self.edges) + len(self.whole)


class Point(NamedTuple):
    """Shares of false and of true edges and nodes that a circuit has."""

    edges: tuple[float, float]
    nodes: tuple[float, float]


def found(graph: Graph, edges: np.ndarray, whole: np.ndarray) -> Found:
    """Names a circuit given by masks."""
    names = frozenset(graph.name(*map(int, pair)) for pair in np.argwhere(edges))
    kept = zip(graph.receivers, whole, strict=True)
    return Found(names, frozenset(r for r, keep in kept if keep and "<" in r))


def full(graph: Graph) -> Found:
    """Returns the circuit of all edges."""
    return found(graph, graph.edges, np.ones(len(graph.receivers), bool))


def truth(program: str) -> Found:
    """Returns the circuit that counts as true: heads in it read what they are."""
    edges = frozenset(line.strip() for line in EDGES[program].split("\n"))
    edges -= {""}
    receivers = (edge.split(" <- ")[0] for edge in edges)
    return Found(edges, frozenset(name for name in receivers if "<" in name))


def without(graph: Graph, parts: Iterable[str]) -> Found:
    """Returns all edges but those of some queries, keys, values and MLPs.

    A head is gone with the last of its three parts.
    """
    gone = set(parts)

    def lives(sender: str) -> bool:
        if sender.startswith("a"):
            return any(f"{sender}<{letter}>" not in gone for letter in "qkv")
        return sender not in gone

    senders = np.array([lives(name) for name in graph.senders])
    whole = np.array([name not in gone for name in graph.receivers])
    return found(graph, graph.edges & senders[:, None] & whole, whole)


def point(circuit: Found, true: Found, every: Found) -> Point:
    """Compares a circuit with the true one."""

    def rates(ours: frozenset[str], real: frozenset[str], most: frozenset[str]):
        return len(ours - real) / len(most - real), len(ours & real) / len(real)

    edges, real, most = (
        one.edges | {f"{name} <- itself" for name in one.whole}
        for one in (circuit, true, every)
    )
    return Point(
        rates(edges, real, most), rates(circuit.nodes, true.nodes, every.nodes)
    )


def area(points: Sequence[tuple[float, float]]) -> float:
    """Returns the area under the staircase from (0, 0) to (1, 1) through points."""
    x, y = np.array(sorted({(0.0, 0.0), (1.0, 1.0), *points})).T
    return pessimistic_auc(x, y)


def height(points: Sequence[tuple[float, float]], at: np.ndarray) -> np.ndarray:
    """Returns the staircase at some shares of false ones."""
    x, y = np.array([(0.0, 0.0), (1.0, 1.0), *points]).T
    # As high as the highest point that is not to the right.
    return np.where(x <= at[:, None] + 1e-9, y, 0).max(1)
