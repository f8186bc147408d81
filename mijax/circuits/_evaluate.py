"""What a model computes when only a circuit is left: many circuits in one program."""

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mijax._errors import ConfigError, SiteError
from mijax.circuits._areas import (
    MIB_FRACTIONS,
    Evaluation,
    Faithfulness,
    check_fractions,
)
from mijax.circuits._circuit import Circuit
from mijax.circuits._connected import Gate, connected, enter, score
from mijax.circuits._graph import Graph
from mijax.circuits._method import Progress
from mijax.circuits._scores import Scores
from mijax.circuits._select import Select, prune, top
from mijax.circuits._task import Task, rows
from mijax.core import AbstractModel
from mijax.core._check import site_shapes
from mijax.core._references import KL

MEMORY = 2**30


def run_circuits(
    model: AbstractModel,
    task: Task,
    circuits: Circuit | Sequence[Circuit],
    *,
    progress: Progress = None,
    memory: int = MEMORY,
) -> Float[np.ndarray, "circuit prompt"]:
    """Measures circuits: every other edge is replaced by the task's ablation.

    A sender inside the circuit sends what it computes from what is left of its
    inputs. Neurons that are not in the circuit are replaced on every edge. Circuits
    of any size run in one compiled program, equal ones once.

    Args:
        model: the model.
        task: prompts, metric and ablation.
        circuits: one circuit or several of one graph.
        progress: called with the runs that are done and their total.
        memory: bytes of working memory to aim at.

    Returns:
        The task's metric of every circuit in every prompt.

    Raises:
        SiteError: a circuit of another model's graph.
        ConfigError: no circuit, or circuits of several graphs.

    Warns:
        UserWarning: a circuit has edges, but no path from the input to the logits, so
            that nothing of the prompt gets through it. The empty circuit is let pass:
            it is the model with everything replaced.

    Examples:
        >>> from mijax import circuits
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> metric = mijax.logit_difference(3, 4)
        >>> task = circuits.Task([[5, 6, 7]], [[5, 9, 7]], metric=metric)
        >>> full = circuits.Circuit.full(circuits.Graph.of(model))
        >>> circuits.run_circuits(model, task, [full, full.without("m0")]).shape
        (2, 1)
    """
    given = several(circuits)
    warn_of_dead_ends(given)
    return measured(model, task, given, progress=progress, memory=memory)


def divergence(
    model: AbstractModel,
    task: Task,
    circuits: Circuit | Sequence[Circuit],
    *,
    progress: Progress = None,
    memory: int = MEMORY,
) -> Float[np.ndarray, "circuit prompt"]:
    r"""Measures how far circuits' outputs are from the model's, in nats.

    $KL(p_\mathrm{model} \| p_\mathrm{circuit})$ over the whole vocabulary, averaged
    over the positions that the task's metric reads.

    Args:
        model: the model.
        task: prompts and ablation; of its metric only the positions matter.
        circuits: one circuit or several of one graph.
        progress: called with the runs that are done and their total.
        memory: bytes of working memory to aim at.

    Returns:
        The divergence of every circuit in every prompt.

    Raises:
        SiteError: a circuit of another model's graph.
        ConfigError: no circuit, or circuits of several graphs.

    Warns:
        UserWarning: a circuit has edges, but no path from the input to the logits.
    """
    given = several(circuits)
    warn_of_dead_ends(given)
    return measured(
        model, task, given, divergence=True, progress=progress, memory=memory
    )


def faithfulness(
    model: AbstractModel,
    task: Task,
    scores: Scores,
    *,
    fractions: Sequence[float] = MIB_FRACTIONS,
    absolute: bool = False,
    select: Select = top,
    progress: Progress = None,
    memory: int = MEMORY,
) -> Faithfulness:
    """Measures circuits of growing size that are chosen by one ranking.

    Args:
        model: the model.
        task: prompts, metric and ablation; not those that the scores were found on,
            if the result is to say more than how well they fit.
        scores: of edges, nodes or neurons.
        fractions: of all edges (nodes, neurons) to select; the published ones.
        absolute: rank by size, whatever the sign.
        select: `top`, `greedy`, or either with `functools.partial(top, prune=False)`.
        progress: called with the runs that are done and their total.
        memory: bytes of working memory to aim at.

    Returns:
        The curve, the areas and their intervals.

    Raises:
        ConfigError: fractions that do not increase, or a metric that is the same with
            all edges and with none.

    Examples:
        >>> from mijax import circuits
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> metric = mijax.logit_difference(3, 4)
        >>> task = circuits.Task([[5, 6, 7]], [[5, 9, 7]], metric=metric)
        >>> scores = circuits.discover(model, task, circuits.EAP())
        >>> curve = circuits.faithfulness(model, task, scores, fractions=(0.5, 1))
        >>> float(curve.curve.mean[-1])
        1.0
    """
    found = curves(
        *(model, task, scores, [absolute], fractions, select),
        progress=progress,
        memory=memory,
    )
    return found[0]


def evaluate(
    model: AbstractModel,
    task: Task,
    scores: Scores,
    *,
    fractions: Sequence[float] = MIB_FRACTIONS,
    select: Select = top,
    progress: Progress = None,
    memory: int = MEMORY,
) -> Evaluation:
    """Evaluates scores as the Mechanistic Interpretability Benchmark does.

    CPR comes from circuits of the signed ranking and CMD from those of the ranking by
    size (Mueller et al. 2025, arXiv:2504.13151), both over a linear axis of fractions
    from 0.001 to 1, so that CPR is 0.999 and CMD 0 where every circuit does what the
    model does. A random ranking of a large model is at 0.25 and 0.749: nothing gets
    through until all edges are there.

    Args:
        model: the model.
        task: prompts, metric and ablation.
        scores: of edges, nodes or neurons.
        fractions: of all edges (nodes, neurons) to select; the published ones.
        select: `top`, or `greedy`.
        progress: called with the runs that are done and their total.
        memory: bytes of working memory to aim at.

    Returns:
        Both areas and curves with intervals; `print` shows a table.

    Raises:
        ConfigError: fractions that do not increase, or a metric that is the same with
            all edges and with none.
    """
    signed, absolute = curves(
        *(model, task, scores, [False, True], fractions, select),
        progress=progress,
        memory=memory,
    )
    return Evaluation(signed, absolute, scores.method)


def curves(
    model: AbstractModel,
    task: Task,
    scores: Scores,
    rankings: Sequence[bool],
    fractions: Sequence[float],
    select: Select,
    *,
    progress: Progress,
    memory: int,
) -> list[Faithfulness]:
    """Measures the circuits of some rankings, and both ends, in one go."""
    check_fractions(fractions)
    most = int(scores.real.sum())
    sizes = [int(fraction * most) for fraction in fractions]
    chosen = [
        select(scores, n, absolute=absolute) for absolute in rankings for n in sizes
    ]
    ends = [Circuit.full(scores.graph), Circuit.empty(scores.graph)]
    found = measured(model, task, ends + chosen, progress=progress, memory=memory)
    results = []
    for i in range(len(rankings)):
        here = slice(i * len(sizes), (i + 1) * len(sizes))
        edges = np.array([circuit.n_edges for circuit in chosen[here]])
        x = np.asarray(fractions, np.float64)
        results.append(Faithfulness(x, edges, found[2:][here], found[0], found[1]))
    return results


def several(circuits: Circuit | Sequence[Circuit]) -> list[Circuit]:
    """Returns circuits of one graph as a list."""
    given = [circuits] if isinstance(circuits, Circuit) else list(circuits)
    if not given:
        raise ConfigError("There is no circuit to run: give one at least.")
    if len({circuit.graph for circuit in given}) > 1:
        raise ConfigError(
            "The circuits are of different graphs: make all with the same one."
        )
    return given


def warn_of_dead_ends(circuits: Sequence[Circuit]) -> None:
    """Warns of circuits that nothing can get through."""
    for i, circuit in enumerate(circuits):
        if circuit.n_edges and not prune(circuit).n_edges:
            warnings.warn(
                f"Circuit {i} has {circuit.n_edges} edges, but no path from the input "
                "to the logits: nothing of the prompt gets through it. Take more "
                "edges, or select with greedy.",
                stacklevel=3,
            )
            return


def measured(
    model: AbstractModel,
    task: Task,
    circuits: Sequence[Circuit],
    *,
    divergence: bool = False,
    progress: Progress = None,
    memory: int = MEMORY,
) -> Float[np.ndarray, "circuit prompt"]:
    """Runs circuits of one graph in chunks of circuits and prompts."""
    graph = circuits[0].graph
    check_graph(model, graph)
    place, unique = distinct(circuits)
    lanes = max(1, memory // cost(model, graph, task, divergence))
    height = even(len(unique), lanes)
    width = max(1, min(len(task), lanes // height))
    total, done = len(unique) * len(task), 0
    parts = []
    for index, count in rows(task, width):
        prompts, column = jnp.asarray(index), []
        for start in range(0, len(unique), height):
            some = unique[start : start + height]
            edges, neurons = stacked(some, height)
            found = _chunk(model, graph, task, edges, neurons, prompts, divergence)
            column.append(found[: len(some), :count])
            done += len(some) * count
            if progress is not None:
                found.block_until_ready()
                progress(done, total)
        parts.append(column)
    values = [np.concatenate([np.asarray(a) for a in column]) for column in parts]
    return np.concatenate(values, axis=1)[place]


def check_graph(model: AbstractModel, graph: Graph) -> None:
    """Refuses a circuit of another model."""
    own = Graph.of(model, split_input=len(graph.inputs) > 1)
    if graph != own:
        raise SiteError(
            f"The circuits are of a graph with {len(graph.senders)} senders and "
            f"{graph.n_edges} edges, the model's has {len(own.senders)} and "
            f"{own.n_edges}: make them with Graph.of(model)."
        )


def distinct(circuits: Sequence[Circuit]) -> tuple[list[int], list[Circuit]]:
    """Returns the circuits without repetition, and where each of them is."""
    index: dict[Circuit, int] = {}
    place = [index.setdefault(circuit, len(index)) for circuit in circuits]
    return place, list(index)


def even(count: int, most: int) -> int:
    """Returns how many circuits go through at once.

    Padded a little, so that calls with about as many circuits share a program.
    """
    padded = count if count <= 4 else -(-count // 4) * 4
    return math.ceil(padded / math.ceil(padded / most))


def stacked(
    circuits: Sequence[Circuit], size: int
) -> tuple[Bool[Array, "circuit sender receiver"], Any]:
    """Stacks masks; the last circuit is repeated up to the size."""
    padded = [*circuits, *[circuits[-1]] * (size - len(circuits))]
    edges = jnp.asarray(np.stack([circuit.edges for circuit in padded]))
    known = next((c.neurons for c in padded if c.neurons is not None), None)
    if known is None:
        return edges, None
    ones = np.ones_like(known)
    neurons = [ones if c.neurons is None else c.neurons for c in padded]
    return edges, jnp.asarray(np.stack(neurons))


@eqx.filter_jit
def _chunk(
    model: AbstractModel,
    graph: Graph,
    task: Task,
    edges: Bool[Array, "circuit sender receiver"],
    neurons: Bool[Array, "circuit sender embed"] | None,
    prompts: Int[Array, " prompt"],
    divergence: bool,
) -> Float[Array, "circuit prompt"]:
    """Measures some circuits in some prompts."""
    gates = jax.tree.map(lambda a: a.astype(jnp.float32), Gate(edges, neurons))

    def of_prompt(prompt: Array) -> Array:
        reference = task.ablation.reference(model, graph, task, prompt)
        inputs = enter(model, graph, task.clean[prompt])
        run: Callable[..., Any] = functools.partial(
            connected, model, graph, inputs, prompt=prompt
        )
        metric = task.metric
        if divergence:
            read = run().final[metric.reads(prompt, task.clean.shape[1])]
            logits = model.unembed(model.normalise(read), None)
            position: Any = metric.position
            metric = KL(jax.nn.log_softmax(logits, axis=-1), position)

        def of_circuit(gate: Gate) -> Array:
            final = run(gate=gate, reference=reference).final
            return score(model, metric, final, prompt)

        return jax.vmap(of_circuit)(gates)

    return jax.vmap(of_prompt, out_axes=1)(prompts)


def cost(model: AbstractModel, graph: Graph, task: Task, divergence: bool) -> int:
    """Returns about how many bytes one circuit in one prompt takes."""
    seq = task.clean.shape[1]
    shapes = site_shapes(model, seq)
    resid, vocab = shapes.blocks.resid_pre, shapes.logits.shape[-1]
    # What senders have sent, before and after a block writes; what the receivers of
    # a block read, its norm, and the projections of it.
    arrays = 2 * len(graph.senders) + 5 * graph.readers
    position = task.metric.position
    reads = 1 if position is None else int(np.prod(position.shape[1:]))
    whole = divergence or task.metric.ids(jnp.int32(0)) is None
    return resid.dtype.itemsize * (
        arrays * seq * resid.shape[-1] + 3 * reads * vocab * whole
    )
