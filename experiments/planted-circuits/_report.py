"""Tables and pictures."""

from collections.abc import Mapping, Sequence

import numpy as np

import mijax.experiment
from mijax import viz
from mijax.circuits import top

from ._cases import TRACR, Case
from ._methods import METHODS, Found
from ._scoring import LEVELS, Cell

ABLATIONS = {"corrupt": "corrupt activations", "zero": "zero ablation"}
TITLES = {"edge": "Edges", "node": "Heads and MLPs"}
RANDOM = 0.5


def report(
    cells: Sequence[Cell],
    cases: Sequence[Case],
    methods: Sequence[str],
    run: mijax.experiment.Run,
) -> None:
    """Reports areas by method and model, and what must hold."""
    table = {(cell.method, cell.case, cell.level): cell for cell in cells}
    for level in LEVELS:
        rows = ranks(methods, level)
        known = [case for case in cases if case.edges or level == "node"]
        for ablation, name in ABLATIONS.items():
            here = [case for case in known if case.ablation == ablation]
            if here:
                title = f"{TITLES[level]}, {name}: area"
                tabulate(title, table, here, level, rows, run)
        run.figure(
            f"auroc-{level}s",
            viz.heatmap(
                np.array(
                    [
                        [area(table.get((m, c.label, level))) for c in known]
                        for m in rows
                    ]
                ),
                x_labels=[f"{case.name}/{case.ablation[:4]}" for case in known],
                y_labels=rows,
                title=f"{TITLES[level]} of known circuits, found by their scores",
                x="Model and ablation",
                y="Method",
                centre=RANDOM,
                label="Area under the ROC curve",
            ),
            caption="0.5 is random. Grey: the method's rule has nothing to replace in "
            "the model, or too few layers.",
        )
    claims(table, cases, run)


def claims(
    table: Mapping[tuple[str, str, str], Cell],
    cases: Sequence[Case],
    run: mijax.experiment.Run,
) -> None:
    """Reports the numbers that must hold, and the mean of every method."""
    alone = [case.label for case in cases if case.traps is None]
    compiled = [case.label for case in cases if case.name in TRACR]
    least = {
        "exact_least": ("exact", alone, "least area, where nothing cancels"),
        "acdc_least": ("acdc", alone, "least area, where nothing cancels"),
        "acdc_compiled": ("acdc", compiled, "least area on compiled programs"),
    }
    for name, (method, labels, note) in least.items():
        found = [
            table[key] for label in labels if (key := (method, label, "edge")) in table
        ]
        if found:
            # Unlike min, it keeps a NaN.
            run.number(name, np.min([cell.area for cell in found]), note=note)
    areas: dict[str, list[float]] = {}
    for one in table.values():
        if one.level == "edge":
            areas.setdefault(one.method, []).append(one.area)
    for method, found in areas.items():
        note = f"mean area of edges over {len(found)} cases"
        run.number(f"mean_{method}", float(np.mean(found)), note=note)
    most = max(map(len, areas.values()), default=0)
    means = {m: np.mean(found) for m, found in areas.items() if len(found) == most}
    order = sorted(means, key=lambda method: -means[method])
    run.number("order", order, note=f"by mean area, methods that run on all {most}")
    nodes = [c for c in table.values() if (c.case, c.level) == ("siit/corrupt", "node")]
    if nodes:
        order = [c.method for c in sorted(nodes, key=lambda cell: -cell.area)]
        run.number("order_siit", order, note="by area of heads and MLPs")


def tabulate(
    title: str,
    table: Mapping[tuple[str, str, str], Cell],
    cases: Sequence[Case],
    level: str,
    methods: Sequence[str],
    run: mijax.experiment.Run,
) -> None:
    """Reports one table, methods by models."""
    rows = []
    for method in methods:
        found = [table.get((method, case.label, level)) for case in cases]
        there = [cell for cell in found if cell is not None]
        if not there:
            continue
        cells = [cell.text if cell else None for cell in found]
        mean = f"{np.mean([cell.area for cell in there]):.2f}"
        bare = f"{np.mean([cell.bare for cell in there]):.2f}"
        over = ", ".join(dict.fromkeys(cell.over for cell in there if cell.over))
        seconds = f"{sum(cell.seconds for cell in there):.1f}"
        rows.append([method, *cells, mean, bare, over or None, seconds])
    rows.append(["random", *[f"{RANDOM:.2f}"] * (len(cases) + 2), None, None])
    names = [case.name for case in cases]
    columns = ["method", *names, "mean", "no floor", "interval", "seconds"]
    run.table(title, columns, rows)


def draw(
    case: Case,
    found: Mapping[str, Found],
    cells: Sequence[Cell],
    run: mijax.experiment.Run,
) -> None:
    """Draws the circuit of one case, as it is and as it was found, and ROC curves."""
    where = f"{case.name}, {ABLATIONS[case.ablation]}"
    for name, result in found.items():
        scores = result.scores[0]
        edges = (
            case.truth
            if name == "exact"
            else top(scores, len(case.truth), absolute=True, prune=False)
        )
        what = (
            "the true circuit"
            if name == "exact"
            else f"as many edges as it has, by {name}"
        )
        run.figure(
            f"circuit-{name}",
            viz.circuit_graph(
                scores, edges=edges, title=f"{where}: {what}", measure="logits lost"
            ),
            caption=f"{where}. Edges by the score of {name}.",
        )
    here = [c for c in cells if c.case == case.label and c.level == "edge"]
    points = np.linspace(0, 1, 401)
    run.figure(
        "roc",
        viz.line(
            {f"{c.method} {c.area:.2f}": staircase(c, points) for c in here},
            points=points,
            title=f"Edges of a known circuit ({where})",
            x="Fraction of other edges taken",
            y="Fraction of the circuit's edges taken",
        ),
        caption="Of the first seed; areas in the legend are means over seeds. Curves "
        "at the upper edge lie on each other.",
    )


def staircase(cell: Cell, points: np.ndarray) -> np.ndarray:
    """The curve at given false positive rates: the best that it reaches there."""
    x, y = np.array(cell.fpr), np.array(cell.tpr)
    last = np.append(np.diff(x) > 0, True)
    return np.interp(points, x[last], y[last])


def ranks(methods: Sequence[str], level: str) -> list[str]:
    """Methods that rank what is on a level."""
    return [m for m in methods if level == "node" or METHODS[m].level == "edge"]


def area(cell: Cell | None) -> float:
    """The area of a cell, NaN where there is none."""
    return float("nan") if cell is None else cell.area
