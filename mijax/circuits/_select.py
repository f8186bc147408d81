"""From scores to circuits: the best, the best connected, those above a threshold."""

import heapq
import operator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from mijax._errors import ConfigError
from mijax.circuits._circuit import Circuit, among, owners
from mijax.circuits._scores import Scores
from mijax.core.internal import checked


@runtime_checkable
class Select(Protocol):
    """How a circuit of some size is chosen: `top`, `greedy`, or a function alike."""

    def __call__(self, scores: Scores, n: int, *, absolute: bool) -> Circuit:
        """Returns the circuit."""
        ...


@checked
def top(
    scores: Scores, n: Any, *, absolute: bool = False, prune: bool = True
) -> Circuit:
    """Takes the `n` best edges, nodes or neurons.

    Exactly `n` are taken, negative ones too if `n` is large, and then what is not on
    a path from the input to the logits is dropped. Of nodes, every edge between them
    is in; the input is a node like the others. Of neurons, a sender is in if any of
    its neurons is, and its other neurons are not.

    Args:
        scores: at any level.
        n: how many edges, nodes or neurons.
        absolute: rank by size, whatever the sign.
        prune: drop what is disconnected.

    Returns:
        The circuit.

    Raises:
        ConfigError: there are fewer than `n`, an `n` that is not an integer, or scores
            that are not numbers.

    Examples:
        >>> import jax, mijax
        >>> from mijax import circuits
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> metric = mijax.logit_difference(3, 4)
        >>> task = circuits.Task([[5, 6, 7]], [[5, 9, 7]], metric=metric)
        >>> scores = circuits.discover(model, task, circuits.EAP())
        >>> circuits.top(scores, 40, prune=False).n_edges
        40
    """
    check_size(scores, n)
    key = ranking(scores, absolute)
    order = np.argsort(-key, axis=None, kind="stable")[:n]
    mask = np.zeros(key.shape, bool)
    mask.reshape(-1)[order] = True
    return made(scores, mask, prune)


@checked
def threshold(
    scores: Scores, at: float, *, absolute: bool = False, prune: bool = True
) -> Circuit:
    """Takes all edges, nodes or neurons that score `at` or more.

    Args:
        scores: at any level; see `top` for what nodes and neurons mean.
        at: least score.
        absolute: compare sizes, whatever the sign.
        prune: drop what is disconnected.

    Returns:
        The circuit.

    Raises:
        ConfigError: scores that are not numbers.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mijax.circuits import Graph
        >>> graph = Graph.decoder(1, heads=1)
        >>> values = jnp.array([0.5, -2.0, 1.0])  # input, a0.h0, m0
        >>> scores = Scores(values, None, None, graph, "node", "by hand")
        >>> threshold(scores, 0.5).names()
        ('m0 <- input', 'logits <- input', 'logits <- m0')
    """
    return made(scores, ranking(scores, absolute) >= at, prune)


@checked
def greedy(
    scores: Scores, n: Any, *, absolute: bool = False, prune: bool = True
) -> Circuit:
    """Grows a circuit from the logits, one edge at a time.

    The frontier are at first the edges into the logits. Its best edge is taken; if
    the sender is new, all edges into it (query, key and value) join the frontier.
    After `n` edges, senders that nothing reaches are pruned.

    Args:
        scores: of edges.
        n: how many edges.
        absolute: rank by size, whatever the sign.
        prune: drop what is disconnected.

    Returns:
        The circuit.

    Raises:
        ConfigError: scores of something else than edges, fewer than `n` edges, an `n`
            that is not an integer, or scores that are not numbers.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mijax.circuits import Graph
        >>> graph = Graph.decoder(1, heads=1)
        >>> values = jnp.zeros(graph.edges.shape).at[graph.edge("logits <- m0")].set(1)
        >>> values = values.at[graph.edge("m0 <- a0.h0")].set(3)
        >>> values = values.at[graph.edge("a0.h0<v> <- input")].set(2)
        >>> scores = Scores(values, None, None, graph, "edge", "by hand")
        >>> greedy(scores, 3).names()
        ('a0.h0<v> <- input', 'm0 <- a0.h0', 'logits <- m0')
    """
    if scores.level != "edge":
        raise ConfigError(
            f"Greedy selection takes scores of edges, got level {scores.level!r}: use "
            "top."
        )
    check_size(scores, n)
    key, graph = ranking(scores, absolute), scores.graph
    owner, real = owners(graph), graph.edges
    logits = len(graph.receivers) - 1
    into_logits = np.flatnonzero(real[:, logits]).tolist()
    frontier = [(-key[s, logits], s, logits) for s in into_logits]
    heapq.heapify(frontier)
    chosen, reached = np.zeros(real.shape, bool), set()
    while frontier and chosen.sum() < n:
        _, sender, receiver = heapq.heappop(frontier)
        chosen[sender, receiver] = True
        if sender in reached:
            continue
        reached.add(sender)
        for into in np.flatnonzero(owner == sender):
            for other in np.flatnonzero(real[:, into]):
                heapq.heappush(frontier, (-key[other, into], int(other), int(into)))
    return made(scores, chosen, prune)


@checked
def prune(circuit: Circuit) -> Circuit:
    """Drops what is not on a path from the input to the logits.

    A node stays if an edge leaves it and an edge enters it, at query, key or value;
    the input needs none that enters, the logits none that leaves. An edge stays if
    both its nodes do. This is repeated until nothing changes; then the neurons of
    nodes that are gone are dropped too.

    Args:
        circuit: any circuit.

    Returns:
        A circuit in which every edge is on a path, possibly the empty one.

    Examples:
        >>> from mijax.circuits import Graph
        >>> graph = Graph.decoder(2, heads=1)
        >>> names = ["m1 <- input", "logits <- m1", "m1 <- a0.h0"]
        >>> prune(Circuit.of(graph, names)).names()
        ('m1 <- input', 'logits <- m1')
    """
    graph, neurons = circuit.graph, circuit.neurons
    owner, edges = owners(graph), circuit.edges.copy()
    if neurons is not None:
        edges &= np.any(neurons, axis=1)[:, None]
    while True:
        entered = np.zeros(len(graph.senders), bool)
        entered[owner[:-1][edges[:, :-1].any(0)]] = True
        entered[: len(graph.inputs)] = True
        alive = np.any(edges, axis=1) & entered
        kept = edges & alive[:, None] & np.append(alive[owner[:-1]], True)
        if np.array_equal(kept, edges):
            break
        edges = kept
    if neurons is not None:
        neurons = neurons & alive[:, None]
    return Circuit(graph, edges, neurons)


def ranking(scores: Scores, absolute: bool) -> Float[np.ndarray, "..."]:
    """Returns what is ranked, minus infinity where there is no edge."""
    values = np.asarray(scores.values)
    if np.isnan(values).any():
        raise ConfigError(
            f"{int(np.isnan(values).sum())} scores are not numbers: score everything, "
            "or put 0 where nothing is known."
        )
    return np.where(scores.real, np.abs(values) if absolute else values, -np.inf)


def check_size(scores: Scores, n: int) -> None:
    """Refuses a size that there is not."""
    most = int(scores.real.sum())
    try:
        n = operator.index(n)
    except TypeError:
        raise ConfigError(
            f"n is a whole number of {scores.level}s, got {n!r}: for a share of them "
            f"write n=round(share * {most})."
        ) from None
    if not 0 <= n <= most:
        raise ConfigError(
            f"There are {most} {scores.level}s to choose from, got n={n}."
        )


def made(scores: Scores, mask: Bool[np.ndarray, "..."], wanted: bool) -> Circuit:
    """Makes a circuit of a mask at the level of the scores, and prunes if wanted."""
    graph, neurons = scores.graph, None
    if scores.level == "edge":
        edges = mask & graph.edges
    else:
        neurons = mask if scores.level == "neuron" else None
        inside = mask if neurons is None else np.any(neurons, axis=1)
        edges = among(graph, inside)
    circuit = Circuit(graph, edges, neurons)
    return prune(circuit) if wanted else circuit
