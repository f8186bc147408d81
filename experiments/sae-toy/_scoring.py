"""How well dictionaries find known features."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mijax import dictionaries as d
from mijax.io import replace_file

from ._known import Known

FOUND = 0.9
BASELINES = ("random", "PCA")


class Row(NamedTuple):
    """Scores of one architecture, `[seed]`.

    Attributes:
        score: mean over features of the best match with a latent: MMCS, MCC.
        share: of features whose best match is above 0.9.
        fvu: squared error over variance.
        l0: active latents per example.
        dead: share of latents that no fresh example activates.
    """

    score: np.ndarray
    share: np.ndarray
    fvu: np.ndarray
    l0: np.ndarray
    dead: np.ndarray

    def cells(self) -> list[str | None]:
        """Returns what a table shows."""
        numbers = [f"{self.share.mean():.2f}", f"{self.fvu.mean():.4f}"]
        numbers += [f"{self.l0.mean():.2f}", f"{self.dead.mean():.2f}"]
        return [f"{self.score.mean():.3f}", spread(self.score), *numbers]


def spread(values: np.ndarray) -> str:
    """Returns the range of seeds."""
    return f"{values.min():.3f} to {values.max():.3f}"


def keep(row: Row, file: Path) -> None:
    """Writes scores, so that an interrupted run goes on after them."""
    replace_file(file, lambda path: np.savez(path, **row._asdict()))


def scored(found: list[d.Dictionary], known: Known) -> Row:
    """Scores dictionaries."""
    rows = []
    for one in found:
        told = d.evaluate(one, known.x, baselines=False)
        if known.score == "MMCS":
            best = d.similarity(known.features, one).best
        else:
            best = correlations(known, one.encode(known.x))
        numbers = (best.mean(), (best > FOUND).mean(), told.fvu.mean, told.l0.mean)
        rows.append((*numbers, told.dead))
    return Row(*np.asarray(rows, np.float64).T)


def correlations(known: Known, latents: jax.Array) -> jax.Array:
    """Returns each feature's largest correlation with a latent."""

    def centred(of: jax.Array) -> jax.Array:
        return (of - of.mean(0)).T

    return d.similarity(centred(known.activity), centred(latents)).best


def baselines(known: Known, *, seeds: int) -> dict[str, Row]:
    """Scores dictionaries that were not trained, and principal components."""
    new = [
        d.untrained(
            *(d.TopK(known.k), d.SAE(known.x.shape[1])),
            latents=known.latents,
            key=jax.random.key(seed),
        )
        for seed in range(seeds)
    ]
    components = d.evaluate(new[0], known.x).baselines["pca"]
    middle = known.x - known.x.mean(0)
    axes = jnp.linalg.svd(middle, full_matrices=False)[2]
    axes = jnp.concatenate([axes, -axes])
    if known.score == "MMCS":
        best = d.similarity(known.features, axes).best
    else:
        best = correlations(known, middle @ axes.T)
    numbers = (best.mean(), (best > FOUND).mean(), components.fvu.mean)
    numbers += (components.l0.mean, 0.0)
    row = Row(*(np.asarray([number], np.float64) for number in numbers))
    return {"random": scored(new, known), "PCA": row}
