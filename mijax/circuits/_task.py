"""What a circuit is found on: prompts, counterparts, a metric, an ablation."""

import abc
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import PositionError, ShapeError
from mijax.circuits.forward._connected import connected, enter
from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._stream import Inputs
from mijax.circuits.forward._streams import Model, StreamModel
from mijax.core import AbstractMetric, AbstractModel
from mijax.core.internal import (
    Padded,
    as_tokens,
    check_metric,
    check_model,
    check_prompts,
    check_scores,
    checked_scores,
    known,
    length_of,
    lengths_of,
    masked_lengths,
)
from mijax.data import Pairs, Prompts, aligned


class AbstractAblation(eqx.Module):
    """What a sender is replaced by where an edge is not in the circuit."""

    @abc.abstractmethod
    def reference(
        self, model: Model, graph: Graph, task: "Task", prompt: Int[Array, ""]
    ) -> Float[Array, "sender seq embed"]:
        """Returns what every sender is replaced by in one prompt of a task."""


class Counterfactual(AbstractAblation):
    """Replaces by what the sender writes on the corrupt prompt (patching)."""

    def reference(
        self, model: Model, graph: Graph, task: "Task", prompt: Int[Array, ""]
    ) -> Float[Array, "sender seq embed"]:
        """Runs the corrupt prompt."""
        if task.corrupt is None:
            raise ShapeError(
                "A counterfactual needs corrupt prompts: give them to the task, or "
                "another ablation."
            )
        corrupt = example_of(task.corrupt, prompt)
        inputs = enter(model, graph, corrupt, length_of(task.masked(model), prompt))
        return connected(model, graph, inputs).senders


class Zero(AbstractAblation):
    """Replaces by zero."""

    def reference(
        self, model: Model, graph: Graph, task: "Task", prompt: Int[Array, ""]
    ) -> Float[Array, "sender seq embed"]:
        """Returns zeros."""
        like = enter_clean(model, graph, task, prompt).senders
        return jnp.zeros((len(graph.senders), *like.shape[1:]), like.dtype)


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
        self, model: Model, graph: Graph, task: "Task", prompt: Int[Array, ""]
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
        like = enter_clean(model, graph, task, prompt).senders
        shape = (values.shape[0], *like.shape[1:])
        return jnp.broadcast_to(values, shape).astype(like.dtype)


class Task(eqx.Module):
    """Prompts and what is measured on them.

    Args:
        clean: prompts on which the model does the task, `Prompts` or tokens
            `[batch, seq]` (padded on the right); of a `StreamModel` a tree of inputs,
            with an axis for the batch in front of every array.
        corrupt: the counterpart of each prompt, token by token; `None` if the ablation
            does without.
        metric: what the circuit is to preserve; more is better. Of a `StreamModel` also
            a function of the output, or of output and input.
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

    clean: Any
    corrupt: Any
    lengths: Int[Array, " batch"]
    metric: Any
    ablation: AbstractAblation
    padded: bool = eqx.field(static=True)

    def __init__(
        self,
        clean: Any,
        corrupt: Any = None,
        *,
        metric: Any,
        ablation: Any = None,
    ):
        if isinstance(clean, Prompts) and isinstance(corrupt, Prompts):
            aligned(clean, corrupt)
        self.clean, self.lengths = batch(clean)
        lengths = known(self.lengths)
        # Without padding nothing is masked, so that no number changes by rounding.
        self.padded = is_tokens(self.clean) and (
            lengths is None or bool(np.any(lengths < self.clean.shape[-1]))
        )
        self.corrupt = None if corrupt is None else batch(corrupt)[0]
        shapes = [shapes_of(inputs) for inputs in (self.clean, self.corrupt)]
        if corrupt is not None and shapes[0] != shapes[1]:
            raise PositionError(
                f"Clean prompts have shape {shapes[0]} and corrupt ones {shapes[1]}: "
                "give one counterpart of equal length for each."
            )
        if not is_tokens(self.clean):
            check_scores(metric)
        else:
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
        return jax.tree.leaves(self.clean)[0].shape[0]

    def masked(self, model: Any) -> Int[Array, " batch"] | None:
        """Return the lengths of prompts where a model has to mask padding."""
        return self.lengths if self.padded and not model.causal else None


def batch(prompts: Any) -> tuple[Any, Int[Array, " batch"]]:
    """Returns tokens and lengths of prompts or of bare tokens; a tree has length 0.

    Raises:
        ShapeError: tokens of one prompt, or inputs of different numbers.
    """
    if isinstance(prompts, Prompts):
        return prompts.tokens, prompts.lengths
    kind = getattr(prompts, "dtype", int)
    if isinstance(prompts, Mapping) or jnp.issubdtype(kind, jnp.floating):
        tree = jax.tree.map(jnp.asarray, prompts)
        if len({a.shape[:1] for a in jax.tree.leaves(tree)} - {()}) != 1:
            raise ShapeError(
                "A task takes a batch of inputs, with as many entries in every array; "
                f"got shapes {shapes_of(tree)}."
            )
        return tree, jnp.zeros(jax.tree.leaves(tree)[0].shape[0], jnp.int32)
    tokens = as_tokens(prompts)
    if tokens.ndim != 2:
        raise ShapeError(
            f"A task takes a batch of prompts, tokens [batch, seq]; got shape "
            f"{tokens.shape}."
        )
    return tokens, jnp.full(tokens.shape[0], tokens.shape[1], jnp.int32)


def is_tokens(inputs: Any) -> bool:
    """Returns True for tokens, False for a tree of other inputs."""
    return isinstance(inputs, jax.Array) and jnp.issubdtype(inputs.dtype, jnp.integer)


def example_of(inputs: Any, prompt: Any) -> Any:
    """Returns one example of a batch."""
    return jax.tree.map(lambda a: a[prompt], inputs)


def enter_clean(model: Model, graph: Graph, task: Task, prompt: Any) -> Inputs:
    """Embed a clean prompt of a task."""
    tokens = example_of(task.clean, prompt)
    return enter(model, graph, tokens, length_of(task.masked(model), prompt))


def shapes_of(inputs: Any) -> Any:
    """Returns the shape of an array, or those of a tree of arrays."""
    return jax.tree.map(lambda a: a.shape, inputs)


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
    """Refuses a task of inputs that the model does not take.

    Raises:
        ShapeError: no model, ids beyond its vocabulary, also of the metric, or inputs
            of other shapes.
        PositionError: prompts that are longer than its context.
    """
    if isinstance(model, StreamModel):
        shapes = shapes_of(example_of(task.clean, 0))
        if shapes != shapes_of(model.example):
            raise ShapeError(
                f"The model takes inputs of shape {shapes_of(model.example)}, the task "
                f"has {shapes}."
            )
        output = eqx.filter_eval_shape(model, model.example)
        checked_scores(task.metric, getattr(output, "shape", None), len(task))
        return
    check_model(model)
    if not is_tokens(task.clean):
        raise ShapeError(
            "Models of tokens take a task of tokens [batch, seq], got inputs of shape "
            f"{shapes_of(task.clean)}."
        )
    check_prompts(model, task.clean)
    seq = task.clean.shape[1]
    masked_lengths(model, Padded(task.clean, task.lengths), seq)
    task.metric.check(len(task), seq=seq)
    task.metric.check_tokens(vocab_of(model))


def vocab_of(model: AbstractModel) -> int:
    """Returns the number of logits."""

    def logits(model: AbstractModel) -> Array:
        token = jnp.zeros(1, jnp.int32)
        return model.unembed(model.normalise(model.embed(token, token)))

    return eqx.filter_eval_shape(logits, model).shape[-1]


def stream_shape(model: Model, graph: Graph, task: Task) -> jax.ShapeDtypeStruct:
    """Returns the shape of what a sender writes in one prompt, `[rows, embed]`."""

    def one(model: Model, clean: Any) -> Array:
        return enter(model, graph, example_of(clean, 0)).senders[0]

    return eqx.filter_eval_shape(one, model, task.clean)
