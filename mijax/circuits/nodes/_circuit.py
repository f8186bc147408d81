"""A circuit of nodes: a boolean mask at each site."""

from collections.abc import Iterable
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Bool

from mijax._errors import ShapeError, quoted
from mijax.circuits._circuit import frozen
from mijax.circuits.nodes._nodes import Nodes
from mijax.circuits.nodes._task import NodeTask


class NodeCircuit(eqx.Module):
    """A set of nodes of a task: a mask over the model.

    A value: `&`, `|` and `-` are those of sets and give a new circuit; `~` is the
    complement.

    Args:
        nodes: the nodes, `task.nodes`.
        mask: which of them are in the circuit, `[node]`.

    Raises:
        ShapeError: a mask of another shape.

    Examples:
        >>> import jax, mijax
        >>> from mijax import circuits
        >>> relu = lambda x: mijax.site("relu", jax.nn.relu(x), "neuron")
        >>> task = circuits.NodeTask(
        ...     mijax.model(lambda x: relu(x).sum(), jax.numpy.ones(4)),
        ...     jax.numpy.ones((2, 4)),
        ...     metric=lambda output: output,
        ...     nodes={"relu": "neuron"},
        ...     ablation=mijax.Zero(),
        ... )
        >>> circuit = circuits.NodeCircuit.of(task, ["relu[1]", "relu[3]"])
        >>> circuit
        NodeCircuit(2 of 4 nodes)
        >>> circuit.masks["relu"].tolist(), (~circuit).names()
        ([False, True, False, True], ('relu[0]', 'relu[2]'))
    """

    mask: Bool[np.ndarray, " node"]
    nodes: Nodes = eqx.field(static=True)

    def __init__(self, nodes: Nodes, mask: Any):
        self.nodes, self.mask = nodes, frozen(mask)
        if self.mask.shape != (len(nodes),):
            raise ShapeError(
                f"A mask over nodes has shape {(len(nodes),)}, got {self.mask.shape}."
            )

    @classmethod
    def of(cls, task: NodeTask, names: Iterable[str]) -> "NodeCircuit":
        """Make a circuit of nodes given by name.

        Args:
            task: the task.
            names: nodes, for instance `"relu[1, 7]"`.

        Returns:
            The circuit.

        Raises:
            SiteError: no such node.
        """
        mask = np.zeros(len(task.nodes), bool)
        mask[task.nodes.indices(names)] = True
        return cls(task.nodes, mask)

    @classmethod
    def full(cls, task: NodeTask) -> "NodeCircuit":
        """Return the circuit of all nodes: the whole model."""
        return cls(task.nodes, np.ones(len(task.nodes), bool))

    @classmethod
    def empty(cls, task: NodeTask) -> "NodeCircuit":
        """Return the circuit without nodes."""
        return cls(task.nodes, np.zeros(len(task.nodes), bool))

    @property
    def masks(self) -> dict[str, Any]:
        """The mask of each site, `[*axes]`; a tuple by layer where sizes differ."""
        return self.nodes.split(self.mask)

    def names(self) -> tuple[str, ...]:
        """Return the names of the nodes, in order."""
        pairs = zip(self.nodes.names(), self.mask, strict=True)
        return tuple(name for name, inside in pairs if inside)

    def __len__(self) -> int:
        return int(self.mask.sum())

    def __contains__(self, name: str) -> bool:
        return bool(self.mask[self.nodes.indices([name])[0]])

    def __and__(self, other: "NodeCircuit") -> "NodeCircuit":
        return NodeCircuit(self.nodes, self.mask & mask_of(self.nodes, other))

    def __or__(self, other: "NodeCircuit") -> "NodeCircuit":
        return NodeCircuit(self.nodes, self.mask | mask_of(self.nodes, other))

    def __sub__(self, other: "NodeCircuit") -> "NodeCircuit":
        return NodeCircuit(self.nodes, self.mask & ~mask_of(self.nodes, other))

    def __invert__(self) -> "NodeCircuit":
        return NodeCircuit(self.nodes, ~self.mask)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NodeCircuit) or self.nodes != other.nodes:
            return False
        return np.array_equal(self.mask, other.mask)

    def __hash__(self) -> int:
        return hash((self.nodes, self.mask.tobytes()))

    def __repr__(self) -> str:
        return f"NodeCircuit({len(self)} of {len(self.nodes)} nodes)"


def mask_of(nodes: Nodes, circuit: NodeCircuit) -> Bool[np.ndarray, " node"]:
    """Return a circuit's mask, or refuse a circuit of other nodes.

    Raises:
        ShapeError: something else than a circuit of these nodes.
    """
    if not isinstance(circuit, NodeCircuit):
        raise ShapeError(f"Expected a NodeCircuit, got {quoted(circuit)}.")
    if circuit.nodes != nodes:
        raise ShapeError(
            f"The circuit has {circuit.nodes}, but {nodes} was expected: make both "
            "from the same task."
        )
    return circuit.mask
