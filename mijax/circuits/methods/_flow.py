"""Information flow routes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax.circuits._method import AbstractAttribution
from mijax.circuits._scores import Level
from mijax.circuits._task import Task, enter_clean
from mijax.circuits.forward._connected import connected
from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._streams import Model, with_blocks


class InformationFlowRoutes(AbstractAttribution):
    r"""How much of what a receiver reads comes from each sender, metric unseen.

    The proximity of a sender to the stream it is part of,
    $\max(0, \|x\|_1 - \|x - z_s\|_1)$, as a share of that of all senders before the
    receiver, averaged over tokens (Ferrando and Voita 2024, arXiv:2403.00824). Needs
    no counterpart and no ablation; its score is a share, not an effect.
    """

    level: Level = eqx.field(static=True, default="edge", init=False)

    def attribute(
        self, model: Model, graph: Graph, task: Task, prompt: Int[Array, ""]
    ) -> Float[Array, "sender receiver"]:
        """Scores one prompt."""
        model = with_blocks(model, "InformationFlowRoutes")
        ran = connected(model, graph, enter_clean(model, graph, task, prompt))
        points = sorted({graph.ports.point(port.name) for port in graph.ports.reads})
        streams = ran.before[:, jnp.array(points)]
        streams = streams.reshape(-1, *ran.final.shape)
        # The place among these streams of what each receiver reads.
        index = np.array(
            [
                layer * len(points) + points.index(graph.ports.point(port.name))
                for layer in range(graph.n_layers)
                for port in graph.ports.reads
                for _ in range(port.size)
            ]
            + [len(streams)]
        )
        _, reader = np.unique(index, return_index=True)
        earlier = jnp.asarray(graph.edges.T[reader])
        here = jnp.arange(task.clean.shape[1]) < task.lengths[prompt]

        def share(at: tuple[Array, Array]) -> Array:
            stream, earlier = at
            size = jnp.abs(stream).sum(-1)
            near = size - jnp.abs(stream - ran.senders).sum(-1)
            near = jnp.maximum(near, 0) * earlier[:, None]
            total = near.sum(0)
            part = jnp.where(total > 0, near / jnp.where(total > 0, total, 1), 0)
            return (part * here).sum(1) / task.lengths[prompt]

        streams = jnp.concatenate([streams, ran.final[None]])
        return jax.lax.map(share, (streams, earlier))[index].T
