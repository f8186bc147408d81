"""Head importance scores for pruning."""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import ConfigError, nearest
from mijax.circuits._circuit import owners
from mijax.circuits._method import AbstractAttribution, Options
from mijax.circuits._scores import Level, Scores
from mijax.circuits._task import Task, enter_clean
from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._streams import Model, with_blocks
from mijax.circuits.methods._gradients import attributed, gradients
from mijax.core import AbstractEdit, Place, compose
from mijax.core.internal import Layered, length_of, metric_of, site_shapes

LEVELS = ("edge", "node")
SMALLEST = 1e-6


class HISP(AbstractAttribution):
    r"""Head importance score for pruning (Michel et al. 2019, arXiv:1905.10650).

    The importance of a part with activation $A$ is
    $\mathbb{E}_x |A(x)^\top \partial m / \partial A(x)|$, divided by the norm over all
    parts of its layer. Parts are the heads' outputs and the MLPs' at level `"node"`;
    at level `"edge"`, as Conmy et al. 2023 (arXiv:2304.14997) use it, every head's
    query, key and value and the MLPs. An edge lives as long as its receiver and any
    part of its sender: its score is the smaller of the two. Inputs and logits are never
    the first to go and take the largest score.

    Importance has no sign and no reference: the ablation of the task plays no role.

    Attributes:
        level: `"edge"` or `"node"`.
        normalise: divide by the norm over the parts of a layer.

    Examples:
        >>> import mijax
        >>> from mijax import circuits
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> task = circuits.Task([[5, 6]], metric=mijax.logit_difference(3, 4))
        >>> circuits.discover(model, task, HISP(level="node")).values.shape
        (16,)
    """

    level: Level = eqx.field(static=True, default="edge")
    normalise: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        """Refuses a level that does not exist."""
        if self.level not in LEVELS:
            close = nearest(self.level, LEVELS)
            raise ConfigError(f"There is no level {self.level!r}.{close}")

    def shape(self, model: Model, graph: Graph, task: Task) -> tuple[int, int]:
        """Returns the number of layers, and of scored parts in each."""
        each = graph.ports.readers if self.level == "edge" else graph.ports.writers
        return graph.n_layers, each

    def attribute(
        self, model: Model, graph: Graph, task: Task, prompt: Int[Array, ""]
    ) -> Float[Array, "layer part"]:
        """Returns the importance of the parts of each layer in one prompt."""
        inputs = enter_clean(model, graph, task, prompt)
        slope, ran = gradients(model, graph, task, inputs, prompt, level="node")
        written = attributed(graph, "node", ran.senders, slope)
        written = written[len(graph.inputs) :].reshape(graph.n_layers, -1)
        if self.level == "node":
            return jnp.abs(written)
        read = read_importance(model, graph, task, prompt)
        found = []
        for port in graph.ports.reads:
            writer = graph.ports.writer(port.name)
            if port.name in read or writer is None:
                found.append(read[port.name])
            else:
                first = graph.ports.offset(writer.name)
                whole = written[:, first : first + writer.size]
                found.append(whole.sum(1, keepdims=True))
        return jnp.abs(jnp.concatenate(found, axis=1))

    def discover(
        self, model: Model, graph: Graph, task: Task, options: Options
    ) -> Scores:
        """Averages over prompts and divides by the norm of each layer."""
        # A part's prompts are not an edge's: only means become scores.
        found = super().discover(
            model, graph, task, replace(options, keep_prompts=False)
        )
        importance = found.values
        if self.normalise:
            norm = jnp.linalg.norm(importance, axis=1, keepdims=True)
            importance = importance / jnp.maximum(norm, SMALLEST)
        top = importance.max(initial=0)[None]
        parts = importance.reshape(-1)
        if self.level == "node":
            values = jnp.concatenate([top.repeat(len(graph.inputs)), parts])
            return Scores(values, None, None, graph, "node", repr(self))
        receivers = jnp.concatenate([parts, top])
        owned = owners(graph) == np.arange(len(graph.senders))[:, None]
        best = jnp.where(owned, receivers, -jnp.inf).max(axis=1)
        senders = jnp.where(owned.any(axis=1), best, top)
        values = jnp.minimum(senders[:, None], receivers) * graph.edges
        return Scores(values, None, None, graph, "edge", repr(self))


class Share(AbstractEdit):
    """Scales every head, or all of an activation without heads."""

    share: Any

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Scales."""
        share = self.share.value
        return x * (share[:, None] if x.ndim == 3 else share)


def read_importance(
    model: Model, graph: Graph, task: Task, prompt: Int[Array, ""]
) -> dict[str, Float[Array, "layer reader"]]:
    """Returns the importance of what heads make of their inputs, by reading port.

    The site of that activation, such as a query, has the name of the port. Ports
    without heads are measured by the writer of their part of the block, if it has one.
    """
    model = with_blocks(model, "HISP of edges")
    ports = [
        port
        for port in graph.ports.reads
        if port.heads is not None or graph.ports.writer(port.name) is None
    ]

    def value(shares: dict[str, Array]) -> Array:
        edits = compose([Share(Layered(one)).at(name) for name, one in shares.items()])
        length = length_of(task.masked(model), prompt)
        tokens = task.clean[prompt]
        return metric_of(model, task.metric, tokens, edits, prompt, length=length)

    dtype = site_shapes(model, 1).blocks.resid_pre.dtype
    full = {port.name: jnp.ones((graph.n_layers, port.size), dtype) for port in ports}
    return jax.grad(value)(full) if full else {}
