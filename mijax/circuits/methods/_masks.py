"""Masks that are learned: one gate for every edge or node."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax._errors import ConfigError
from mijax.circuits._method import AbstractMethod, Options
from mijax.circuits._scores import Level, Scores
from mijax.circuits._task import Task
from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._stream import Gate
from mijax.circuits.forward._streams import Model
from mijax.circuits.methods._fit import AbstractFit, learn
from mijax.core.internal import checked


class AbstractMask(AbstractFit, AbstractMethod):
    """A method that learns how likely each edge or node is to stay open.

    The score is `-log P(gate = 0)`, in nats: near 0 for what the mask closes, large
    for what it keeps, `log 2` where both are as likely. It grows with the parameter
    that is learned, without end and without ties, and is never negative, so ranking by
    size and by sign agree.

    Attributes:
        level: `"edge"` or `"node"`.
    """

    level: eqx.AbstractVar[Level]

    def __check_init__(self):
        """Refuses a level without gates."""
        if self.level not in ("edge", "node"):
            raise ConfigError(f"A mask has level 'edge' or 'node', got {self.level!r}.")

    @abc.abstractmethod
    def start(self, graph: Graph) -> Any:
        """Returns the parameters to start from."""

    @abc.abstractmethod
    def log_odds(self, params: Any, graph: Graph) -> Float[Array, " gate"]:
        """Returns the log odds that each gate is open."""

    def discover(
        self, model: Model, graph: Graph, task: Task, options: Options
    ) -> Scores:
        """Learns the mask."""
        params = learn(self, self.start(graph), model, graph, task, options)
        values = jax.nn.softplus(self.log_odds(params, graph))
        if self.level == "edge":
            values = over_edges(graph, values)
        return Scores(values, None, None, graph, self.level, repr(self))


def n_gates(graph: Graph, level: Level) -> int:
    """Returns the number of edges or nodes."""
    return graph.n_edges if level == "edge" else len(graph.senders)


def gate_of(graph: Graph, level: Level, gates: Float[Array, " gate"]) -> Gate:
    """Puts gates where they belong."""
    if level == "edge":
        return Gate(edges=over_edges(graph, gates))
    return Gate(nodes=gates[:, None])


def over_edges(
    graph: Graph, values: Float[Array, " gate"]
) -> Float[Array, "sender receiver"]:
    """Spreads one number per edge; 0 where there is no edge."""
    zeros = jnp.zeros(graph.edges.shape, values.dtype)
    return zeros.at[np.nonzero(graph.edges)].set(values)


@checked
def sparsity(scores: Scores) -> float:
    """Share of edges or nodes that a learned mask closes, in expectation.

    Args:
        scores: of a method that learns a mask, such as `EdgePruning`.

    Returns:
        The mean chance that a gate is 0, from 0 to 1.

    Raises:
        ConfigError: scores of another kind of method.

    Examples:
        >>> import mijax
        >>> from mijax import circuits
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> metric = mijax.logit_difference(3, 4)
        >>> task = circuits.Task([[5, 6, 7]], [[5, 9, 7]], metric=metric)
        >>> method = circuits.UGS(regularisation=1.0, steps=100, learning_rate=0.1)
        >>> sparsity(circuits.discover(model, task, method)) > 0.9
        True
    """
    values = np.asarray(scores.values)[scores.real]
    if (values < 0).any():
        raise ConfigError(
            f"{scores.method} does not learn a mask: its scores have no sparsity."
        )
    return float(np.exp(-values).mean())
