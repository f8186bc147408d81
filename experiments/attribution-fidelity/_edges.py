"""Estimates of edges, and exact patching of all of them or of a sample."""

from typing import Any, NamedTuple

import jax
import numpy as np

import mijax.experiment
from mijax import circuits, nn
from mijax._errors import ConfigError, nearest
from mijax.circuits import Graph, Scores, Task
from mijax.nn import Transformer

from ._agreement import Effects

# Edges that both ways of exact patching patch.
TWICE = 10


class Edges(NamedTuple):
    """Estimates and exact effects of some edges.

    Attributes:
        effects: by method.
        kinds: what of the receiver each edge enters: q, k, v, mlp or logits.
        labels: the methods' names in tables.
        apart: largest difference between two implementations of exact patching, where
            both were run.
    """

    effects: dict[str, Effects]
    kinds: np.ndarray
    labels: dict[str, str]
    apart: float | None


def estimators(*, steps: int) -> dict[str, tuple[str, circuits.AbstractMethod]]:
    """Returns label and method by the names of their numbers.

    Args:
        steps: points on the paths of integrated gradients.

    Returns:
        The methods.
    """
    return {
        "eap": ("EAP", circuits.EAP()),
        "eap_ig": ("EAP-IG", circuits.EAPIG(steps=steps)),
        "eap_ig_activations": (
            "EAP-IG-activations",
            circuits.EAPIGActivations(steps=steps),
        ),
        "gim": ("GIM", circuits.EAP(rule=nn.GIM())),
        "relp": ("RelP", circuits.EAP(rule=nn.RelP())),
    }


def compare_edges(
    model: Transformer,
    task: Task,
    chosen: tuple[str, ...],
    *,
    steps: int,
    sample: int | None,
    seed: int,
    memory: int,
    run: mijax.experiment.Run,
) -> Edges:
    """Scores edges with some methods and patches them exactly.

    Args:
        model: the model.
        task: prompts, metric and ablation.
        chosen: names of methods.
        steps: points on the paths of integrated gradients.
        sample: how many of the edges that any method ranks highest, and as many of
            the others at random; `None` patches every edge.
        seed: of the sample.
        memory: bytes of working memory.
        run: where progress is shown.

    Returns:
        Effects of the edges that were patched.
    """
    methods = named(chosen, steps)
    found: dict[str, Scores] = {}
    for key, (label, method) in methods.items():
        with run.progress(f"edges: {label}") as progress:
            options: dict[str, Any] = {"memory": memory, "progress": progress}
            found[key] = circuits.discover(
                *(model, task, method), keep_prompts=True, **options
            )
    apart = None
    with run.progress("patch edges") as progress:
        options = {"memory": memory, "progress": progress}
        if sample is None:
            index, exact, apart = every(model, task, options)
        else:
            index, exact = some(model, task, found, sample, seed, options)
    graph = Graph.of(model)
    names = [graph.name(int(s), int(r)) for s, r in zip(*index, strict=True)]
    effects = {
        key: Effects(prompts_of(scores)[:, *index], exact, names)
        for key, scores in found.items()
    }
    kinds = np.array([kind(graph.receivers[int(r)]) for r in index[1]])
    labels = {key: label for key, (label, _) in methods.items()}
    return Edges(effects, kinds, labels, apart)


def named(
    chosen: tuple[str, ...], steps: int
) -> dict[str, tuple[str, circuits.AbstractMethod]]:
    """Returns the methods that were asked for."""
    known = estimators(steps=steps)
    for name in chosen:
        if name not in known:
            raise ConfigError(f"There is no method {name!r}.{nearest(name, known)}")
    return {name: known[name] for name in chosen}


def every(
    model: Transformer, task: Task, options: dict[str, Any]
) -> tuple[tuple[np.ndarray, ...], np.ndarray, float]:
    """Patches every edge, and a few of them once more in another way."""
    exact = circuits.discover(
        model, task, circuits.Exact(), keep_prompts=True, **options
    )
    index = np.nonzero(exact.graph.edges)
    again = circuits.verify(model, task, exact, top=TWICE, sample=0)
    places = [exact.graph.edge(name) for name in again.names]
    first = np.stack([prompts_of(exact)[:, s, r] for s, r in places])
    return (
        index,
        prompts_of(exact)[:, *index],
        float(np.abs(first - again.prompts).max()),
    )


def some(
    model: Transformer,
    task: Task,
    found: dict[str, Scores],
    sample: int,
    seed: int,
    options: dict[str, Any],
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Patches what any method ranks highest, and a sample of the rest."""
    one = next(iter(found.values()))
    sizes = [np.abs(np.asarray(scores.values)) for scores in found.values()]
    highest = np.max([size / size.max() for size in sizes], axis=0)
    ranked = Scores(
        jax.numpy.asarray(highest), None, None, one.graph, "edge", "best of all methods"
    )
    exact = circuits.verify(
        *(model, task, ranked),
        top=sample,
        sample=sample,
        key=jax.random.key(seed),
        **options,
    )
    places = np.array([one.graph.edge(name) for name in exact.names])
    return tuple(places.T), exact.prompts.T


def prompts_of(scores: Scores) -> np.ndarray:
    """Returns the scores of every prompt, which were kept."""
    assert scores.prompts is not None
    return scores.prompts


def kind(receiver: str) -> str:
    """Returns what of a receiver an edge enters: `a1.h2<q>` is `q`."""
    if receiver.endswith(">"):
        return receiver[-2]
    return "logits" if receiver == "logits" else "mlp"
