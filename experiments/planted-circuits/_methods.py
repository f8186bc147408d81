"""The methods that are compared, and how each is run."""

import dataclasses
import time
import warnings
from collections.abc import Callable, Mapping

import numpy as np

from mijax import circuits
from mijax._errors import ConfigError
from mijax.circuits import Circuit, Scores
from mijax.nn import GIM, AbstractRule, RelP, apply

from ._cases import Case

Factory = Callable[[int, int], circuits.AbstractMethod]
"""Makes a method from a seed and a number of steps."""


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the tables.

    Attributes:
        make: makes it from a seed and a number of steps.
        level: `"edge"` or `"node"`: what it scores.
        learns: whether its scores depend on a seed.
        divergence: whether it measures the divergence from the model's output.
        rule: its backward rule, for models in which that replaces anything.
        layers: fewest blocks that it takes.
    """

    make: Factory
    level: str = "edge"
    learns: bool = False
    divergence: bool = False
    rule: AbstractRule | None = None
    layers: int = 1


def fixed(method: circuits.AbstractMethod, level: str = "edge") -> Method:
    """A method without seeds."""
    return Method(lambda seed, steps: method, level)


def ruled(rule: AbstractRule) -> Method:
    """EAP with a backward rule."""
    return Method(lambda seed, steps: circuits.EAP(rule=rule), rule=rule)


METHODS: Mapping[str, Method] = {
    "exact": fixed(circuits.Exact()),
    "exact-div": Method(lambda seed, steps: circuits.Exact(), divergence=True),
    "acdc": fixed(circuits.ACDC()),
    "eap": fixed(circuits.EAP()),
    "eap-ig": fixed(circuits.EAPIG()),
    "eap-ig-act": fixed(circuits.EAPIGActivations()),
    "eap-gim": ruled(GIM()),
    "eap-relp": ruled(RelP()),
    "hisp": fixed(circuits.HISP()),
    "ifr": fixed(circuits.InformationFlowRoutes()),
    "probing": Method(
        lambda seed, steps: circuits.SubnetworkProbing(
            level="edge", steps=steps // 2, learning_rate=0.05, seed=seed
        ),
        learns=True,
        divergence=True,
    ),
    "pruning": Method(
        lambda seed, steps: circuits.EdgePruning(
            target_sparsity=0.9, steps=steps, seed=seed
        ),
        learns=True,
        divergence=True,
    ),
    "ugs": Method(
        lambda seed, steps: circuits.UGS(
            samples=4, steps=steps // 2, learning_rate=0.05, seed=seed
        ),
        learns=True,
        divergence=True,
    ),
    "nap": fixed(circuits.EAP(level="node"), "node"),
    "nap-ig": fixed(circuits.EAPIG(level="node"), "node"),
    "atp-star": Method(lambda seed, steps: circuits.AtPStar(), level="node", layers=2),
    "hisp-node": fixed(circuits.HISP(level="node"), "node"),
    "probing-node": Method(
        lambda seed, steps: circuits.SubnetworkProbing(
            steps=steps // 2, learning_rate=0.05, seed=seed
        ),
        level="node",
        learns=True,
        divergence=True,
    ),
}


@dataclasses.dataclass(frozen=True)
class Found:
    """What a method gave on a case.

    Attributes:
        scores: one, or one per seed.
        seconds: of all of them, compilation included.
        circuits: what ACDC kept at each threshold.
    """

    scores: tuple[Scores, ...]
    seconds: float
    circuits: tuple[Circuit, ...] = ()


def fits(method: Method, case: Case) -> bool:
    """True if a method has anything to do in a model."""
    if method.rule is not None:
        try:
            apply(case.model, method.rule)
        except ConfigError:
            return False
    return case.model.n_layers >= method.layers


def find(name: str, case: Case, *, seeds: int, steps: int) -> Found:
    """Runs a method on a case.

    Args:
        name: of the method.
        case: what is looked for.
        seeds: of methods that learn.
        steps: of those methods.

    Returns:
        Its scores.
    """
    start, method = time.perf_counter(), METHODS[name]
    if name == "acdc":
        return sweep(case, start)
    task = case.divergence if method.divergence else case.task
    one_by_one = not method.learns and not name.startswith("hisp")
    with warnings.catch_warnings():
        # A metric without a gradient is a result here.
        warnings.filterwarnings("ignore", message="All scores are zero")
        scores = tuple(
            circuits.discover(
                case.model,
                task,
                method.make(seed, steps),
                graph=case.truth.graph,
                keep_prompts=one_by_one,
            )
            for seed in range(seeds if method.learns else 1)
        )
    np.asarray(scores[-1].values)
    return Found(scores, time.perf_counter() - start)


def sweep(case: Case, start: float) -> Found:
    """Runs ACDC at thresholds from the whole effect down to a millionth of it."""
    graph = case.truth.graph
    ends = [Circuit.full(graph), Circuit.empty(graph)]
    full, empty = circuits.run_circuits(case.model, case.task, ends).mean(1)
    thresholds = abs(full - empty) * np.logspace(0, -6, 13)
    found = circuits.acdc_thresholds(case.model, case.task, thresholds, graph=graph)
    kept = tuple(Circuit(graph, edges) for edges in found.edges)
    return Found((found.scores,), time.perf_counter() - start, kept)
