"""A circuit: which edges, and which neurons of their senders, are kept."""

from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from mijax._errors import ShapeError, SiteError, nearest
from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._stream import Gate


class Circuit(eqx.Module):
    """A set of edges of a graph: a mask over the model.

    A value: `&`, `|` and `-` are those of sets of edges and give a new circuit. Two
    circuits are equal if they have the same edges of the same graph, and the same
    neurons of the senders of these edges.

    Args:
        graph: senders and receivers.
        edges: which edges are in, `[sender, receiver]`.
        neurons: which components of what a sender writes are in, `[sender, embed]`;
            `None` is all of them.

    Raises:
        ShapeError: a mask of another shape than the graph's.
        SiteError: an edge that the graph does not have.

    Examples:
        >>> graph = Graph.decoder(2, heads=2)
        >>> one = Circuit.of(graph, ["logits <- a1.h0", "a1.h0<k> <- input"])
        >>> one
        Circuit(2 of 46 edges)
        >>> one.nodes()
        ('input', 'a1.h0', 'logits')
        >>> (Circuit.full(graph) - one).n_edges
        44
    """

    edges: Bool[np.ndarray, "sender receiver"]
    neurons: Bool[np.ndarray, "sender embed"] | None
    graph: Graph = eqx.field(static=True)

    def __init__(self, graph: Graph, edges: Any, neurons: Any = None):
        self.graph = graph
        self.edges = frozen(edges)
        self.neurons = None if neurons is None else frozen(neurons)
        if self.edges.shape != graph.edges.shape:
            raise ShapeError(
                f"A mask over edges is [sender, receiver], {graph.edges.shape} in this "
                f"graph; got shape {self.edges.shape}."
            )
        if self.neurons is not None and (
            self.neurons.ndim != 2 or len(self.neurons) != len(graph.senders)
        ):
            raise ShapeError(
                f"A mask over neurons is [sender, embed] with {len(graph.senders)} "
                f"senders; got shape {self.neurons.shape}."
            )
        extra = np.argwhere(self.edges & ~graph.edges)
        if len(extra):
            name = graph.name(*map(int, extra[0]))
            raise SiteError(
                f"{name!r} is not an edge of the graph: its sender does not come "
                "before its receiver. Mask with graph.edges."
            )

    @classmethod
    def of(cls, graph: Graph, names: Iterable[str | tuple[str, str]]) -> "Circuit":
        """Makes a circuit of edges given by name.

        Args:
            graph: senders and receivers.
            names: edges, for instance `"a9.h9<k> <- a5.h5"`, or pairs of a sender and
                a receiver.

        Returns:
            The circuit.

        Raises:
            SiteError: there is no such edge.
        """
        edges = np.zeros(graph.edges.shape, bool)
        for name in names:
            edges[graph.edge(name)] = True
        return cls(graph, edges)

    @classmethod
    def from_nodes(cls, graph: Graph, names: Iterable[str]) -> "Circuit":
        """Makes the circuit of all edges among some nodes, the input and the logits.

        The reverse is `nodes`. The circuit of a published list of heads is that of the
        heads and of all MLPs, if its paper keeps these.

        Args:
            graph: senders and receivers.
            names: nodes, for instance `["a9.h6", "m3"]`.

        Returns:
            The circuit.

        Raises:
            SiteError: there is no such node.

        Examples:
            >>> graph = Graph.decoder(2, heads=2)
            >>> circuit = Circuit.from_nodes(graph, ["a0.h1", "m1"])
            >>> circuit.nodes(), circuit.n_edges  # a0.h1 reads the input three times
            (('input', 'a0.h1', 'm1', 'logits'), 8)
        """
        inside = np.zeros(len(graph.senders), bool)
        inside[: len(graph.inputs)] = True
        inside[[graph.sender(name) for name in names if name != "logits"]] = True
        return cls(graph, among(graph, inside))

    @classmethod
    def full(cls, graph: Graph) -> "Circuit":
        """Returns the whole model."""
        return cls(graph, graph.edges)

    @classmethod
    def empty(cls, graph: Graph) -> "Circuit":
        """Returns the circuit without edges."""
        return cls(graph, np.zeros(graph.edges.shape, bool))

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return int(self.edges.sum())

    def names(self) -> tuple[str, ...]:
        """Returns the names of the edges, sender by sender."""
        return tuple(
            self.graph.name(int(s), int(r)) for s, r in np.argwhere(self.edges)
        )

    def nodes(self) -> tuple[str, ...]:
        """Returns the nodes that an edge touches, in order of computation."""
        inside = touched(self)
        names = [
            name for name, here in zip(self.graph.senders, inside, strict=True) if here
        ]
        return (*names, "logits") if self.edges[:, -1].any() else tuple(names)

    def without(self, *names: str) -> "Circuit":
        """Removes nodes, with every edge from and to them, and edges.

        Args:
            names: nodes like `"a5.h5"` and edges like `"a9.h9<k> <- a5.h5"`; those
                that the circuit does not have change nothing.

        Returns:
            The rest.

        Raises:
            SiteError: the graph has no such node or edge.
        """
        edges, owner = self.edges.copy(), owners(self.graph)
        for name in names:
            if "<-" in name:
                edges[self.graph.edge(name)] = False
                continue
            if name not in self.graph.senders:
                close = nearest(name, self.graph.senders)
                raise SiteError(f"There is no node {name!r} to remove.{close}")
            index = self.graph.sender(name)
            edges[index] = False
            edges[:, owner == index] = False
        return Circuit(self.graph, edges, self.neurons)

    def gate(self) -> Gate:
        """Returns what `connected` takes."""
        neurons = None if self.neurons is None else jnp.asarray(self.neurons)
        return Gate(jnp.asarray(self.edges), neurons)

    def __len__(self) -> int:
        return self.n_edges

    def __contains__(self, edge: str) -> bool:
        return bool(self.edges[self.graph.edge(edge)])

    def __and__(self, other: "Circuit") -> "Circuit":
        same_graph(self, other)
        ours, theirs = carried(self, other), carried(other, self)
        both = None if ours is None or theirs is None else ours & theirs
        return Circuit(self.graph, self.edges & other.edges, both)

    def __or__(self, other: "Circuit") -> "Circuit":
        same_graph(self, other)
        ours, theirs = carried(self, other), carried(other, self)
        both = None if ours is None or theirs is None else ours | theirs
        return Circuit(self.graph, self.edges | other.edges, both)

    def __sub__(self, other: "Circuit") -> "Circuit":
        same_graph(self, other)
        return Circuit(self.graph, self.edges & ~other.edges, self.neurons)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Circuit) or self.graph != other.graph:
            return False
        if not np.array_equal(self.edges, other.edges):
            return False
        ours, theirs = carried(self, other), carried(other, self)
        return ours is None or theirs is None or np.array_equal(ours, theirs)

    def __hash__(self) -> int:
        return hash((self.graph, self.edges.tobytes()))

    def __repr__(self) -> str:
        some = "" if self.neurons is None else f", {carried(self).sum()} neurons"
        return f"Circuit({self.n_edges} of {self.graph.n_edges} edges{some})"


def frozen(mask: Any) -> Bool[np.ndarray, "..."]:
    """Returns a copy of a mask that cannot be written to."""
    mask = np.array(mask, bool)
    mask.flags.writeable = False
    return mask


def owners(graph: Graph) -> Int[np.ndarray, " receiver"]:
    """Returns the sender whose node each receiver belongs to; -1 for the logits."""
    index = {name: i for i, name in enumerate(graph.senders)}
    return np.array(
        [index.get(graph.owner(name) or "", -1) for name in graph.receivers]
    )


def among(
    graph: Graph, inside: Bool[np.ndarray, " sender"]
) -> Bool[np.ndarray, "sender receiver"]:
    """Returns the edges among some senders' nodes and the logits."""
    return graph.edges & inside[:, None] & np.append(inside, True)[owners(graph)]


def touched(circuit: Circuit) -> Bool[np.ndarray, " sender"]:
    """Returns which senders' nodes an edge leaves or enters."""
    inside = np.any(circuit.edges, axis=1)
    entered = owners(circuit.graph)[circuit.edges.any(0)]
    inside[entered[entered >= 0]] = True
    return inside


def carried(circuit: Circuit, like: Circuit | None = None) -> Any:
    """Returns the neurons that the edges carry; `None` if neither circuit has any."""
    neurons = circuit.neurons
    if neurons is None:
        if like is None or like.neurons is None:
            return None
        neurons = np.ones_like(like.neurons)
    return neurons & np.any(circuit.edges, axis=1)[:, None]


def same_graph(one: Circuit, other: Circuit) -> None:
    """Refuses circuits of different graphs."""
    if one.graph != other.graph:
        raise ShapeError(
            f"The circuits are of different graphs, with {one.graph.n_edges} and "
            f"{other.graph.n_edges} edges: make both with the same one."
        )
