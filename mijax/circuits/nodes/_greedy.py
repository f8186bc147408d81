"""ACDC over nodes: one after the other is removed, from the output back."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mijax._progress import Progress
from mijax.circuits.nodes._gated import MOST, example_bytes, mean_metric
from mijax.circuits.nodes._method import AbstractNodeMethod
from mijax.circuits.nodes._scores import NodeScores
from mijax.circuits.nodes._task import NodeTask

# Decisions between reports of progress.
REPORT = 32


class NodeACDC(AbstractNodeMethod):
    """Automatic circuit discovery over nodes (Conmy et al. 2023, arXiv:2304.14997).

    Nodes are visited from the last layer to the first, within a layer from the last
    site to the first; nodes that span layers count as part of their first. Each is
    replaced, given all that were removed before; it stays removed if the metric,
    averaged over examples, then falls by less than the threshold. Kept nodes score 1
    and the others 0.

    More of the metric is better: of a loss or a divergence give minus it. Decisions
    follow one another, so the cost is one run of all examples for each node.

    Attributes:
        threshold: largest fall of the metric that removes a node, in its units.
        absolute: compare the size of the change, whatever its sign.
    """

    threshold: float = 0.01
    absolute: bool = eqx.field(static=True, default=False)

    def discover(self, task: NodeTask, progress: Progress, memory: int) -> NodeScores:
        """Decide on every node."""
        chunk = min(len(task), MOST, max(1, memory // example_bytes(task)))
        n = len(task.nodes)
        # Numbers are traced, so that another threshold runs the same program.
        limits = (jnp.float32(self.threshold), self.absolute, chunk)
        state = (jnp.ones(n, bool), _metric(task, jnp.ones(n, bool), chunk))
        for i, node in enumerate(late_first(task)):
            state = _decide(task, limits, state, jnp.asarray(node))
            if progress and i % REPORT == REPORT - 1:
                jax.block_until_ready(state)
                progress(i + 1, n)
        values = np.asarray(state[0], np.float32)
        return NodeScores(values, None, task.nodes, repr(self))


@eqx.filter_jit
def _metric(task: NodeTask, mask: Bool[Array, " node"], chunk: int) -> Array:
    """Return the mean of the metric over all examples."""
    return mean_metric(task, mask, jnp.arange(len(task), dtype=jnp.int32), chunk)


@eqx.filter_jit
def _decide(
    task: NodeTask,
    limits: tuple[Array, bool, int],
    state: tuple[Bool[Array, " node"], Float[Array, ""]],
    node: Int[Array, ""],
) -> tuple[Bool[Array, " node"], Float[Array, ""]]:
    """Remove a node, or keep it; return the mask and its metric."""
    threshold, absolute, chunk = limits
    mask, metric = state
    less = mask.at[node].set(False)
    new = _metric(task, less, chunk)
    fall = metric - new
    goes = (jnp.abs(fall) if absolute else fall) < threshold
    return jnp.where(goes, less, mask), jnp.where(goes, new, metric)


def late_first(task: NodeTask) -> Int[np.ndarray, " node"]:
    """Return all nodes from the output back to the input."""
    stage, place, layered = 0, {}, False
    for i, (name, info) in enumerate(task.sites.items()):
        # Sites with layers that follow one another are computed layer by layer.
        stage += not (layered and info.layers)
        layered = bool(info.layers)
        place[name] = (stage, i)
    keys = []
    for part in task.nodes.sites:
        stage, i = place[part.site]
        for index in part.indices():
            keys.append((stage, index[0] if part.layered else 0, i, len(keys)))
    return np.array([key[-1] for key in sorted(keys, reverse=True)], np.int32)
