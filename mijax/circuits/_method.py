"""`discover`: one verb for every discovery method."""

import abc
import warnings
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import OutputError
from mijax._progress import Progress, reports
from mijax.circuits._scores import Level, Scores, merged, standard_error
from mijax.circuits._task import Task, check_task, rows, stream_shape
from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._streams import Model
from mijax.core.internal import Journal, checked

ZERO = (
    "All scores are zero: the metric has no gradient where it was taken. A divergence "
    "from the model's own output has none at the full model; use another metric, "
    "integrated gradients, or an exact method."
)
MEMORY = 2**30


class Options(eqx.Module):
    """How a discovery runs; nothing here changes its result.

    Attributes:
        progress: called with what is done and the total; `None` draws a bar after three
            seconds in a terminal or notebook, `False` none.
        resume: file in which partial scores are kept, and from which an interrupted
            discovery goes on.
        memory: bytes of working memory to aim at.
        keep_prompts: keep every prompt's own scores.
    """

    progress: Progress = None
    resume: str | None = None
    memory: int = MEMORY
    keep_prompts: bool = False


class AbstractMethod(eqx.Module):
    """A discovery method: a frozen value."""

    # Shown to users who give something else.
    example: ClassVar[str] = "circuits.EAPIG(steps=5)"

    @abc.abstractmethod
    def discover(
        self, model: Model, graph: Graph, task: Task, options: Options
    ) -> Scores:
        """Scores a graph."""


class AbstractAttribution(AbstractMethod):
    """A method that scores one prompt at a time."""

    level: eqx.AbstractVar[Level]

    @abc.abstractmethod
    def attribute(
        self, model: Model, graph: Graph, task: Task, prompt: Int[Array, ""]
    ) -> Float[Array, "..."]:
        """Returns the scores in one prompt."""

    def shape(self, model: Model, graph: Graph, task: Task) -> tuple[int, ...]:
        """Returns the shape of the scores."""
        if self.level == "edge":
            return graph.edges.shape
        embed = stream_shape(model, graph, task).shape[-1]
        return (len(graph.senders), embed)[: 1 + (self.level == "neuron")]

    def prepare(self, model: Model) -> Model:
        """Returns the model that is differentiated; the same by default."""
        return model

    def discover(
        self, model: Model, graph: Graph, task: Task, options: Options
    ) -> Scores:
        """Averages over prompts, chunk by chunk."""
        if options.resume is not None and options.keep_prompts:
            raise OutputError("Scores of every prompt cannot be resumed: choose one.")
        model = self.prepare(model)
        chunks = rows(task, fit(model, graph, task, options.memory))
        known = np.zeros((2, *self.shape(model, graph, task)), np.float32)
        sizes = [count for _, count in chunks]
        with Journal(options.resume, (model, graph, task, self, sizes)) as journal:
            journal.load(known)
            moments, kept = jnp.asarray(known), []
            for i, (index, count) in enumerate(chunks):
                if i < journal.done:
                    continue
                found = _chunk(self, model, graph, task, jnp.asarray(index))[:count]
                moments = merged(moments, int(index[0]), found)
                if options.keep_prompts:
                    kept.append(np.asarray(found))
                if options.progress:
                    moments.block_until_ready()
                    options.progress(int(index[count - 1]) + 1, len(task))
                if journal.due():
                    journal.save(np.asarray(moments), i + 1)
        mean, error = moments[0], standard_error(moments[1], len(task))
        if not bool(jnp.any(mean)):
            warnings.warn(ZERO, stacklevel=5)
        prompts = np.concatenate(kept) if kept else None
        return Scores(mean, error, prompts, graph, self.level, repr(self))


@reports("Discovery")
@checked
def discover(
    model: Model,
    task: Task,
    method: AbstractMethod,
    *,
    graph: Graph | None = None,
    progress: Progress = None,
    resume: str | None = None,
    memory: int = MEMORY,
    keep_prompts: bool = False,
) -> Scores:
    """Scores how much each part of a model matters for a task.

    Args:
        model: any model whose blocks read and write a stream, or a `StreamModel`.
        task: prompts, metric and ablation.
        method: for instance `EAPIG(steps=5)`.
        graph: senders and receivers; `Graph.of(model)` by default.
        progress: called with what is done and the total; `None` draws a bar after three
            seconds in a terminal or notebook, `False` none.
        resume: file in which partial scores are kept, and from which an interrupted
            discovery goes on.
        memory: bytes of working memory to aim at.
        keep_prompts: keep every prompt's own scores, for `stability`.

    Returns:
        A score for every edge, node or neuron: how much the metric falls when it is
        ablated, with its standard error over prompts.

    Raises:
        SiteError: the model's blocks do not say how they read and write.
        ShapeError: tokens that the model does not have.
        OutputError: a file to resume from that is of another discovery.
        ConfigError: a method that is a name or a class.

    Examples:
        >>> import jax, mijax
        >>> from mijax import circuits
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> metric = mijax.logit_difference(3, 4)
        >>> task = circuits.Task([[5, 6, 7]], [[5, 9, 7]], metric=metric)
        >>> scores = circuits.discover(model, task, circuits.EAPIG(steps=5))
        >>> scores.values.shape  # sender, receiver
        (16, 40)
    """
    check_task(model, task)
    graph = Graph.of(model) if graph is None else graph
    options = Options(progress, resume, memory, keep_prompts)
    return method.discover(model, graph, task, options)


@eqx.filter_jit
def _chunk(
    method: AbstractAttribution,
    model: Model,
    graph: Graph,
    task: Task,
    prompts: Int[Array, " n"],
) -> Float[Array, "n ..."]:
    """Scores some prompts."""
    return jax.vmap(lambda i: method.attribute(model, graph, task, i))(prompts)


def fit(model: Model, graph: Graph, task: Task, memory: int) -> int:
    """Returns how many prompts go through a forward and backward at once."""
    stream = stream_shape(model, graph, task)
    # A receiver holds its input, its normalised input and both their gradients.
    arrays = 5 * len(graph.receivers) + 3 * len(graph.senders)
    each = arrays * stream.size * stream.dtype.itemsize
    return max(1, min(len(task), memory // each))
