"""Is a circuit complete, and is all of it needed (Wang et al. 2022)?"""

from collections.abc import Sequence

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from mijax._errors import ConfigError, nearest
from mijax._progress import Progress, reports
from mijax.circuits._circuit import Circuit
from mijax.circuits._method import MEMORY
from mijax.circuits._select import prune
from mijax.circuits._task import Task
from mijax.circuits.evaluation._areas import bootstrap
from mijax.circuits.evaluation._measure import measured
from mijax.circuits.forward._streams import Model
from mijax.core import Interval
from mijax.core.internal import checked

Subsets = int | Sequence[Sequence[str]]


class Completeness(eqx.Module):
    r"""True if a circuit breaks as the model does.

    $|F(C \setminus K) - F(M \setminus K)|$ for sets of nodes $K$, where $F$ is the mean
    of the metric over prompts.

    Attributes:
        subsets: the sets $K$ of nodes that were removed from both.
        circuit: metric of the circuit without each.
        model: metric of the model without each.
    """

    subsets: tuple[tuple[str, ...], ...] = eqx.field(static=True)
    circuit: Float[np.ndarray, "subset prompt"]
    model: Float[np.ndarray, "subset prompt"]

    @property
    def gap(self) -> Interval:
        """The incompleteness score of each subset: the difference of means, absolute.

        An absolute value is never below 0, and neither are the ends of its interval.
        """
        return bootstrap((self.circuit - self.model).T, np.abs)

    @property
    def worst(self) -> tuple[str, ...]:
        """The subset with the largest gap."""
        return self.subsets[int(self.gap.mean.argmax())]


class Minimality(eqx.Module):
    r"""What each part of a circuit does.

    $\max_K |F(C \setminus (K \cup \{v\})) - F(C \setminus K)|$ for each part $v$, where
    $F$ is the mean of the metric over prompts.

    Attributes:
        parts: the nodes or edges $v$.
        subsets: the sets $K$; each is without $v$ when $v$ is tried.
        change: how much the metric falls when $v$ is removed too.
    """

    parts: tuple[str, ...] = eqx.field(static=True)
    subsets: tuple[tuple[str, ...], ...] = eqx.field(static=True)
    change: Float[np.ndarray, "subset part prompt"]

    @property
    def score(self) -> Interval:
        """The minimality score of each part: the largest change over the subsets.

        The interval is that of the subset which attains it. Near 0 the part is not
        needed, as far as these subsets tell.
        """
        best = np.abs(self.change.mean(-1)).argmax(0)
        at = self.change[best, np.arange(len(self.parts))]
        return bootstrap(at.T, np.abs)


@reports("Completeness")
@checked
def completeness(
    model: Model,
    task: Task,
    circuit: Circuit,
    *,
    subsets: Subsets = 16,
    key: PRNGKeyArray | None = None,
    progress: Progress = None,
    memory: int = MEMORY,
) -> Completeness:
    r"""Removes nodes from the circuit and from the model, and compares.

    A circuit that lacks a backup survives less than the model when a node is removed
    (Wang et al. 2022, arXiv:2211.00593). Everything on edges from and to a removed
    node is replaced by the task's ablation.

    Args:
        model: the model.
        task: prompts, metric and ablation.
        circuit: a circuit; it is pruned.
        subsets: sets of nodes to remove; or a number: every single node of the
            circuit, and so many random subsets of them, every node in with
            probability a half. The largest gap over all subsets is out of reach; this
            is a lower bound of it.
        key: for the random subsets; `jax.random.key(0)` by default.
        progress: called with the runs that are done and their total; `None` draws a bar
            after three seconds in a terminal or notebook, `False` none.
        memory: bytes of working memory to aim at.

    Returns:
        The metric of both without each subset.

    Raises:
        ConfigError: a circuit that nothing gets through, or a node that it lacks.

    Examples:
        >>> from mijax import circuits
        >>> model = mijax.testing.tiny_attention_only(jax.random.key(0))
        >>> metric = mijax.logit_difference(3, 4)
        >>> task = circuits.Task([[5, 6, 7]], [[5, 9, 7]], metric=metric)
        >>> full = Circuit.full(circuits.Graph.of(model))
        >>> found = completeness(model, task, full, subsets=[["a0.h0"]])
        >>> float(found.gap.mean[0])
        0.0
    """
    circuit = connected_part(circuit)
    parts = inner_nodes(circuit)
    chosen = drawn(subsets, parts, key, singles=True)
    whole = Circuit.full(circuit.graph)
    both = [one.without(*names) for one in (circuit, whole) for names in chosen]
    found = measured(model, task, both, progress=progress, memory=memory)
    return Completeness(chosen, found[: len(chosen)], found[len(chosen) :])


@reports("Minimality")
@checked
def minimality(
    model: Model,
    task: Task,
    circuit: Circuit,
    *,
    parts: Sequence[str] | None = None,
    subsets: Subsets = 8,
    key: PRNGKeyArray | None = None,
    progress: Progress = None,
    memory: int = MEMORY,
) -> Minimality:
    r"""Removes each part of a circuit, while others are removed too.

    A part may matter only when its backups are gone: hence the maximum over sets $K$
    (Wang et al. 2022, arXiv:2211.00593). It takes one run per part and set.

    Args:
        model: the model.
        task: prompts, metric and ablation.
        circuit: a circuit; it is pruned.
        parts: nodes or edges to try, all nodes but the input by default; for all edges
            give `circuit.names()`.
        subsets: sets of parts to remove, or how many to draw, every part in with
            probability a half; the empty set always is among them.
        key: for the random subsets; `jax.random.key(0)` by default.
        progress: called with the runs that are done and their total; it starts again
            for every set.
        memory: bytes of working memory to aim at.

    Returns:
        What each part changes, in each set.

    Raises:
        ConfigError: a circuit that nothing gets through, or a part that it lacks.

    Examples:
        >>> from mijax import circuits
        >>> model = mijax.testing.tiny_attention_only(jax.random.key(0))
        >>> metric = mijax.logit_difference(3, 4)
        >>> task = circuits.Task([[5, 6, 7]], [[5, 9, 7]], metric=metric)
        >>> full = Circuit.full(circuits.Graph.of(model))
        >>> found = minimality(model, task, full, parts=["a0.h0", "a1.h1"], subsets=0)
        >>> found.change.shape  # subset, part, prompt
        (1, 2, 1)
    """
    circuit = connected_part(circuit)
    known = (*inner_nodes(circuit), *circuit.names())
    parts = inner_nodes(circuit) if parts is None else tuple(parts)
    check_parts(parts, known)
    chosen = ((), *drawn(subsets, parts, key, known=known))
    found = []
    for names in chosen:
        # With a part put back that is in the set, or taken out that is not.
        toggled = [circuit.without(*(set(names) ^ {part})) for part in parts]
        runs = [circuit.without(*names), *toggled]
        values = measured(model, task, runs, progress=progress, memory=memory)
        sign = np.array([-1 if part in names else 1 for part in parts])
        found.append(sign[:, None] * (values[0] - values[1:]))
    return Minimality(parts, chosen, np.stack(found))


def connected_part(circuit: Circuit) -> Circuit:
    """Prunes a circuit; refuses one that nothing gets through."""
    pruned = prune(circuit)
    if not pruned.n_edges:
        raise ConfigError(
            f"The circuit has {circuit.n_edges} edges and no path from the input to "
            "the logits: there is nothing to remove. Take more edges."
        )
    return pruned


def inner_nodes(circuit: Circuit) -> tuple[str, ...]:
    """Returns the nodes of a circuit but input and logits."""
    ends = (*circuit.graph.inputs, "logits")
    return tuple(name for name in circuit.nodes() if name not in ends)


def check_parts(names: Sequence[str], known: Sequence[str]) -> None:
    """Refuses what is not in the circuit."""
    for name in names:
        if name not in known:
            raise ConfigError(f"{name!r} is not in the circuit.{nearest(name, known)}")


def drawn(
    subsets: Subsets,
    parts: Sequence[str],
    key: PRNGKeyArray | None,
    *,
    known: Sequence[str] | None = None,
    singles: bool = False,
) -> tuple[tuple[str, ...], ...]:
    """Returns the given subsets, or random ones."""
    if not isinstance(subsets, int):
        for names in subsets:
            check_parts(names, parts if known is None else known)
        return tuple(tuple(names) for names in subsets)
    key = jax.random.key(0) if key is None else key
    inside = np.asarray(jax.random.bernoulli(key, 0.5, (subsets, len(parts))))
    random = tuple(tuple(np.array(parts)[row].tolist()) for row in inside)
    return (*((part,) for part in parts if singles), *random)
