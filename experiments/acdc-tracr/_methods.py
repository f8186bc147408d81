"""The three methods, each giving circuits of many sizes."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mijax.circuits import ACDC, HISP, acdc_thresholds, discover
from mijax.experiment import Progress

from ._counting import Found, found, without
from ._probing import PartProbing, closed
from ._tasks import Program


class Settings(NamedTuple):
    """How the methods run.

    Attributes:
        thresholds: of ACDC.
        regularisation: weights of the penalty of subnetwork probing.
        steps: its updates.
    """

    thresholds: np.ndarray
    regularisation: np.ndarray
    steps: int


def acdc(program: Program, settings: Settings, progress: Progress) -> list[Found]:
    """Runs ACDC at every threshold."""
    sweep = acdc_thresholds(
        program.model,
        program.task,
        settings.thresholds,
        method=ACDC(),
        graph=program.graph,
        progress=progress,
    )
    pairs = zip(sweep.edges, sweep.whole, strict=True)
    return [found(program.graph, *pair) for pair in pairs]


def hisp(program: Program, settings: Settings, progress: Progress) -> list[Found]:
    """Removes one part after the other, the least important first.

    Parts of equal importance go in the order of the published code: layer by layer
    from the first, queries, keys, values, MLP.
    """
    with warnings.catch_warnings():
        # All importances are 0: see the docstring of the experiment.
        warnings.filterwarnings("ignore", message="All scores are zero")
        scores = discover(
            program.model, program.task, HISP(), graph=program.graph, progress=progress
        )
    # An edge from an input has the importance of its receiver; the logits are no part.
    importance = np.asarray(scores.values)[0, :-1]
    order = np.argsort(importance, kind="stable")
    parts = [program.graph.receivers[i] for i in order]
    return [without(program.graph, parts[:n]) for n in range(len(parts) + 1)]


def sp(program: Program, settings: Settings, progress: Progress) -> list[Found]:
    """Learns gates under every weight of the penalty."""
    circuits = []
    total = len(settings.regularisation) * settings.steps
    for i, weight in enumerate(settings.regularisation):
        start = i * settings.steps
        scores = discover(
            program.model,
            program.task,
            PartProbing(
                regularisation=float(weight), level="edge", steps=settings.steps
            ),
            graph=program.graph,
            progress=lambda done, _, start=start: progress(start + done, total),
        )
        circuits.append(without(program.graph, closed(scores)))
    return circuits


Method = Callable[[Program, Settings, Any], list[Found]]
METHODS: Mapping[str, Method] = {"acdc": acdc, "hisp": hisp, "sp": sp}
