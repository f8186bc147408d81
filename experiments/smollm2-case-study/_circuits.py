"""Circuits by three methods: verified, measured, and compared."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

import mijax
import mijax.experiment
from mijax import circuits, nn, viz
from mijax._errors import ConfigError, nearest
from mijax.nn import Transformer

from ._tasks import Problem

RANDOM = "random"
# Names that fit beside a picture.
SHORT = {"greater-than": "greater", "induction": "induct."}
# Pairs of random circuits that the overlap is compared with.
PAIRS = 100
Edges = Bool[np.ndarray, "sender receiver"]


class Sizes(NamedTuple):
    """How circuits are found and measured.

    Attributes:
        methods: what finds them; the first one is verified.
        steps: points on the path of integrated gradients.
        fractions: shares of edges of the circuits that are run.
        share: the one that is gated and compared.
        top: edges that are verified.
        sample: others that are verified.
        seed: of samples and random circuits.
        memory: bytes of working memory.
    """

    methods: tuple[str, ...]
    steps: int
    fractions: tuple[float, ...]
    share: float
    top: int
    sample: int
    seed: int
    memory: int


class Found(NamedTuple):
    """What was found of one behaviour, by method."""

    scores: dict[str, circuits.Scores]
    curves: dict[str, circuits.Faithfulness]
    checked: circuits.Verification


def methods(names: tuple[str, ...], steps: int) -> dict[str, circuits.AbstractMethod]:
    """Returns methods by name.

    Raises:
        ConfigError: there is no such method.
    """
    known: dict[str, circuits.AbstractMethod] = {
        "EAP-IG": circuits.EAPIG(steps=steps),
        "RelP": circuits.EAP(rule=nn.RelP()),
        "GIM": circuits.EAP(rule=nn.GIM()),
    }
    for name in names:
        if name not in known:
            raise ConfigError(f"There is no method {name!r}.{nearest(name, known)}")
    return {name: known[name] for name in names}


def find(
    model: Transformer, problem: Problem, sizes: Sizes, run: mijax.experiment.Run
) -> Found:
    """Finds circuits on one set of prompts and measures them on the other."""
    known = methods(sizes.methods, sizes.steps)
    train, test = circuits.Task.of(problem.train), circuits.Task.of(problem.test)
    scores: dict[str, circuits.Scores] = {}
    for name, method in known.items():
        with run.progress(f"{problem.label}: {name}") as progress:
            scores[name] = circuits.discover(
                *(model, train, method),
                memory=sizes.memory,
                progress=progress,
                resume=str(run.scratch / f"{problem.name}-{name}.npz"),
            )
    drawn = circuits.discover(model, train, circuits.Random(seed=sizes.seed))
    curves = {}
    for name, one in {**scores, RANDOM: drawn}.items():
        with run.progress(f"{problem.label}: circuits of {name}") as progress:
            curves[name] = circuits.faithfulness(
                *(model, test, one),
                fractions=sizes.fractions,
                absolute=True,
                memory=sizes.memory,
                progress=progress,
            )
    with run.progress(f"{problem.label}: verify") as progress:
        checked = circuits.verify(
            *(model, test, next(iter(scores.values()))),
            top=sizes.top,
            sample=sizes.sample,
            key=jax.random.key(sizes.seed),
            memory=sizes.memory,
            progress=progress,
        )
    return Found(scores, curves, checked)


def stronger(checked: circuits.Verification) -> mijax.Interval:
    """How much more the best edges move a prompt than the sample does."""
    sizes = np.abs(checked.prompts)
    gap = sizes[: checked.top].mean(0) - sizes[checked.top :].mean(0)
    return mijax.interval(jnp.asarray(gap))


def report(
    found: dict[str, Found], sizes: Sizes, run: mijax.experiment.Run
) -> list[float]:
    """Reports curves and verification; returns the gated lower ends."""
    rows, lows = [], []
    at = list(sizes.fractions).index(sizes.share)
    for label, one in found.items():
        key = label.lower().replace("-", "_")
        gap = stronger(one.checked)
        lows.append(float(gap.low))
        run.number(f"{key}_verified", gap, note="nats, best edges minus sample")
        share, low, high = one.checked.missed
        missed = f"{share:.2f} ({low:.2f} to {high:.2f})"
        for name, curve in one.curves.items():
            value = jax.tree.map(lambda leaf: leaf[at], curve.curve)
            short = name.lower().replace("-", "_")
            run.number(f"{key}_faithful_{short}", value, note=f"{sizes.share:.0%}")
            cells = [f"{f:.2f}" for f in np.asarray(curve.curve.mean)]
            rows.append([label, name, *cells])
        note = f"{sizes.methods[0]} and exact effect, Pearson"
        run.number(f"{key}_correlation", one.checked.correlation, note=note)
        run.number(f"{key}_missed", missed, note="of the rest, above the weakest best")
    columns = [f"{fraction:.1%}" for fraction in sizes.fractions]
    run.table("Faithfulness by share of edges", ["behaviour", "method", *columns], rows)
    lines = [
        [label, line.name, line.estimate, f"{line.exact:+.3f}", f"{line.low:+.3f}"]
        for label, one in found.items()
        for line in one.checked.table()[:3]
    ]
    run.table(
        "Strongest edges, patched exactly (nats)",
        ["behaviour", "edge", sizes.methods[0], "exact", "lower end"],
        lines,
    )
    draw(found, run)
    return lows


def draw(found: dict[str, Found], run: mijax.experiment.Run) -> None:
    """Draws a curve of each behaviour, of the first method, and one of no method."""
    lines, method = {}, next(iter(next(iter(found.values())).scores))
    for label, one in found.items():
        curve = one.curves[method]
        ends = (curve.curve.mean, curve.curve.low, curve.curve.high)
        lines[label] = (curve.fractions, *map(np.asarray, ends))
    label, one = next(iter(found.items()))
    curve = one.curves[RANDOM]
    lines[f"{label}, random edges"] = (curve.fractions, np.asarray(curve.curve.mean))
    picture = viz.faithfulness_curves(
        lines,
        log=True,
        title=f"Circuits of the largest scores of {method}",
        x="Fraction of edges kept",
    )
    # Inside it would cover a band.
    legend = picture.axes[0].get_legend()
    if legend is not None:
        legend.set_loc("upper left")
        legend.set_bbox_to_anchor((1.0, 1.0))
    run.figure(
        "faithfulness",
        picture,
        caption="All other edges carry what they are on the counterpart. Prompts are "
        "not those that circuits were found on; bands are 95 % intervals over prompts.",
    )


def overlaps(
    found: dict[str, Found], sizes: Sizes, run: mijax.experiment.Run
) -> dict[str, float]:
    """Compares circuits between behaviours and between methods.

    Returns:
        Mean Jaccard index of pairs of one behaviour, of one method, the least of one
        behaviour, and the mean and the largest of random pairs.
    """
    graph = next(iter(next(iter(found.values())).scores.values())).graph
    n = int(sizes.share * graph.n_edges)
    masks: dict[tuple[str, str], Edges] = {
        (label, name): circuits.top(scores, n, absolute=True, prune=False).edges
        for name in sizes.methods
        for label, scores in ((label, one.scores[name]) for label, one in found.items())
    }
    names = list(masks)
    table = np.full((len(names), len(names)), np.nan)
    for i, j in itertools.permutations(range(len(names)), 2):
        table[i, j] = jaccard(masks[names[i]], masks[names[j]])
    ticks = [f"{SHORT.get(label, label)}, {name}" for label, name in names]
    run.figure(
        "overlap",
        viz.heatmap(
            table,
            x_labels=ticks,
            y_labels=ticks,
            centre=None,
            title=f"Overlap of circuits of {n:,} edges",
            label="Jaccard index",
        ),
        caption="Edges in both circuits, as a share of those in either; a circuit and "
        "itself are left out.",
    )
    pairs = list(itertools.combinations(range(len(names)), 2))
    task, method = (
        [table[i, j] for i, j in pairs if names[i][k] == names[j][k]] for k in (0, 1)
    )
    drawn = random_overlap(graph.n_edges, n, sizes.seed)
    means = {
        "methods_mean": float(np.mean(task)),
        "methods_least": float(np.min(task)),
        "random_mean": float(drawn.mean()),
        "random_largest": float(drawn.max()),
    }
    return means | ({"behaviours_mean": float(np.mean(method))} if method else {})


def jaccard(one: Edges, other: Edges) -> float:
    """Returns the share of edges of either that are in both."""
    return float((one & other).sum() / (one | other).sum())


def random_overlap(edges: int, n: int, seed: int) -> Float[np.ndarray, " pair"]:
    """Returns the Jaccard index of pairs of random circuits."""
    random = np.random.default_rng(seed)
    shared = random.hypergeometric(n, edges - n, n, size=PAIRS)
    return shared / (2 * n - shared)
