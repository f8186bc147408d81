"""ACDC: edges removed one after the other, from the logits back to the input.

The sequential algorithm decides on one edge after the other, and most of its decisions
are the same: remove. So many lanes run at once, each of them the removal of one more
edge, given that those before it are decided as guessed. Decisions count up to the first
wrong guess, which is itself decided; the lanes after it become guesses.
"""

from collections.abc import Sequence
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from mijax._errors import ConfigError, nearest
from mijax._progress import Progress, reports
from mijax.circuits._method import MEMORY, AbstractMethod, Options
from mijax.circuits._scores import Scores
from mijax.circuits._task import Task
from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._streams import Model, with_blocks
from mijax.circuits.methods._search import COUNTS, Evaluate, Kept, Search, steps_of
from mijax.circuits.methods._suffix import fit_prompts, run_clean, run_masks
from mijax.core import AbstractModel
from mijax.core.internal import Journal, checked

ORDERS = ("late", "early")


class ACDC(AbstractMethod):
    r"""Automatic circuit discovery (Conmy et al. 2023, arXiv:2304.14997).

    Receivers are visited from the logits back to the input. For each, one sender after
    the other is replaced by its reference, given all that was removed before; it stays
    removed if the metric, averaged over prompts, then falls by less than the threshold.
    Receivers of a head or an MLP that nobody reads any more lose their senders without
    a run.

    More of the metric is better: of a divergence or a loss give minus it, such as
    `mijax.negative(mijax.kl(...))`.

    Many removals run at once, with guesses of the decisions before them; the circuit
    is that of deciding one by one, up to rounding of the metric.

    Attributes:
        threshold: largest fall of the metric that removes an edge, in its units.
        batch: removals that run at once; 1 is the sequential algorithm.
        order: senders from the last to the first (`"late"`, the published order) or
            from the first to the last (`"early"`).
        whole: test every query, key and value without any sender before testing sender
            by sender, as the published code does.
        absolute: compare the size of the change, whatever its sign.
    """

    threshold: float = 0.01
    batch: int = eqx.field(static=True, default=32)
    order: Literal["late", "early"] = eqx.field(static=True, default="late")
    whole: bool = eqx.field(static=True, default=True)
    absolute: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        """Refuses an order that does not exist and an empty batch."""
        if self.order not in ORDERS:
            close = nearest(self.order, ORDERS)
            raise ConfigError(f"There is no order {self.order!r}.{close}")
        if self.batch < 1:
            raise ConfigError(f"A batch has at least one removal, got {self.batch}.")

    def discover(
        self, model: Model, graph: Graph, task: Task, options: Options
    ) -> Scores:
        """Returns 1 for every edge that is kept and 0 for the others."""
        found = _sweep(self, model, graph, task, [self.threshold], options)
        values = jnp.asarray(found.edges[0], jnp.float32)
        return Scores(values, None, None, graph, "edge", repr(self))


class ACDCSweep(eqx.Module):
    """The circuits that ACDC finds at several thresholds.

    Attributes:
        thresholds: the thresholds.
        edges: the edges that each circuit keeps.
        whole: the receivers that were not cut off as a whole.
        metric: the metric of each circuit, averaged over prompts.
        tested: removals that were decided: the forward passes over all prompts that the
            sequential algorithm needs.
        forwards: forward passes over all prompts, among them those that guessed wrong.
        calls: calls of the device.
        graph: senders and receivers.
        method: how they were found.
    """

    thresholds: Float[np.ndarray, " threshold"]
    edges: Bool[np.ndarray, "threshold sender receiver"]
    whole: Bool[np.ndarray, "threshold receiver"]
    metric: Float[np.ndarray, " threshold"]
    tested: Int[np.ndarray, " threshold"]
    forwards: Int[np.ndarray, " threshold"]
    calls: Int[np.ndarray, " threshold"]
    graph: Graph = eqx.field(static=True)
    method: str = eqx.field(static=True)

    @property
    def scores(self) -> Scores:
        """The largest threshold at which each edge is kept, 0 if there is none.

        A ranking of edges. Circuits of two thresholds need not be nested: a curve
        through published points is drawn from `edges`.
        """
        kept = np.where(self.edges, self.thresholds[:, None, None], 0).max(0)
        values = jnp.asarray(kept, jnp.float32)
        return Scores(values, None, None, self.graph, "edge", self.method)


@reports("ACDC")
@checked
def acdc_thresholds(
    model: Model,
    task: Task,
    thresholds: Any,
    *,
    method: ACDC | None = None,
    graph: Graph | None = None,
    progress: Progress = None,
    resume: str | None = None,
    memory: int = MEMORY,
) -> ACDCSweep:
    """Runs ACDC at several thresholds.

    One program serves all of them, and the decisions at one threshold are the guesses
    at the next: give thresholds in order.

    Args:
        model: any model whose blocks define `connect`.
        task: prompts, metric (more is better) and ablation.
        thresholds: the thresholds, in units of the metric.
        method: everything else about ACDC; `ACDC()` by default.
        graph: senders and receivers; `Graph.of(model)` by default.
        progress: called with what is done and the total; `None` draws a bar after three
            seconds in a terminal or notebook, `False` none.
        resume: file in which partial results are kept, and from which an interrupted
            sweep goes on.
        memory: bytes of working memory to aim at.

    Returns:
        The circuit at every threshold, and what it cost.

    Raises:
        SiteError: the model's blocks do not say how they read and write.
        OutputError: a file to resume from that is of another sweep.

    Examples:
        >>> import jax, mijax
        >>> from mijax import circuits
        >>> model = mijax.testing.tiny_attention_only(jax.random.key(0))
        >>> metric = mijax.logit_difference(3, 4)
        >>> task = circuits.Task([[5, 6, 7]], [[5, 9, 7]], metric=metric)
        >>> found = circuits.acdc_thresholds(model, task, [10.0, 0.0])
        >>> int(found.edges[0].sum())  # nothing in this model matters that much
        0
    """
    graph = Graph.of(model) if graph is None else graph
    method = ACDC() if method is None else method
    options = Options(progress, resume, memory)
    return _sweep(method, model, graph, task, thresholds, options)


def _sweep(
    method: ACDC,
    model: Model,
    graph: Graph,
    task: Task,
    thresholds: Any,
    options: Options,
) -> ACDCSweep:
    """Searches at every threshold; the decisions at one are the guesses at the next."""
    model = with_blocks(model, "ACDC")
    thresholds = np.asarray(thresholds, np.float64).reshape(-1)
    steps = steps_of(graph, late=method.order == "late", whole=method.whole)
    evaluate = _evaluator(model, graph, task, method.batch, options.memory)
    searches: list[Search] = []
    with Journal(options.resume, (model, graph, task, method, thresholds)) as journal:
        guess = np.zeros(len(steps), bool)
        blank = Search(graph, steps, 0.0, absolute=False, guess=guess).state()
        log = np.zeros((len(thresholds), len(blank)))
        journal.load(log)

        def report() -> None:
            at, i = searches[-1].at, len(searches) - 1
            if options.progress:
                options.progress(i * len(steps) + at, len(thresholds) * len(steps))
            if journal.due():
                log[i] = searches[i].state()
                journal.save(log, i)

        for i, threshold in enumerate(thresholds):
            absolute = method.absolute
            search = Search(graph, steps, threshold, absolute=absolute, guess=guess)
            if log[i].any():
                search.restore(log[i])
            searches.append(search)
            guess = search.run(evaluate, method.batch, report).guess
            log[i] = search.state()
    edges, whole = zip(*(search.kept for search in searches), strict=True)
    tested, forwards, calls = (
        np.array([search.count[name] for search in searches]) for name in COUNTS
    )
    return ACDCSweep(
        thresholds=thresholds,
        edges=np.stack(edges),
        whole=np.stack(whole),
        metric=np.array([search.metric for search in searches]),
        tested=tested,
        forwards=forwards,
        calls=calls,
        graph=graph,
        method=repr(method),
    )


def _evaluator(
    model: AbstractModel, graph: Graph, task: Task, batch: int, memory: int
) -> Evaluate:
    """Returns the function that runs circuits, all calls with one compiled program."""
    clean = run_clean(model, graph, task)
    chunk = fit_prompts(clean, graph, batch, memory)

    def evaluate(circuits: Sequence[Kept], first: int) -> np.ndarray:
        edges = [one.edges for one in circuits]
        edges += [graph.edges] * (batch - len(edges))
        masks, start = jnp.asarray(np.stack(edges)), jnp.int32(first)
        found = run_masks(model, graph, task, clean, masks, first=start, chunk=chunk)
        return np.asarray(found)[: len(circuits)]

    return evaluate
