"""One search of ACDC: what is decided, what is guessed, what runs next."""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from mijax.circuits.forward._graph import Graph

ALL = -1
"""The sender of a step that cuts its receiver off from all of them."""

UNKNOWN = -1
COUNTS = ("tested", "forwards", "calls")


class Step(NamedTuple):
    """One removal to decide on."""

    receiver: int
    sender: int
    layer: int


class Kept(NamedTuple):
    """What is kept: edges, and receivers that were not cut off as a whole."""

    edges: Bool[np.ndarray, "sender receiver"]
    whole: Bool[np.ndarray, " receiver"]


class Lane(NamedTuple):
    """A circuit to run: that of lane `context` without what the step removes.

    With a context of -1 it is the circuit found so far.
    """

    step: int
    kept: Kept
    context: int


Evaluate = Callable[[Sequence[Kept], int], Float[np.ndarray, " lane"]]
"""Metrics of some circuits, which are full below a layer."""


def steps_of(graph: Graph, *, late: bool, whole: bool) -> list[Step]:
    """Lists all removals in the order in which they are decided.

    Args:
        graph: the graph.
        late: take senders from the last to the first; input senders keep their order.
        whole: cut queries, keys and values off as a whole before sender by sender.

    Returns:
        The steps, from the logits back to the input.
    """
    inputs = range(len(graph.inputs))
    others = range(len(graph.inputs), len(graph.senders))
    senders = [*reversed(others), *inputs] if late else [*inputs, *others]
    last = len(graph.receivers) - 1
    steps = [Step(last, sender, graph.n_layers) for sender in senders]
    layers, stages = range(graph.n_layers), graph.ports.stages
    for layer, stage in itertools.product(reversed(layers), reversed(stages)):
        first = graph.place(stage.names[0], layer)
        mine = list(reversed(range(first, first + stage.size)))
        if whole and stage.heads is not None:
            steps += [Step(receiver, ALL, layer) for receiver in mine]
        steps += [Step(receiver, s, layer) for receiver in mine for s in senders]
    return [s for s in steps if s.sender == ALL or graph.edges[s.sender, s.receiver]]


class Search:
    """ACDC at one threshold.

    Args:
        graph: the graph.
        steps: see `steps_of`.
        threshold: the fall of the metric from which on an edge is kept.
        absolute: compare the size of the change.
        guess: the removals that are expected to be undone, before anything is known.

    Attributes:
        circuit: what is kept so far.
        at: the first step that is not decided.
        metric: the metric of the circuit.
        guess: the latest estimate of each decision, `[step]`: is it kept?
        count: removals decided, forward passes and calls.
    """

    def __init__(
        self,
        graph: Graph,
        steps: list[Step],
        threshold: float,
        *,
        absolute: bool,
        guess: Bool[np.ndarray, " step"],
    ):
        self.graph, self.steps = graph, steps
        self.threshold, self.absolute = threshold, absolute
        self.kept = Kept(graph.edges.copy(), np.ones(len(graph.receivers), bool))
        self.at, self.metric, self.guess = 0, np.nan, guess.copy()
        self.count = dict.fromkeys(COUNTS, 0)
        self._kept = np.full(len(steps), UNKNOWN, np.int8)
        self._owner = [
            None if owner is None else graph.sender(owner)
            for owner in map(graph.owner, graph.receivers)
        ]

    def run(
        self, evaluate: Evaluate, batch: int, report: Callable[[], None]
    ) -> "Search":
        """Decides on every step.

        Args:
            evaluate: gives the metrics of circuits.
            batch: how many circuits run at once.
            report: called after every decision or more.

        Returns:
            The search itself, done.
        """
        if self.count["calls"] == 0:
            self.metric = float(evaluate([self.kept], self.graph.n_layers)[0])
            self._spend(1)
        while lanes := self._ahead(batch):
            first = min(self.steps[lane.step].layer for lane in lanes)
            values = evaluate([lane.kept for lane in lanes], first)
            self._spend(len(lanes))
            self._decide(lanes, values)
            report()
        self._advance(len(self.steps))
        return self

    def state(self) -> Float[np.ndarray, " state"]:
        """Returns all that a search needs to go on, for a file."""
        numbers = [self.at, self.metric, *self.count.values()]
        return np.concatenate([numbers, self._kept, self.guess]).astype(np.float64)

    def restore(self, state: Float[np.ndarray, " state"]) -> None:
        """Goes on from what `state` returned."""
        numbers, (kept, guess) = state[:5], state[5:].reshape(2, -1)
        self.metric = float(numbers[1])
        self.count = dict(zip(COUNTS, map(int, numbers[2:]), strict=True))
        self._kept, self.guess = kept.astype(np.int8), guess.astype(bool)
        self._advance(int(numbers[0]))

    def _spend(self, forwards: int) -> None:
        self.count["calls"] += 1
        self.count["forwards"] += forwards

    def _ahead(self, batch: int) -> list[Lane]:
        """Lists the next removals to run, if all decisions are as guessed."""
        lanes: list[Lane] = []
        circuit = Kept(*(array.copy() for array in self.kept))
        context = -1
        for i in range(self.at, len(self.steps)):
            if len(lanes) == batch:
                break
            step = self.steps[i]
            if not self._matters(circuit, step):
                remove(circuit, step)
                continue
            tried = Kept(*(array.copy() for array in circuit))
            remove(tried, step)
            lanes.append(Lane(i, tried, context))
            if not self.guess[i]:
                circuit = Kept(*(array.copy() for array in tried))
                context = len(lanes) - 1
        return lanes

    def _matters(self, circuit: Kept, step: Step) -> bool:
        """Return True if anyone reads what the receiver is part of."""
        owner = self._owner[step.receiver]
        if owner is not None and not circuit.edges[owner].any():
            return False
        return step.sender == ALL or bool(circuit.whole[step.receiver])

    def _decide(self, lanes: list[Lane], values: Float[np.ndarray, " lane"]) -> None:
        """Decides up to the first wrong guess; the lanes after it become guesses."""
        metric, known = self.metric, True
        for lane, value in zip(lanes, values, strict=True):
            before = metric if lane.context < 0 else values[lane.context]
            fall = float(before) - float(value)
            removed = (abs(fall) if self.absolute else fall) < self.threshold
            right = self.guess[lane.step] == (not removed)
            self.guess[lane.step] = not removed
            if known:
                self._kept[lane.step] = not removed
                self.metric = self.metric if not removed else float(value)
                self.count["tested"] += 1
                self._advance(lane.step + 1)
            known = known and bool(right)

    def _advance(self, stop: int) -> None:
        """Applies the decisions on the steps before `stop`."""
        for i in range(self.at, stop):
            step = self.steps[i]
            if self._kept[i] != 1 or not self._matters(self.kept, step):
                remove(self.kept, step)
        self.at = stop


def remove(circuit: Kept, step: Step) -> None:
    """Removes an edge, or all edges of a receiver, in place."""
    if step.sender == ALL:
        circuit.edges[:, step.receiver] = False
        circuit.whole[step.receiver] = False
    else:
        circuit.edges[step.sender, step.receiver] = False
