"""EAP with gradients integrated over activations."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import ConfigError
from mijax.circuits._method import AbstractAttribution
from mijax.circuits._scores import Level
from mijax.circuits._task import Task, enter_clean
from mijax.circuits.forward._connected import connected
from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._stream import Gate
from mijax.circuits.forward._streams import Model
from mijax.circuits.methods._eap import average
from mijax.circuits.methods._gradients import attributed, gradients


class EAPIGActivations(AbstractAttribution):
    r"""EAP with gradients integrated over activations (Hanna et al. 2024).

    One group of senders at a time (the input, all heads of a layer, an MLP) writes
    $z^* + \alpha (z - z^*)$ as a constant, $\alpha = k/m$ for $k = 1, \dots, m$, while
    the rest runs on the clean prompt. Gradients are averaged over all groups and
    points, and every edge is scored with that average (arXiv:2403.17806 and its code).

    Attributes:
        steps: points per group.
        level: `"edge"`, `"node"` or `"neuron"`.
    """

    steps: int = eqx.field(static=True, default=5)
    level: Level = eqx.field(static=True, default="edge")

    def __check_init__(self):
        """Refuses a path without points."""
        if self.steps < 1:
            raise ConfigError(f"A path has at least one point, got {self.steps}.")

    def attribute(
        self, model: Model, graph: Graph, task: Task, prompt: Int[Array, ""]
    ) -> Float[Array, "..."]:
        """Scores one prompt."""
        reference = task.ablation.reference(model, graph, task, prompt)
        inputs = enter_clean(model, graph, task, prompt)
        clean = connected(model, graph, inputs, prompt=prompt).senders
        groups = groups_of(graph)

        def point(at: Any) -> Array:
            members, alpha = at
            share = jnp.where(members, alpha, 1.0)[:, None]
            gate = Gate(nodes=share, constant=members)
            return gradients(
                *(model, graph, task, inputs, prompt),
                level=self.level,
                gate=gate,
                reference=reference,
            )[0]

        alphas = jnp.arange(1, self.steps + 1) / self.steps
        points = jnp.repeat(groups, self.steps, 0), jnp.tile(alphas, len(groups))
        gradient = average(point, points)
        return attributed(graph, self.level, clean - reference, gradient)


def groups_of(graph: Graph) -> Array:
    """Returns which senders belong to each group, `[group, sender]`."""
    sizes = [port.size for port in graph.ports.writes] * graph.n_layers
    sizes = [len(graph.inputs), *sizes]
    group = np.repeat(np.arange(len(sizes)), sizes)
    return jnp.asarray(group == np.arange(len(sizes))[:, None])
