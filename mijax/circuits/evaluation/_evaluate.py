"""What a model computes when only a circuit is left, and how faithful that is."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mijax._progress import Progress, reports
from mijax.circuits._circuit import Circuit
from mijax.circuits._method import MEMORY
from mijax.circuits._scores import Scores
from mijax.circuits._select import Select, top
from mijax.circuits._task import Task
from mijax.circuits.evaluation._areas import (
    MIB_FRACTIONS,
    Evaluation,
    Faithfulness,
    check_fractions,
)
from mijax.circuits.evaluation._measure import measured, several
from mijax.circuits.forward._streams import Model
from mijax.core.internal import checked


@reports("Run circuits")
@checked
def run_circuits(
    model: Model,
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
        progress: called with the runs that are done and their total; `None` draws a bar
            after three seconds in a terminal or notebook, `False` none.
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
    return measured(model, task, several(circuits), progress=progress, memory=memory)


@reports("Divergence")
@checked
def divergence(
    model: Model,
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
        progress: called with the runs that are done and their total; `None` draws a bar
            after three seconds in a terminal or notebook, `False` none.
        memory: bytes of working memory to aim at.

    Returns:
        The divergence of every circuit in every prompt.

    Raises:
        SiteError: a circuit of another model's graph.
        ConfigError: no circuit, or circuits of several graphs.

    Warns:
        UserWarning: a circuit has edges, but no path from the input to the logits.

    Examples:
        >>> from mijax import circuits
        >>> model = mijax.testing.tiny_attention_only(jax.random.key(0))
        >>> metric = mijax.logit_difference(3, 4)
        >>> task = circuits.Task([[5, 6, 7]], [[5, 9, 7]], metric=metric)
        >>> full = circuits.Circuit.full(circuits.Graph.of(model))
        >>> bool(abs(circuits.divergence(model, task, full)[0, 0]) < 1e-5)
        True
    """
    given = several(circuits)
    return measured(
        model, task, given, divergence=True, progress=progress, memory=memory
    )


@reports("Faithfulness")
@checked
def faithfulness(
    model: Model,
    task: Task,
    scores: Scores,
    *,
    fractions: Sequence[float | int] = MIB_FRACTIONS,
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
        progress: called with the runs that are done and their total; `None` draws a bar
            after three seconds in a terminal or notebook, `False` none.
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


@reports("Evaluate")
@checked
def evaluate(
    model: Model,
    task: Task,
    scores: Scores,
    *,
    fractions: Sequence[float | int] = MIB_FRACTIONS,
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
        progress: called with the runs that are done and their total; `None` draws a bar
            after three seconds in a terminal or notebook, `False` none.
        memory: bytes of working memory to aim at.

    Returns:
        Both areas and curves with intervals; `print` shows a table.

    Raises:
        ConfigError: fractions that do not increase, or a metric that is the same with
            all edges and with none.

    Examples:
        >>> from mijax import circuits
        >>> model = mijax.testing.tiny_attention_only(jax.random.key(0))
        >>> metric = mijax.logit_difference(3, 4)
        >>> task = circuits.Task([[5, 6, 7]], [[5, 9, 7]], metric=metric)
        >>> scores = circuits.discover(model, task, circuits.Random(seed=0))
        >>> found = circuits.evaluate(model, task, scores, fractions=(0.1, 0.5, 1))
        >>> [row.n_edges for row in found.table()]
        [0, 32, 81, 0, 32, 81]
    """
    signed, absolute = curves(
        *(model, task, scores, [False, True], fractions, select),
        progress=progress,
        memory=memory,
    )
    return Evaluation(signed, absolute, scores.method)


@reports("Curves")
def curves(
    model: Model,
    task: Task,
    scores: Scores,
    rankings: Sequence[bool],
    fractions: Sequence[float | int],
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
