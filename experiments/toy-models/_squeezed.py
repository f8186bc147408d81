"""Which features are represented, from dense to sparse."""

import numpy as np

import mijax.experiment
from mijax import viz

from ._setups import densities
from ._training import Trained

LONG = 0.5


def report_intro(found: Trained, run: mijax.experiment.Run) -> None:
    """Reports five features in two dimensions: counts, and $W^T W$ with the bias."""
    weights, bias = best(found)
    there = (weights**2).sum(-1) > LONG
    p = densities(len(weights))
    note = "features with a squared length above 1/2; best of the seeds"
    run.number("intro_dense_features", int(there[0].sum()), note=note)
    run.number("intro_sparse_features", int(there[-1].sum()), note=note)
    features = weights.shape[1]
    gap = np.zeros((features, 1))
    panels = {
        f"density {p[i]:.2f}": np.hstack(
            [weights[i] @ weights[i].T, gap, bias[i][:, None]]
        )
        for i in range(len(weights))
    }
    run.figure(
        "intro",
        viz.heatmaps(
            panels,
            x_labels=[*range(1, features + 1), "", "b"],
            y_labels=range(1, features + 1),
            title="Five features in two dimensions, from dense to sparse",
            label="Overlap of features; bias",
        ),
        caption="W^T W and, right of it, the bias; the first feature is the most "
        "important one.",
    )


def report_many(found: Trained, run: mijax.experiment.Run) -> None:
    """Reports many features of falling importance: how many are represented."""
    weights, _ = best(found)
    squared = (weights**2).sum(-1)
    count = (squared > LONG).sum(1)
    run.number("many_dense_features", int(count[0]), note="with every feature there")
    run.number(
        "many_sparse_over_dense",
        float(count[-1] / max(count[0], 1)),
        note=f"{count[-1]} features at the lowest density",
    )
    overlap = ((weights @ weights.swapaxes(1, 2)) ** 2).sum(-1)
    overlap = overlap / np.maximum(squared, 1e-9) - squared
    overlap = np.where(squared > LONG, overlap, np.nan)
    p = [f"{value:.2f}" for value in densities(len(weights))]
    run.figure(
        "many",
        viz.heatmaps(
            {"squared length of each feature": squared, "overlap with others": overlap},
            x_labels=range(1, squared.shape[1] + 1),
            y_labels=p,
            x="Feature, the most important one first",
            y="Density",
            title="Which features are represented, and which share dimensions",
            centre=None,
            label="Squared length; sum of squared overlaps",
        ),
        caption="Features that are not represented (squared length below 1/2) have no "
        "overlap: grey.",
    )


def best(found: Trained) -> tuple[np.ndarray, np.ndarray]:
    """Returns weights and bias of the seed with the least loss, of each instance."""
    choice = found.losses.argmin(0)
    every = np.arange(found.losses.shape[1])
    return found.weights[choice, every], found.bias[choice, every]
