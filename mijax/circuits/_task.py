"""What a circuit is found on: prompts, counterparts, a metric, an ablation."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from mijax._errors import PositionError, ShapeError
from mijax.circuits.forward._connected import connected, enter
from mijax.circuits.forward._graph import Graph
from mijax.core import AbstractMetric, AbstractModel
from mijax.core.internal import (
    as_tokens,
    check_metric,
    check_model,
    check_prompts,
    check_unpadded,
    lengths_of,
    site_shapes,
)
from mijax.data import Pairs, Prompts, aligned


class AbstractAblation(eqx.Module):
    """What a sender is replaced by where an edge is not in the circuit."""

    @abc.abstractmethod
    def reference(
        self, model: AbstractModel, graph: Graph, task: "Task", prompt: Int[Array, ""]
    ) -> Float[Array, "sender seq embed"]:
        """Returns what every sender is replaced by in one prompt of a task."""


class Counterfactual(AbstractAblation):
    """Replaces by what the sender writes on the corrupt prompt (patching)."""

    def reference(
        self, model: AbstractModel, graph: Graph, task: "Task", prompt: Int[Array, ""]
    ) -> Float[Array, "sender seq embed"]:
        """Runs the corrupt prompt."""
        if task.corrupt is None:
            raise ShapeError(
                "A counterfactual needs corrupt prompts: give them to the task, or "
                "another ablation."
            )
        return connected(
            model, graph, enter(model, graph, task.corrupt[prompt])
        ).senders


class Zero(AbstractAblation):
    """Replaces by zero."""

    def reference(
        self, model: AbstractModel, graph: Graph, task: "Task", prompt: Int[Array, ""]
    ) -> Float[Array, "sender seq embed"]:
        """Returns zeros."""
        rest = enter(model, graph, task.clean[prompt]).rest
        return jnp.zeros((len(graph.senders), *rest.shape), rest.dtype)


class Fixed(AbstractAblation):
    """Replaces by given values: means, or values that were learned.

    Attributes:
        values: `[sender, embed]` or `[sender, seq, embed]`, with a leading axis of
            groups of prompts where `group` is given.
        group: group of each prompt of the task, where there is such an axis.
    """

    values: Float[Array, "..."]
    group: Int[Array, " batch"] | None = None

    def reference(
        self, model: AbstractModel, graph: Graph, task: "Task", prompt: Int[Array, ""]
    ) -> Float[Array, "sender seq embed"]:
        """Looks the values up."""
        values, grouped = self.values, self.group is not None
        if values.shape[grouped] != len(graph.senders):
            raise ShapeError(
                f"The ablation has values for {values.shape[grouped]} senders, but the "
                f"graph has {len(graph.senders)}: make it with the same graph."
            )
        if self.group is not None:
            values = values[self.group[prompt]]
        if values.ndim == 2:
            values = values[:, None]
        rest = enter(model, graph, task.clean[prompt]).rest
        shape = (values.shape[0], *rest.shape)
        return jnp.broadcast_to(values, shape).astype(rest.dtype)


class Task(eqx.Module):
    """Prompts and what is measured on them.

    Args:
        clean: prompts on which the model does the task, `Prompts` or tokens
            `[batch, seq]` (padded on the right).
        corrupt: the counterpart of each prompt, token by token; `None` if the ablation
            does without.
        metric: what the circuit is to preserve; more is better.
        ablation: what the rest of the model is replaced by.

    Raises:
        PositionError: prompts and counterparts of different lengths.
        ShapeError: tokens that are not `[batch, seq]`.

    Examples:
        >>> import mijax
        >>> metric = mijax.logit_difference(3, 4)
        >>> Task([[5, 6, 7]], [[5, 9, 7]], metric=metric).clean.shape
        (1, 3)
    """

    clean: Int[Array, "batch seq"]
    corrupt: Int[Array, "batch seq"] | None
    lengths: Int[Array, " batch"]
    metric: AbstractMetric
    ablation: AbstractAblation

    def __init__(
        self,
        clean: Any,
        corrupt: Any = None,
        *,
        metric: AbstractMetric,
        ablation: Any = None,
    ):
        if isinstance(clean, Prompts) and isinstance(corrupt, Prompts):
            aligned(clean, corrupt)
        self.clean, self.lengths = batch(clean)
        self.corrupt = None if corrupt is None else batch(corrupt)[0]
        if self.corrupt is not None and self.corrupt.shape != self.clean.shape:
            raise PositionError(
                f"Clean prompts have shape {self.clean.shape} and corrupt ones "
                f"{self.corrupt.shape}: give one counterpart of equal length for each."
            )
        check_metric(metric, self.clean, lengths=lengths_of(clean), vocab=None)
        self.metric = metric
        self.ablation = Counterfactual() if ablation is None else ablation
        if not isinstance(self.ablation, AbstractAblation):
            raise ShapeError(
                "A task takes an ablation such as mijax.circuits.Zero(), got "
                f"{type(self.ablation).__name__}."
            )
        group = getattr(self.ablation, "group", None)
        if group is not None and len(group) != len(self):
            raise ShapeError(
                f"The ablation has groups of {len(group)} prompts, but the task has "
                f"{len(self)}."
            )

    @classmethod
    def of(
        cls,
        pairs: Pairs,
        *,
        metric: AbstractMetric | None = None,
        ablation: AbstractAblation | None = None,
    ) -> "Task":
        """Makes a task of prompts and counterparts.

        Args:
            pairs: for instance `mijax.data.ioi(tokenizer, 100)`.
            metric: `pairs.logit_difference()` by default.
            ablation: what the rest of the model is replaced by.

        Returns:
            The task.
        """
        metric = pairs.logit_difference() if metric is None else metric
        return cls(pairs.clean, pairs.corrupt, metric=metric, ablation=ablation)

    def __len__(self) -> int:
        return self.clean.shape[0]


def batch(prompts: Any) -> tuple[Int[Array, "batch seq"], Int[Array, " batch"]]:
    """Returns tokens and lengths of prompts or of bare tokens."""
    if isinstance(prompts, Prompts):
        return prompts.tokens, prompts.lengths
    tokens = as_tokens(prompts)
    if tokens.ndim != 2:
        raise ShapeError(
            f"A task takes a batch of prompts, tokens [batch, seq]; got shape "
            f"{tokens.shape}."
        )
    return tokens, jnp.full(tokens.shape[0], tokens.shape[1], jnp.int32)


def rows(task: Task, chunk: int) -> list[tuple[np.ndarray, int]]:
    """Cuts prompts into chunks of one size; the last repeats its last prompt.

    Returns:
        For each chunk the indices of its prompts, and how many of them count.
    """
    n = len(task)
    cuts = []
    for start in range(0, n, chunk):
        index = np.minimum(np.arange(start, start + chunk), n - 1).astype(np.int32)
        cuts.append((index, min(chunk, n - start)))
    return cuts


def check_task(model: Any, task: Task) -> None:
    """Refuses a task of tokens that the model does not have.

    Raises:
        ShapeError: no model, or ids beyond its vocabulary, also of the metric.
        PositionError: prompts that are longer than its context.
    """
    check_model(model)
    check_prompts(model, task.clean)
    if not isinstance(task.lengths, Tracer):
        check_unpadded(model, np.asarray(task.lengths), task.clean.shape[1])
    seq = task.clean.shape[1]
    task.metric.check(len(task), seq=seq)
    task.metric.check_tokens(site_shapes(model, seq).logits.shape[-1])
