"""What circuits of the same size do that were drawn at random."""

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from mijax._errors import ConfigError
from mijax._progress import Progress, reports
from mijax.circuits._circuit import Circuit, owners
from mijax.circuits._method import MEMORY
from mijax.circuits._task import Task
from mijax.circuits.evaluation._measure import measured
from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._streams import Model
from mijax.core.internal import checked


class Null(eqx.Module):
    """A circuit's metric, and that of random circuits of its size.

    Attributes:
        circuit: metric of the circuit in each prompt.
        samples: metric of each random circuit in each prompt.
        n_edges: edges of each random circuit.
    """

    circuit: Float[np.ndarray, " prompt"]
    samples: Float[np.ndarray, "sample prompt"]
    n_edges: Int[np.ndarray, " sample"]

    @property
    def quantile(self) -> float:
        """Share of the random circuits whose mean metric is below the circuit's."""
        return float((self.samples.mean(1) < self.circuit.mean()).mean())

    @property
    def p_value(self) -> float:
        r"""Chance that a random circuit does as well, $(1 + k) / (1 + n)$.

        $k$ of the $n$ random circuits have a mean metric as large or larger; the
        circuit itself counts as one, so it is never 0.
        """
        as_good = (self.samples.mean(1) >= self.circuit.mean()).sum()
        return float((1 + as_good) / (1 + len(self.samples)))


@reports("Null")
@checked
def null(
    model: Model,
    task: Task,
    circuit: Circuit,
    *,
    samples: int = 100,
    key: PRNGKeyArray | None = None,
    paths: bool = True,
    progress: Progress = None,
    memory: int = MEMORY,
) -> Null:
    """Compares a circuit with random ones that have as many edges.

    Args:
        model: the model.
        task: prompts, metric (more is better) and ablation.
        circuit: a circuit of edges.
        samples: how many to draw.
        key: for the draw; `jax.random.key(0)` by default.
        paths: draw circuits in which every edge is on a path from the input to the
            logits: random edges, each joined to both by random edges. They have the
            circuit's number of edges, or the few less that a path makes necessary.
            Otherwise edges are drawn evenly, and in a large model a small circuit
            almost never connects: an easy null to beat.
        progress: called with the runs that are done and their total; `None` draws a bar
            after three seconds in a terminal or notebook, `False` none.
        memory: bytes of working memory to aim at.

    Returns:
        The distribution, and where the circuit is in it.

    Raises:
        ConfigError: an empty circuit, one that selects neurons, or no samples.

    Examples:
        >>> from mijax import circuits
        >>> model = mijax.testing.tiny_attention_only(jax.random.key(0))
        >>> metric = mijax.logit_difference(3, 4)
        >>> task = circuits.Task([[5, 6, 7]], [[5, 9, 7]], metric=metric)
        >>> some = Circuit.full(circuits.Graph.of(model)).without("a0.h0")
        >>> found = null(model, task, some, samples=9)
        >>> 0.1 <= found.p_value <= 1
        True
    """
    if not circuit.n_edges or circuit.neurons is not None or samples < 1:
        raise ConfigError(
            "A null takes a circuit with edges and without a choice of neurons, and "
            f"one sample at least; got {circuit} and {samples}."
        )
    key = jax.random.key(0) if key is None else key
    seeds = np.asarray(jax.random.bits(key, (samples,), "uint32"))
    draw = joined if paths else scattered
    drawn = [
        Circuit(circuit.graph, draw(circuit.graph, circuit.n_edges, int(seed)))
        for seed in seeds
    ]
    values = measured(model, task, [circuit, *drawn], progress=progress, memory=memory)
    return Null(values[0], values[1:], np.array([one.n_edges for one in drawn]))


def scattered(graph: Graph, n: int, seed: int) -> Bool[np.ndarray, "sender receiver"]:
    """Draws `n` edges, each set of them as likely as any other."""
    random, real = np.random.default_rng(seed), np.argwhere(graph.edges)
    edges = np.zeros(graph.edges.shape, bool)
    edges[tuple(random.permutation(real)[:n].T)] = True
    return edges


def joined(graph: Graph, n: int, seed: int) -> Bool[np.ndarray, "sender receiver"]:
    """Draws up to `n` edges, each on a path from the input to the logits.

    Edges come in random order. One whose sender or receiver is not on a path yet is
    joined by a random walk, back to the input and on to the logits, if there is room.
    """
    random, owner = np.random.default_rng(seed), owners(graph)
    edges = np.zeros(graph.edges.shape, bool)
    alive = np.zeros(len(graph.senders), bool)
    alive[: len(graph.inputs)] = True
    room = n
    for sender, receiver in random.permutation(np.argwhere(graph.edges)):
        if room == 0:
            break
        if edges[sender, receiver]:
            continue
        walk = {(int(sender), int(receiver))}
        at = int(sender)
        while not alive[at]:
            into = int(random.choice(np.flatnonzero(owner == at)))
            at = int(random.choice(np.flatnonzero(graph.edges[:, into])))
            walk.add((at, into))
        at = int(owner[receiver])
        while at >= 0 and not alive[at]:
            to = int(random.choice(np.flatnonzero(graph.edges[at])))
            walk.add((at, to))
            at = int(owner[to])
        if len(walk) > room:
            continue
        room -= len(walk)
        for one, other in walk:
            edges[one, other] = True
            alive[[one, *([owner[other]] if owner[other] >= 0 else [])]] = True
    return edges
