"""Information flow routes."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax.circuits._connected import connected, enter
from mijax.circuits._graph import Graph
from mijax.circuits._method import AbstractAttribution
from mijax.circuits._scores import Level
from mijax.circuits._task import Task
from mijax.core import AbstractModel


class InformationFlowRoutes(AbstractAttribution):
    r"""How much of what a receiver reads comes from each sender, metric unseen.

    The proximity of a sender to the stream it is part of,
    $\max(0, \|x\|_1 - \|x - z_s\|_1)$, as a share of that of all senders before the
    receiver, averaged over tokens (Ferrando and Voita 2024, arXiv:2403.00824). Needs
    no counterpart and no ablation; its score is a share, not an effect.
    """

    level: Level = eqx.field(static=True, default="edge", init=False)

    def attribute(
        self, model: AbstractModel, graph: Graph, task: Task, prompt: Int[Array, ""]
    ) -> Float[Array, "sender receiver"]:
        """Scores one prompt."""
        ran = connected(model, graph, enter(model, graph, task.clean[prompt]))
        streams = [ran.inputs, ran.final[None]]
        names = [f"a{layer}.h0<q>" for layer in range(graph.n_layers)] + ["logits"]
        if graph.mlp:
            before = ran.inputs if graph.parallel else ran.middles
            assert before is not None
            streams.append(before)
            names += [f"m{layer}" for layer in range(graph.n_layers)]
        here = jnp.arange(task.clean.shape[1]) < task.lengths[prompt]
        earlier = jnp.array([graph.edges[:, graph.receiver(name)] for name in names])

        def share(at: tuple[Array, Array]) -> Array:
            stream, earlier = at
            size = jnp.abs(stream).sum(-1)
            near = size - jnp.abs(stream - ran.senders).sum(-1)
            near = jnp.maximum(near, 0) * earlier[:, None]
            total = near.sum(0)
            part = jnp.where(total > 0, near / jnp.where(total > 0, total, 1), 0)
            return (part * here).sum(1) / task.lengths[prompt]

        found = jax.lax.map(share, (jnp.concatenate(streams), earlier))
        index = jnp.array([names.index(stand_in(name)) for name in graph.receivers])
        return found[index].T


def stand_in(receiver: str) -> str:
    """Names the first of the receivers that read the same stream."""
    return (
        f"{receiver.split('.', maxsplit=1)[0]}.h0<q>" if "." in receiver else receiver
    )
