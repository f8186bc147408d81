"""Head importance scores for pruning."""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax._errors import ConfigError, nearest
from mijax.circuits._method import AbstractAttribution, Options
from mijax.circuits._scores import Level, Scores
from mijax.circuits._task import Task
from mijax.circuits.forward._graph import Graph
from mijax.core import AbstractEdit, AbstractModel, Place, compose
from mijax.core.internal import Layered, metric_of, site_shapes

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

    def shape(self, model: AbstractModel, graph: Graph) -> tuple[int, int]:
        """Returns how many layers and how many parts of each are scored."""
        each = graph.ports.readers if self.level == "edge" else graph.ports.writers
        return graph.n_layers, each

    def attribute(
        self, model: AbstractModel, graph: Graph, task: Task, prompt: Int[Array, ""]
    ) -> Float[Array, "layer part"]:
        """Returns the importance of the parts of each layer in one prompt."""
        sites = measured(graph, self.level)

        def value(shares: list[Array]) -> Array:
            edits = [
                Share(Layered(share)).at(site)
                for (site, _), share in zip(sites, shares, strict=True)
            ]
            tokens, edits = task.clean[prompt], compose(edits)
            return metric_of(model, task.metric, tokens, edits, prompt)

        dtype = site_shapes(model, 1).blocks.resid_pre.dtype
        full = [jnp.ones((graph.n_layers, size), dtype) for _, size in sites]
        found = jax.grad(value)(full)
        return jnp.abs(jnp.concatenate(found, axis=1))

    def discover(
        self, model: AbstractModel, graph: Graph, task: Task, options: Options
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
        senders = jnp.stack(
            [
                receivers[jnp.array(of)].max() if (of := owned(graph, name)) else top[0]
                for name in graph.senders
            ]
        )
        values = jnp.minimum(senders[:, None], receivers) * graph.edges
        return Scores(values, None, None, graph, "edge", repr(self))


class Share(AbstractEdit):
    """Scales every head, or all of an activation without heads."""

    share: Any

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Scales."""
        share = self.share.value
        return x * (share[:, None] if x.ndim == 3 else share)


def measured(graph: Graph, level: Level) -> list[tuple[str, int]]:
    """Returns the sites whose parts are scored, and how many parts each has.

    A query is the site of its reader; an MLP is measured by what it writes, and a head
    as a whole by what its values are mixed to.
    """
    if level == "node":
        return [("z" if p.heads else p.name, p.size) for p in graph.ports.writes]
    found = []
    for port in graph.ports.reads:
        writer = graph.ports.writer(port.name)
        alone = port.heads is None and writer is not None
        found.append((writer.name if alone and writer else port.name, port.size))
    return found


def owned(graph: Graph, sender: str) -> list[int]:
    """Returns the receivers of a sender's head or MLP; an input has none."""
    return [i for i, name in enumerate(graph.receivers) if graph.owner(name) == sender]
