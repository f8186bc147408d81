"""Subnetwork probing with the gates of Conmy et al. 2023."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mijax.circuits import Gate, Graph, Scores, SubnetworkProbing
from mijax.circuits.methods._hard_concrete import SHIFT, log_alpha_of, sample
from mijax.circuits.methods._probing import START


class PartProbing(SubnetworkProbing):
    """One gate for each query, key, value and MLP.

    Without norms and biases, gating what a query is and all that it reads is the same.
    An MLP's gate is at its output. The level must be `"edge"`: the score of an edge is
    that of its receiver's gate.
    """

    def start(self, graph: Graph) -> Float[Array, " part"]:
        """Starts with all gates nearly open."""
        return jnp.full(len(graph.receivers) - 1, log_alpha_of(START), jnp.float32)

    def gate(
        self, params: Any, graph: Graph, key: PRNGKeyArray, lane: Int[Array, ""]
    ) -> Gate:
        """Draws the step's gates."""
        drawn = sample(params, key)
        head = np.array(["<" in name for name in graph.receivers])
        edges = jnp.where(head, jnp.append(drawn, 1), 1)
        nodes = [
            drawn[graph.receiver(name)] if name.startswith("m") else jnp.float32(1)
            for name in graph.senders
        ]
        shape = (len(graph.senders), len(graph.receivers))
        return Gate(
            edges=jnp.broadcast_to(edges, shape), nodes=jnp.stack(nodes)[:, None]
        )

    def log_odds(self, params: Any, graph: Graph) -> Float[Array, " edge"]:
        """Returns the log odds that each edge's receiver is open."""
        return jnp.append(params + SHIFT, 0)[np.nonzero(graph.edges)[1]]


def closed(scores: Scores) -> list[str]:
    """Returns the parts whose gate is closed more often than open."""
    values = np.asarray(scores.values)[0, :-1]
    log_alpha = np.log(np.expm1(values)) - SHIFT
    names = scores.graph.receivers[:-1]
    return [name for name, a in zip(names, log_alpha, strict=True) if a < 0]
