"""Numbers, tables and pictures of the accuracies."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

import mijax.experiment
from mijax import train, viz

from ._search import LAYERS, Cell
from ._task import HYPOTHESES

NAMES = tuple(HYPOTHESES)
SHORT = {"DAS": "DAS", "closest neurons": "closest", "brute force": "blocks"}


class Found(NamedTuple):
    """Interchange-intervention accuracy of every network, by method.

    Attributes:
        cells: hypotheses, layers and sizes.
        accuracy: `[network, cell]`.
        sized: cells of methods that learn sizes.
        sized_accuracy: theirs.
        size: dimensions that they found, of all variables.
        chosen: the network whose numbers are reported.
    """

    cells: list[Cell]
    accuracy: dict[str, Float[np.ndarray, "network cell"]]
    sized: list[Cell]
    sized_accuracy: dict[str, Float[np.ndarray, "network cell"]]
    size: dict[str, Float[np.ndarray, "network cell"]]
    chosen: int


def report(found: Found, run: mijax.experiment.Run) -> None:
    """Reports everything."""
    columns = ["hypothesis", "layer", "dimensions of a variable", *found.accuracy]
    rows = [
        [NAMES[cell.task], cell.layer + 1, cell.sizes[0]]
        + [span(scores[:, i]) for scores in found.accuracy.values()]
        for i, cell in enumerate(found.cells)
    ]
    run.table("accuracy: best network (mean)", columns, rows)
    columns = ["hypothesis", "layer"]
    for name in found.sized_accuracy:
        columns += [name, f"dimensions, {name}"]
    rows = []
    for i, cell in enumerate(found.sized):
        row: list[object] = [NAMES[cell.task], cell.layer + 1]
        for name, scores in found.sized_accuracy.items():
            row += [span(scores[:, i]), f"{found.size[name][:, i].mean():.1f}"]
        rows.append(row)
    run.table("accuracy where sizes are learned", columns, rows)
    numbers(found, run)
    pictures(found, run)


def numbers(found: Found, run: mijax.experiment.Run) -> None:
    """Reports what the paper says, of the largest subspaces in one network."""

    def one(name: str, scores: Float[np.ndarray, " network"]) -> None:
        low, mean, high = scores.min(), scores.mean(), scores.max()
        note = f"mean {mean:.3f} of networks, {low:.3f} to {high:.3f}"
        run.number(name, float(scores[found.chosen]), note=note)

    das = grid(found, found.accuracy["DAS"])
    for layer in LAYERS:
        for name, task in (("both", 0), ("left", 1), ("first", 2)):
            one(f"{name}_layer_{layer + 1}", das[:, task, layer, 0])
    one("closest_layer_1", grid(found, found.accuracy["closest neurons"])[:, 0, 0, 0])
    best = grid(found, found.accuracy["brute force"])[:, 0, 0].max(-1)
    one("brute_force_layer_1", best)


def pictures(found: Found, run: mijax.experiment.Run) -> None:
    """Draws accuracy by layer and size."""
    sizes = list(dict.fromkeys(cell.sizes[0] for cell in found.cells))
    order = np.argsort(sizes)
    for method, scores in found.accuracy.items():
        mean = grid(found, scores).mean(0)
        run.figure(
            "accuracy-" + method.lower().replace(" ", "-"),
            viz.heatmaps(
                {name: mean[task][:, order] for task, name in enumerate(NAMES)},
                x_labels=[sizes[i] for i in order],
                y_labels=[layer + 1 for layer in LAYERS],
                title=f"Interchange-intervention accuracy, {method}",
                x="Dimensions of a variable",
                y="Layer",
                centre=0.5,
                label="Accuracy",
            ),
            caption="Mean of the networks; 0.5 is chance.",
        )
    of_both = {name: grid(found, s)[:, 0, :, 0] for name, s in found.accuracy.items()}
    bars = [
        (f"{layer + 1}, {SHORT[name]}", scores[:, layer])
        for layer in LAYERS
        for name, scores in of_both.items()
    ]
    run.figure(
        "by-layer",
        viz.bars(
            np.array([scores.mean() for _, scores in bars]),
            labels=[name for name, _ in bars],
            low=np.array([scores.min() for _, scores in bars]),
            high=np.array([scores.max() for _, scores in bars]),
            title=f"Both equality relations, {sizes[0]} dimensions each",
            x="Layer and method",
            y="Interchange-intervention accuracy",
        ),
        caption="Bars: mean of the networks; lines: their range. 0.5 is chance.",
    )


def curves(kept: train.Memory, cells: list[Cell], run: mijax.experiment.Run) -> None:
    """Draws how rotations of the largest size are found, a mean over networks."""
    shown = [i for i, c in enumerate(cells) if c.sizes[0] == cells[0].sizes[0]]
    for task, name in enumerate(NAMES):
        of = [i for i in shown if cells[i].task == task]
        rows = [
            {
                "step": row["step"],
                "cross-entropy": np.mean(row["losses"], 0)[of].tolist(),
                "agreement": np.mean(row["agreement"], 0)[of].tolist(),
            }
            for row in kept.rows
        ]
        run.figure(
            "rotations-" + name.replace(" ", "-"),
            viz.training_curves(
                rows, lanes=[f"layer {cells[i].layer + 1}" for i in of], title=name
            ),
            caption="Mean of the networks, on the batches of training.",
        )


def grid(
    found: Found, scores: Float[np.ndarray, "network cell"]
) -> Float[np.ndarray, "network hypothesis layer size"]:
    """Lays cells out."""
    return scores.reshape(len(scores), len(NAMES), len(LAYERS), -1)


def span(scores: Float[np.ndarray, " network"]) -> str:
    """Writes the best and the mean."""
    return f"{scores.max():.3f} ({scores.mean():.3f})"
