"""Which edges of a circuit a picture shows."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool

from mijax._errors import ShapeError, SiteError
from mijax.circuits import Circuit, Scores
from mijax.circuits.internal import EDGE

# The level of the logits, above every layer.
LOGITS = 10**6

Mask = Bool[Array | np.ndarray, "sender receiver"]

_NODE = re.compile(
    r"a(?P<layer>\d+)\.h(?P<head>\d+)(<(?P<port>[qkv])>)?|m(?P<mlp>\d+)|[a-z_]+"
)
_DEFAULT = 60


class Spot(NamedTuple):
    """Where a node stands: below its layer's like, by its kind, by its number."""

    level: int
    kind: str
    number: int


@dataclass(frozen=True)
class Edge:
    """An edge to draw.

    Attributes:
        name: as in `a9.h6<q> <- a7.h3`.
        sender: name of the node that it leaves.
        node: name of the node that it enters.
        port: `"q"`, `"k"` or `"v"` of that node, or `""`.
        score: how much the metric falls without it.
        error: standard error of the score.
    """

    name: str
    sender: str
    node: str
    port: str
    score: float
    error: float | None

    @property
    def start(self) -> Spot:
        """Where the sender stands."""
        return spot(self.sender)

    @property
    def end(self) -> Spot:
        """Where the receiver stands."""
        return spot(self.node)


def select(
    scores: Scores | Mapping[str, float],
    *,
    edges: Circuit | Mask | None,
    top: int | None,
) -> list[Edge]:
    """The edges to draw, the largest first.

    Args:
        scores: scores of edges, or scores by name of edge.
        edges: which edges may be drawn; those with another score than 0 without it.
        top: how many are drawn; without it all of `edges`, or 60.

    Returns:
        The edges.

    Raises:
        ShapeError: the scores are not of edges, the mask does not fit them, or nothing
            is left.
        SiteError: a name is not that of an edge.
    """
    if top is not None and top < 1:
        raise ShapeError(f"top={top}; expected at least one edge.")
    if isinstance(edges, Circuit):
        edges = edges.edges
    if edges is None:
        top = top or _DEFAULT
    if isinstance(scores, Scores):
        found = _of_scores(scores, edges, top)
    elif edges is not None:
        raise ShapeError(
            "A mask goes with Scores; give a mapping of the edges to draw alone."
        )
    else:
        found = [_edge(name, float(score), None) for name, score in scores.items()]
        found = [edge for edge in found if edge.score and np.isfinite(edge.score)]
    if not found:
        raise ShapeError(
            "There is no edge to draw: the mask is empty, or every score is 0."
        )
    found.sort(key=lambda e: -abs(e.score) if np.isfinite(e.score) else 0.0)
    return found[:top]


def spot(name: str) -> Spot:
    """Where a node stands, by its name."""
    match = _NODE.fullmatch(name)
    if match is None:
        raise SiteError(
            f"{name!r} is no node; expected a name like 'input', 'a9.h6', 'm11' or "
            "'logits'."
        )
    if name == "logits":
        return Spot(LOGITS, "logits", 0)
    if match["head"]:
        return Spot(int(match["layer"]), "head", int(match["head"]))
    return Spot(int(match["mlp"]), "mlp", 0) if match["mlp"] else Spot(-1, "input", 0)


def largest(edges: Sequence[Edge]) -> float:
    """The size of the largest score, or 1 if none is above 0."""
    sizes = [abs(edge.score) for edge in edges if np.isfinite(edge.score)]
    return max(sizes, default=0.0) or 1.0


def shares(edges: Sequence[Edge]) -> list[float]:
    """The size of each score relative to the largest, 0 if it is not finite."""
    reach = largest(edges)
    return [abs(e.score) / reach if np.isfinite(e.score) else 0.0 for e in edges]


def points(share: float, count: int) -> float:
    """Width of an edge in points: 4 for the largest, less if there are many."""
    return 0.4 + 3.6 * share * float(np.clip(np.sqrt(80 / count), 0.5, 1.0))


def strength(share: float, count: int) -> float:
    """Opacity of an edge; if there are many, the small ones fade more."""
    return 0.25 + 0.7 * share ** (0.5 if count <= 80 else 1.0)


def _of_scores(scores: Scores, edges: Mask | None, top: int | None) -> list[Edge]:
    if scores.level != "edge":
        raise ShapeError(
            f"Scores of level {scores.level!r}; expected scores of edges: discover "
            "with a method that scores edges."
        )
    values, graph = np.asarray(scores.values), scores.graph
    error = None if scores.error is None else np.asarray(scores.error)
    size = np.where(np.isfinite(values), np.abs(values), 0.0)
    mask = size > 0 if edges is None else np.asarray(edges)
    if mask.shape != values.shape:
        raise ShapeError(
            f"A mask of shape {mask.shape} for scores of shape {values.shape}; give "
            "one value for each sender and receiver."
        )
    places = np.argwhere(mask & graph.edges)
    # A model has more edges than are drawn by far: names are made for these alone.
    order = np.argsort(-size[tuple(places.T)], kind="stable")[:top]
    return [
        _edge(
            graph.name(int(s), int(r)),
            float(values[s, r]),
            None if error is None else float(error[s, r]),
        )
        for s, r in places[order]
    ]


def _edge(name: str, score: float, error: float | None) -> Edge:
    match = EDGE.fullmatch(name)
    if match is None:
        raise SiteError(
            f"{name!r} is not an edge: write 'receiver <- sender', for instance "
            "'a9.h9<k> <- a5.h5'."
        )
    receiver, sender = match[1], match[2]
    start, end = spot(sender), spot(receiver)
    port = receiver.partition("<")[2].rstrip(">")
    whole = "<" in sender or (end.kind == "head" and not port) or end.kind == "input"
    beside = start.kind == "head" and end.kind == "mlp" and start.level == end.level
    if whole or not (start.level < end.level or beside):
        raise SiteError(
            f"{name!r} is not an edge: the sender comes before the receiver, and a "
            "head is read as 'a9.h9<q>', <k> or <v>."
        )
    return Edge(name, sender, receiver.partition("<")[0], port, score, error)
