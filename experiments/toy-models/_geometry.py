"""How much of a dimension features of equal importance get."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np

import mijax.experiment
from mijax import viz
from mijax.features import (
    FRACTIONS,
    count_lines,
    dimensionality,
    dimensions_per_feature,
)

from ._setups import densities
from ._training import Trained

NEAR = 0.03


def report_geometry(found: Trained, run: mijax.experiment.Run) -> None:
    """Reports where dimensions per feature and single features stick."""
    weights = jnp.asarray(found.weights)
    stars = np.asarray(dimensions_per_feature(weights))
    shares = np.asarray(dimensionality(weights))
    p = densities(stars.shape[1])
    run.number(
        "dense_dimensions_per_feature",
        float(stars[:, 0].mean()),
        note=f"D* with every feature there; {spread(stars[:, 0])}",
    )
    levels = (np.abs(stars - 0.5) <= NEAR).sum(1)
    run.number(
        "levels_near_half",
        int(levels.min()),
        note=f"densities with |D* - 0.5| <= {NEAR}, least of the seeds "
        f"({', '.join(map(str, levels))})",
    )
    lines = [count_lines(*pair) for pair in zip(shares, stars, strict=True)]
    present = np.stack([line.present for line in lines])
    half = FRACTIONS.index(1 / 2)
    others = np.delete(present, half, axis=1).any(1)
    run.number(
        "share_with_line_at_half",
        float(present[:, half].mean()),
        note=f"of {len(lines)} seeds",
    )
    run.number(
        "share_with_another_line", float(others.mean()), note=f"of {len(lines)} seeds"
    )
    rows = [
        [
            seed,
            str(Fraction(fraction).limit_denominator(16)),
            *(int(part[place]) for part in (line.counts, line.below, line.above)),
            "yes" if line.present[place] else "no",
        ]
        for seed, line in enumerate(lines)
        for place, fraction in enumerate(line.fractions)
    ]
    columns = ["seed", "fraction", "features", "just below", "just above", "line"]
    run.table("lines", columns, rows)
    headers = ["density", *(f"D*, seed {seed}" for seed in range(len(stars)))]
    table = [[f"{p[i]:.3f}", *map(float, stars[:, i])] for i in range(len(p))]
    run.table("dimensions per feature", headers, table)
    run.figure(
        "geometry",
        viz.feature_dimensions(
            p,
            stars,
            shares[0],
            title=f"{shares.shape[2]} features in {found.weights.shape[3]} dimensions",
        ),
        caption=f"Above: mean and range of {len(stars)} seeds. Below: every feature of "
        "the first seed.",
    )


def spread(values: np.ndarray) -> str:
    """Says what the seeds gave."""
    return f"seeds {values.min():.3f} to {values.max():.3f}"
