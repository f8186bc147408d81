"""Subnetwork probing."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mijax.circuits._scores import Level
from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._stream import Gate
from mijax.circuits.methods._hard_concrete import (
    SHIFT,
    expected_l0,
    log_alpha_of,
    sample,
)
from mijax.circuits.methods._masks import AbstractMask, gate_of, n_gates

START = 0.9


class SubnetworkProbing(AbstractMask):
    r"""A mask that keeps the metric and closes gates (Cao et al. 2021).

    Hard concrete gates $z(\log\alpha)$ are learned with Adam to minimise

    $$-\mathbb{E}_z[m(z)] + \frac{\lambda}{N} \sum_{i=1}^N P(z_i \neq 0),$$

    which is arXiv:2104.03514 as Conmy et al. 2023 (arXiv:2304.14997) use it to find
    circuits: no probe is trained, gates start at 0.9, and one mask is drawn for all
    prompts of a step. They gate the queries, keys and values of heads and the outputs
    of MLPs; here it is all senders (`"node"`) or all edges (`"edge"`). Their loss is a
    divergence or a metric of the task: give `negative(kl(logits))` as its metric for
    the first. See `AbstractMask` for what scores mean.

    Attributes:
        regularisation: $\lambda$, in units of the metric.
        level: `"node"` or `"edge"`.
        steps: updates.
        learning_rate: of Adam, on the log odds.
        batch: prompts of each update.
        seed: of prompts and gates.

    Examples:
        >>> import jax, mijax
        >>> from mijax import circuits
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> metric = mijax.logit_difference(3, 4)
        >>> task = circuits.Task([[5, 6, 7]], [[5, 9, 7]], metric=metric)
        >>> method = SubnetworkProbing(steps=2)
        >>> circuits.discover(model, task, method).values.shape  # sender
        (16,)
    """

    regularisation: float = 1.0
    level: Level = eqx.field(static=True, default="node")
    steps: int = eqx.field(static=True, default=3000)
    learning_rate: float = 1e-3
    batch: int = eqx.field(static=True, default=50)
    seed: int = 0

    def optimiser(self) -> optax.GradientTransformation:
        """Returns Adam."""
        return optax.adam(self.learning_rate)

    def start(self, graph: Graph) -> Float[Array, " gate"]:
        """Starts with all gates nearly open."""
        return jnp.full(n_gates(graph, self.level), log_alpha_of(START), jnp.float32)

    def gate(
        self, params: Any, graph: Graph, key: PRNGKeyArray, lane: Int[Array, ""]
    ) -> Gate:
        """Draws the step's mask."""
        return gate_of(graph, self.level, sample(params, key))

    def penalty(
        self, params: Any, step: Int[Array, ""], key: PRNGKeyArray
    ) -> Float[Array, ""]:
        """Returns the expected share of open gates, weighted."""
        return self.regularisation * expected_l0(params).mean()

    def log_odds(self, params: Any, graph: Graph) -> Float[Array, " gate"]:
        """Returns the log odds that each gate is open."""
        return params + SHIFT
