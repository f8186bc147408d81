"""Random scores: the baseline of every method."""

import equinox as eqx
import jax
import jax.numpy as jnp

from mijax._errors import ConfigError, nearest
from mijax.circuits._method import AbstractMethod, Options
from mijax.circuits._scores import Level, Scores
from mijax.circuits._task import Task
from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._streams import Model

LEVELS = ("edge", "node")


class Random(AbstractMethod):
    """Scores drawn evenly between 0 and 1, neither model nor task looked at.

    Attributes:
        seed: seed of the draw.
        level: `"edge"` or `"node"`.

    Examples:
        >>> import mijax
        >>> from mijax import circuits
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> task = circuits.Task([[5, 6]], metric=mijax.logit_difference(3, 4))
        >>> circuits.discover(model, task, Random(seed=1)).values.shape
        (16, 40)
    """

    seed: int = eqx.field(static=True, default=0)
    level: Level = eqx.field(static=True, default="edge")

    def __check_init__(self):
        """Refuses a level that does not exist."""
        if self.level not in LEVELS:
            close = nearest(self.level, LEVELS)
            raise ConfigError(f"There is no level {self.level!r}.{close}")

    def discover(
        self, model: Model, graph: Graph, task: Task, options: Options
    ) -> Scores:
        """Draws the scores."""
        edge = self.level == "edge"
        shape = graph.edges.shape if edge else (len(graph.senders),)
        values = jax.random.uniform(jax.random.key(self.seed), shape)
        values = jnp.where(graph.edges, values, 0) if edge else values
        return Scores(values, None, None, graph, self.level, repr(self))
