"""Optimal ablation: the constants that hurt least."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from mijax._progress import Progress, reports
from mijax.circuits._means import mean_ablation
from mijax.circuits._method import MEMORY, Options
from mijax.circuits._task import AbstractAblation, Fixed, Task
from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._stream import Gate
from mijax.circuits.forward._streams import Model
from mijax.circuits.methods._fit import AbstractFit, learn
from mijax.core.internal import checked
from mijax.data import Prompts


class OptimalAblation(AbstractFit):
    """How constants are learned; see `optimal_ablation`.

    Attributes:
        senders: names of senders that are ablated together; `None` ablates every
            sender by itself.
        steps: updates.
        learning_rate: of Adam, on the constants.
        batch: prompts of each update.
        seed: of prompts.

    Examples:
        >>> OptimalAblation(senders=("a0.h1",), steps=100).learning_rate
        0.001
    """

    senders: tuple[str, ...] | None = eqx.field(static=True, default=None)
    steps: int = eqx.field(static=True, default=1000)
    learning_rate: float = 1e-3
    batch: int = eqx.field(static=True, default=20)
    seed: int = 0

    def optimiser(self) -> optax.GradientTransformation:
        """Returns Adam."""
        return optax.adam(self.learning_rate)

    def lanes(self, graph: Graph) -> int:
        """Runs each prompt under every ablation."""
        return len(self.ablated(graph))

    def ablated(self, graph: Graph) -> Bool[np.ndarray, "lane sender"]:
        """Returns the senders that each lane ablates."""
        if self.senders is None:
            return np.eye(len(graph.senders), dtype=bool)
        found = np.zeros((1, len(graph.senders)), bool)
        found[0, [graph.sender(name) for name in self.senders]] = True
        return found

    def gate(
        self, params: Any, graph: Graph, key: PRNGKeyArray, lane: Int[Array, ""]
    ) -> Gate:
        """Closes the senders of this lane."""
        ablated = jnp.asarray(self.ablated(graph))[lane % self.lanes(graph)]
        return Gate(nodes=1 - ablated[:, None].astype(jnp.float32))

    def ablation(self, params: Any, task: Task) -> AbstractAblation:
        """Returns the constants as they are now."""
        return eqx.tree_at(lambda fixed: fixed.values, task.ablation, params)


@reports("Optimal ablation")
@checked
def optimal_ablation(
    model: Model,
    task: Task,
    method: OptimalAblation | None = None,
    *,
    start: Fixed | None = None,
    graph: Graph | None = None,
    progress: Progress = None,
    resume: str | None = None,
    memory: int = MEMORY,
) -> Fixed:
    r"""Learns constants that, put in place of what senders write, cost the least.

    $$a_s^* = \arg\max_a E[m(\text{model with sender } s \text{ replaced by } a)]$$

    (Li and Janson 2024, arXiv:2409.09951), with Adam. What still is lost is lost for
    want of the information that the sender carried, rather than because the constant
    itself disturbs what follows.

    Args:
        model: the model.
        task: prompts and metric; its own ablation does not matter.
        method: which senders together, steps, learning rate; every sender by itself
            by default.
        start: where to start from, which also says whether constants depend on the
            position or on a group; the mean over all tokens by default.
        graph: senders; `Graph.of(model)` by default.
        progress: called with what is done and the total; `None` draws a bar after three
            seconds in a terminal or notebook, `False` none.
        resume: file from which an interrupted run goes on.
        memory: bytes of working memory to aim at.

    Returns:
        The ablation, to use in a task. Senders that were not ablated keep their start.

    Raises:
        SiteError: there is no such sender.
        OutputError: a file to resume from that is of another run.

    Examples:
        >>> import jax, mijax
        >>> from mijax import circuits
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> metric = mijax.logit_difference(3, 4)
        >>> task = circuits.Task([[5, 6, 7], [5, 9, 7]], metric=metric)
        >>> method = circuits.OptimalAblation(steps=2)
        >>> circuits.optimal_ablation(model, task, method).values.shape
        (16, 32)
    """
    method = OptimalAblation() if method is None else method
    graph = Graph.of(model) if graph is None else graph
    if start is None:
        prompts = Prompts(task.clean, task.lengths, {}, ())
        start = mean_ablation(model, prompts, graph=graph)
    task = eqx.tree_at(
        lambda task: task.ablation,
        task,
        start,
        is_leaf=lambda leaf: isinstance(leaf, AbstractAblation),
    )
    options = Options(progress, resume, memory)
    values = start.values.astype(jnp.float32)
    values = learn(method, values, model, graph, task, options)
    return Fixed(values, start.group)
