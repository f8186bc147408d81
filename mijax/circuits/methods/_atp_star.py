"""AtP* at nodes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import ConfigError
from mijax.circuits._method import AbstractAttribution, Options
from mijax.circuits._scores import Level, Scores
from mijax.circuits._task import Task, enter_clean
from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._stream import Gate
from mijax.circuits.forward._streams import Model
from mijax.circuits.methods._gradients import attributed, gradients


class AtPStar(AbstractAttribution):
    r"""AtP* at the outputs of heads and MLPs (Kramár et al. 2024, arXiv:2403.00745).

    There AtP* is attribution patching with GradDrop: one backward pass per layer
    $\ell$ in which that layer's heads and MLP write a constant, and a score is
    $\frac{1}{L-1} \sum_\ell |I_\ell|$ of the estimates $I_\ell$. Scores are sizes, not
    losses: they rank, and are never negative. (The QK fix is for queries and keys,
    which are no nodes here; see `mijax.attribution.AtPStar`.)

    Attributes:
        level: `"node"` or `"neuron"`.

    Raises:
        ConfigError: a model of one layer, which leaves nothing to drop.
    """

    level: Level = eqx.field(static=True, default="node")

    def __check_init__(self):
        """Refuses edges."""
        if self.level not in ("node", "neuron"):
            raise ConfigError(
                f"AtPStar scores nodes, not {self.level!r}: give 'node' or 'neuron'."
            )

    def discover(
        self, model: Model, graph: Graph, task: Task, options: Options
    ) -> Scores:
        """Averages over prompts."""
        if graph.n_layers < 2:
            raise ConfigError("GradDrop needs two layers or more, the model has 1.")
        return super().discover(model, graph, task, options)

    def attribute(
        self, model: Model, graph: Graph, task: Task, prompt: Int[Array, ""]
    ) -> Float[Array, "..."]:
        """Scores one prompt."""
        reference = task.ablation.reference(model, graph, task, prompt)
        inputs = enter_clean(model, graph, task, prompt)

        def drop(constant: Array) -> Array:
            gradient, ran = gradients(
                *(model, graph, task, inputs, prompt),
                level=self.level,
                gate=Gate(constant=constant),
            )
            # A dropped sender's own gradient is taken behind the constant.
            gradient = jnp.where(constant[:, None, None], 0, gradient)
            change = ran.senders - reference
            return jnp.abs(attributed(graph, self.level, change, gradient))

        every = jax.lax.map(drop, jnp.asarray(layers(graph)))
        return every.sum(0) / (graph.n_layers - 1)


def layers(graph: Graph) -> np.ndarray:
    """Returns which senders belong to each layer, `[layer, sender]`."""
    of = np.arange(len(graph.senders)) - len(graph.inputs)
    return of // graph.ports.writers == np.arange(graph.n_layers)[:, None]
