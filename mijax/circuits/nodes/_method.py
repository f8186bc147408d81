"""`discover_nodes`, and methods that score one example at a time."""

import abc
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import ConfigError
from mijax._progress import Progress, reports
from mijax.circuits._method import MEMORY, ZERO
from mijax.circuits._scores import merged, standard_error
from mijax.circuits.methods._eap import average
from mijax.circuits.nodes._gated import MOST, gated
from mijax.circuits.nodes._scores import NodeScores
from mijax.circuits.nodes._task import NodeTask, blocks, full_gates
from mijax.core.internal import checked, peak_bytes


class AbstractNodeMethod(eqx.Module):
    """A method that scores nodes: a frozen value."""

    @abc.abstractmethod
    def discover(self, task: NodeTask, progress: Progress, memory: int) -> NodeScores:
        """Score the nodes of a task."""


class AbstractNodeAttribution(AbstractNodeMethod):
    """A method that scores one example at a time, by gradients."""

    @abc.abstractmethod
    def attribute(
        self, task: NodeTask, prompt: Int[Array, ""]
    ) -> Float[Array, " node"]:
        """Return the scores in one example."""

    def discover(self, task: NodeTask, progress: Progress, memory: int) -> NodeScores:
        """Average over examples, block by block."""
        made = jax.make_jaxpr(lambda i: self.attribute(task, i))(jnp.int32(0))
        at_once = min(len(task), MOST, max(1, memory // max(1, peak_bytes(made.jaxpr))))
        moments = jnp.zeros((2, len(task.nodes)), jnp.float32)
        for ids, count in blocks(task, at_once):
            found = _block(self, task, jnp.asarray(ids))[:count]
            moments = merged(moments, int(ids[0]), found)
            if progress:
                moments.block_until_ready()
                progress(int(ids[count - 1]) + 1, len(task))
        if not bool(jnp.any(moments[0])):
            warnings.warn(ZERO, stacklevel=5)
        error = standard_error(moments[1], len(task))
        error = None if error is None else np.asarray(error)
        return NodeScores(np.asarray(moments[0]), error, task.nodes, repr(self))


@eqx.filter_jit
def _block(
    method: AbstractNodeAttribution, task: NodeTask, ids: Int[Array, " example"]
) -> Float[Array, "example node"]:
    return jax.vmap(lambda i: method.attribute(task, i))(ids)


class NodeAttribution(AbstractNodeAttribution):
    r"""Attribution patching of nodes: the gradient at the whole model.

    The score of a node is $\sum (x - x^*)\, \partial m / \partial x$ over its values
    $x$ and their replacements $x^*$: the fall of the metric when the node is replaced,
    to first order (Syed et al. 2023, arXiv:2310.10348). One backward pass gives all
    nodes.
    """

    def attribute(
        self, task: NodeTask, prompt: Int[Array, ""]
    ) -> Float[Array, " node"]:
        """Differentiate the metric by the gates of all nodes."""
        return jax.grad(gated(task, prompt))(full_gates(task))


class NodeIG(AbstractNodeAttribution):
    r"""Integrated gradients of nodes, from all replaced to none.

    The score of a node is $\int_0^1 \partial m / \partial g\, d\alpha$, where $g$ is
    its gate and all gates are $\alpha$ (Sundararajan et al. 2017, arXiv:1703.01365).
    Scores sum to the metric of the model minus that with every node replaced, up to the
    error of Gauss-Legendre quadrature.

    Attributes:
        steps: points on the path, one backward pass for each.
    """

    steps: int = eqx.field(static=True, default=8)

    def __check_init__(self):
        """Refuse a path without points."""
        if self.steps < 1:
            raise ConfigError(f"A path has at least one point, got {self.steps}.")

    def attribute(
        self, task: NodeTask, prompt: Int[Array, ""]
    ) -> Float[Array, " node"]:
        """Average gradients over the path."""
        at, weights = np.polynomial.legendre.leggauss(self.steps)
        points = jnp.asarray(np.stack([(at + 1) / 2, weights * self.steps / 2], 1))
        slope, full = jax.grad(gated(task, prompt)), full_gates(task)
        return average(lambda p: p[1] * slope(p[0] * full), points.astype(full.dtype))


@reports("Discovery of nodes")
@checked
def discover_nodes(
    task: NodeTask,
    method: AbstractNodeMethod,
    *,
    progress: Progress = None,
    memory: int = MEMORY,
) -> NodeScores:
    """Score how much each node of a model matters for a task.

    Args:
        task: model, inputs, metric and nodes.
        method: for instance `NodeIG(steps=8)`.
        progress: called with the work that is done and the total; `None` draws a bar
            after three seconds in a terminal or notebook, `False` none.
        memory: bytes of working memory to aim at.

    Returns:
        A score for every node: how much the metric falls when it is replaced.

    Raises:
        SiteError: a gradient through a site that has none.
        ConfigError: a method that is a name or a class.

    Warns:
        UserWarning: all attributions are zero.

    Examples:
        >>> import jax, mijax
        >>> from mijax import circuits
        >>> relu = lambda x: mijax.site("relu", jax.nn.relu(x), "neuron")
        >>> task = circuits.NodeTask(
        ...     mijax.model(lambda x: 3 * relu(x)[1] - relu(x)[2], jax.numpy.ones(4)),
        ...     jax.numpy.ones((2, 4)),
        ...     metric=lambda output: output,
        ...     nodes={"relu": ("layer", "neuron")},
        ...     ablation=mijax.Zero(),
        ... )
        >>> scores = circuits.discover_nodes(task, circuits.NodeAttribution())
        >>> scores.best(2)[0].name, scores.top(1).names()
        ('relu[0, 1]', ('relu[0, 1]',))
    """
    return method.discover(task, progress, memory)


def scores_of(task: NodeTask, each: Any, method: Any) -> NodeScores:
    """Return scores from those of every example, `[example, node]`."""
    each = np.asarray(each, np.float64)
    n = len(each)
    error = each.std(0, ddof=1) / np.sqrt(n) if n > 1 else None
    values = each.mean(0).astype(np.float32)
    error = None if error is None else error.astype(np.float32)
    return NodeScores(values, error, task.nodes, repr(method))
