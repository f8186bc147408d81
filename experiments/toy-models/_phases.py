"""Phase diagrams, trained and predicted."""

import jax.numpy as jnp
import numpy as np

import mijax.experiment
from mijax import viz
from mijax.features import phase_of, phase_theory

from ._setups import axes
from ._squeezed import best
from ._training import Trained

NAMES = ("not represented", "own dimension", "superposition")


def report_phases(
    found: Trained, cells: int, embed: int, run: mijax.experiment.Run
) -> None:
    """Reports what becomes of one feature more than there are dimensions."""
    p, extra = np.meshgrid(*axes(cells), indexing="ij")
    weights, _ = best(found)
    trained = np.asarray(phase_of(jnp.asarray(weights))).reshape(cells, cells)
    theory, losses = phase_theory(p, extra, embed=embed)
    features = embed + 1
    name = f"phases_{features}"
    note = f"{cells} x {cells} cells, best of {len(found.losses)} starts"
    run.number(f"{name}_agreement", float((trained == theory).mean()), note=note)
    # The loss of training is a mean over features, that of theory a sum.
    least = features * found.losses.min(0).reshape(cells, cells)
    ratio = float(np.median(least / losses.min(0)))
    run.number(f"{name}_loss_ratio", ratio, note="trained over predicted, median")
    alone = np.asarray(phase_of(jnp.asarray(found.weights))).reshape(-1, cells, cells)
    run.number(
        f"{name}_agreement_of_one_start",
        float((alone == theory).mean()),
        note="without choosing the best",
    )
    rows = [
        [
            kind,
            *(float((grid == code).mean()) for grid in (theory, trained)),
            float(((theory == code) & (trained == code)).mean()),
        ]
        for code, kind in enumerate(NAMES)
    ]
    columns = ["last feature", "share, theory", "share, trained", "both"]
    run.table(
        f"{features} features in {embed} dimension{'s' if embed > 1 else ''}",
        columns,
        rows,
    )
    run.figure(
        f"phases-{features}",
        viz.category_maps(
            {"theory": theory.T[::-1], "trained": trained.T[::-1]},
            names=NAMES,
            x_labels=[f"{value:.2g}" for value in axes(cells)[0]],
            y_labels=[f"{value:.2g}" for value in axes(cells)[1][::-1]],
            title=f"The last of {features} features in {embed} "
            f"dimension{'s' if embed > 1 else ''}",
            x="Density",
            y="Importance relative to the others",
        ),
        caption="Theory: the least expected loss of a few models of length 1 decides.",
    )
