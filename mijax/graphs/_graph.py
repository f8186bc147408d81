"""The attribution graph for a prompt: nodes, edges and scores."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from mijax._errors import ShapeError, SiteError
from mijax.graphs._influence import Quality, influence, prune, quality

FEATURE, ERROR, TOKEN, LOGIT = range(4)
KINDS = ("feature", "error", "token", "logit")


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class AttributionGraph:
    """Direct effects between features, errors, tokens and logits on one prompt.

    Nodes are in the order features (by layer, position, index), errors (by layer,
    position), tokens, logits. All arrays are on the host.

    Attributes:
        tokens: ids of the prompt.
        words: text of each token, or its id as text.
        layers: number of layers in the model.
        kind: kind of each node: `0` feature, `1` error, `2` token, `3` logit.
        layer: layer of each node; -1 for tokens, `layers` for logits.
        position: token position of each node.
        index: feature index, or token id for tokens and logits; -1 for errors.
        activation: activation of each feature; 0 for other nodes.
        probability: probability of each logit; 0 for other nodes.
        labels: text of each logit by token id.
        edges: direct effects, `[target, source]`: the contribution of the source to
            the target's pre-activation or centered logit.
        cumulative: fraction of the influence carried by this node and those ranked
            above it; 0 before `prune`.

    Examples:
        >>> edges = np.zeros((4, 4))
        >>> edges[0, 2], edges[3, :3] = 1, [2, 1, 1]
        >>> kinds = ["feature", "error", "token", "logit"]
        >>> graph = AttributionGraph.by_hand(edges, kinds)
        >>> graph
        AttributionGraph(1 feature, 1 error, 1 token, 1 logit; 4 edges)
        >>> graph.influence().tolist()
        [0.5, 0.25, 0.75, 0.0]
        >>> graph.quality()
        Quality(replacement=0.75, completeness=0.9)
    """

    tokens: Int[np.ndarray, " seq"]
    words: tuple[str, ...]
    layers: int
    kind: Int[np.ndarray, " node"]
    layer: Int[np.ndarray, " node"]
    position: Int[np.ndarray, " node"]
    index: Int[np.ndarray, " node"]
    activation: Float[np.ndarray, " node"]
    probability: Float[np.ndarray, " node"]
    edges: Float[np.ndarray, "node node"]
    labels: tuple[tuple[int, str], ...] = ()
    cumulative: Float[np.ndarray, " node"] | None = None

    PER_NODE: ClassVar[tuple[str, ...]] = (
        *("kind", "layer", "position", "index", "activation", "probability"),
    )

    def __post_init__(self) -> None:
        size = len(self.kind)
        wrong = [name for name in self.PER_NODE if len(getattr(self, name)) != size]
        if wrong or self.edges.shape != (size, size):
            raise ShapeError(
                f"A graph with {size} nodes needs edges [{size}, {size}] and one entry "
                f"per node, got edges {list(self.edges.shape)}"
                f"{' and other lengths of ' + ', '.join(wrong) if wrong else ''}."
            )
        if (np.diff(self.kind) < 0).any():
            raise ShapeError(
                "Expected nodes in the order features, errors, tokens, logits: sort "
                "them."
            )

    @classmethod
    def by_hand(
        cls,
        edges: Float[np.ndarray, "node node"],
        kinds: Sequence[str],
        *,
        layers: Sequence[int] | None = None,
        probabilities: Sequence[float] | None = None,
    ) -> "AttributionGraph":
        """Create a small graph at one position from its edges, for experiments.

        Args:
            edges: effects, `[target, source]`.
            kinds: kind of each node, `"feature"`, `"error"`, `"token"` or `"logit"`,
                in this order.
            layers: layer of each node; 0 by default.
            probabilities: probability of each logit; equal by default.

        Returns:
            The graph.
        """
        kind = np.array([KINDS.index(one) for one in kinds])
        logits = kind == LOGIT
        chances = np.zeros(len(kind))
        chances[logits] = (
            1 / max(logits.sum(), 1) if probabilities is None else probabilities
        )
        zeros = np.zeros(len(kind), int)
        return cls(
            tokens=np.zeros(1, int),
            words=("0",),
            layers=1,
            kind=kind,
            layer=zeros if layers is None else np.asarray(layers),
            position=zeros,
            index=np.arange(len(kind)),
            activation=np.where(kind == FEATURE, 1.0, 0.0),
            probability=chances,
            edges=np.asarray(edges, np.float32),
        )

    def __repr__(self) -> str:
        parts = []
        for number, name in enumerate(KINDS):
            count = int((self.kind == number).sum())
            parts.append(f"{count} {name}{'' if count == 1 else 's'}")
        return f"AttributionGraph({', '.join(parts)}; {(self.edges != 0).sum()} edges)"

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each node: `f3.17@5` is feature 17 in layer 3 at position 5."""
        found = []
        for kind, layer, position, index in zip(
            *(self.kind, self.layer, self.position, self.index), strict=True
        ):
            found.append(
                (
                    f"f{layer}.{index}@{position}",
                    f"error{layer}@{position}",
                    f"token@{position}",
                    f"logit{index}",
                )[kind]
            )
        return tuple(found)

    def where(self, kind: str) -> Bool[np.ndarray, " node"]:
        """Return a mask of the nodes of one kind.

        Args:
            kind: `"feature"`, `"error"`, `"token"` or `"logit"`.

        Raises:
            SiteError: an unknown kind.
        """
        if kind not in KINDS:
            raise SiteError(f"Expected one of {', '.join(KINDS)}, got {kind!r}.")
        return self.kind == KINDS.index(kind)

    def node(self, name: str) -> int:
        """Return the index of a node by its name.

        Raises:
            SiteError: no such node.
        """
        if name not in self.names:
            raise SiteError(
                f"The graph has no node {name!r}: names are f3.17@5, error3@5, "
                "token@5, logit812."
            )
        return self.names.index(name)

    def sources(self, name: str, k: int = 10) -> list[tuple[str, float]]:
        """Return the strongest direct sources of a node, with their effects."""
        row = self.edges[self.node(name)]
        best = np.argsort(-np.abs(row), kind="stable")[:k]
        return [(self.names[i], float(row[i])) for i in best if row[i]]

    def influence(self) -> Float[np.ndarray, " node"]:
        """Return the influence of each node on the logits along all paths."""
        return influence(self.edges, self.probability)

    def quality(self) -> Quality:
        """Return the replacement and completeness scores; use the unpruned graph."""
        ends = np.searchsorted(self.kind, [ERROR, TOKEN, LOGIT])
        errors, tokens = slice(ends[0], ends[1]), slice(ends[1], ends[2])
        return quality(self.edges, self.probability, errors, tokens)

    def prune(self, nodes: float = 0.8, edges: float = 0.98) -> "AttributionGraph":
        """Return the part of the graph that carries most of the influence.

        Same procedure as circuit-tracer: keep the nodes that carry a fraction `nodes`
        of the influence, then the edges among them that carry a fraction `edges`, and
        drop nodes that lead nowhere. Tokens and logits always stay.

        Args:
            nodes: fraction of the nodes' influence to keep.
            edges: fraction of the edges' influence to keep.

        Returns:
            The smaller graph, with `cumulative`.

        Raises:
            ConfigError: a fraction outside 0 to 1.
        """
        ends = np.searchsorted(self.kind, [ERROR, TOKEN])
        kept = prune(
            self.edges,
            self.probability,
            inner=int(ends[1]),
            features=int(ends[0]),
            nodes=nodes,
            kept_edges=edges,
        )
        strong = np.where(kept.edges, self.edges, 0.0).astype(np.float32)
        whole = dataclasses.replace(self, edges=strong, cumulative=kept.cumulative)
        return whole.subgraph(kept.nodes)

    def subgraph(self, nodes: Bool[np.ndarray, " node"]) -> "AttributionGraph":
        """Return the graph of some nodes and the edges among them.

        Args:
            nodes: true for nodes to keep.
        """
        nodes = np.asarray(nodes)
        if nodes.dtype != bool or nodes.shape != self.kind.shape:
            raise ShapeError(
                f"Expected a boolean for each of {len(self.kind)} nodes, got "
                f"{nodes.dtype}{list(nodes.shape)}."
            )
        parts = {name: getattr(self, name)[nodes] for name in self.PER_NODE}
        cumulative = None if self.cumulative is None else self.cumulative[nodes]
        edges = self.edges[np.ix_(nodes, nodes)]
        return dataclasses.replace(self, edges=edges, cumulative=cumulative, **parts)

    def label(self, node: int) -> str:
        """Return a readable label for a node: its token text or its name."""
        if self.kind[node] == TOKEN:
            return self.words[self.position[node]]
        if self.kind[node] == LOGIT:
            return dict(self.labels).get(int(self.index[node]), self.names[node])
        return self.names[node]
