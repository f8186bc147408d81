"""How well dictionaries find known features."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mijax import dictionaries as d
from mijax.io import replace_file
from mijax.testing import PlantedFeatures

FRESH = 16
FOUND = 0.9
BASELINES = ("random", "PCA")


class Row(NamedTuple):
    """Scores of one architecture, `[seed]`.

    Attributes:
        mmcs: mean over features of the largest cosine with a latent.
        share: of features whose largest cosine is above 0.9.
        fvu: squared error over variance.
        l0: active latents per example.
        dead: share of latents that no fresh example activates.
    """

    mmcs: np.ndarray
    share: np.ndarray
    fvu: np.ndarray
    l0: np.ndarray
    dead: np.ndarray

    def cells(self) -> list[str | None]:
        """Returns what a table shows."""
        low, high = self.mmcs.min(), self.mmcs.max()
        numbers = [f"{self.share.mean():.2f}", f"{self.fvu.mean():.4f}"]
        numbers += [f"{self.l0.mean():.2f}", f"{self.dead.mean():.2f}"]
        return [f"{self.mmcs.mean():.3f}", f"{low:.3f} to {high:.3f}", *numbers]


def keep(row: Row, file: Path) -> None:
    """Writes scores, so that an interrupted run goes on after them."""
    replace_file(file, lambda path: np.savez(path, **row._asdict()))


def scored(found: list[d.Dictionary], source: PlantedFeatures) -> Row:
    """Scores dictionaries on fresh examples."""
    x = fresh(source)
    rows = []
    for one in found:
        best = d.similarity(source.features, one).best
        told = d.evaluate(one, x, baselines=False)
        numbers = (best.mean(), (best > FOUND).mean(), told.fvu.mean, told.l0.mean)
        rows.append((*numbers, told.dead))
    return Row(*np.asarray(rows, np.float64).T)


def baselines(
    source: PlantedFeatures, latents: int, *, k: int, seeds: int
) -> dict[str, Row]:
    """Scores dictionaries that were not trained, and principal components."""
    embed = source.features.shape[1]
    new = [
        d.untrained(
            *(d.TopK(k), d.SAE(embed)), latents=latents, key=jax.random.key(seed)
        )
        for seed in range(seeds)
    ]
    x = fresh(source)
    components = d.evaluate(new[0], x).baselines["pca"]
    axes = jnp.linalg.svd(x - x.mean(0), full_matrices=False)[2]
    best = d.similarity(source.features, axes).best
    numbers = (best.mean(), (best > FOUND).mean(), components.fvu.mean)
    numbers += (components.l0.mean, 0.0)
    row = Row(*(np.asarray([number], np.float64) for number in numbers))
    return {"random": scored(new, source), "PCA": row}


def fresh(source: PlantedFeatures) -> jax.Array:
    """Draws examples that no training has seen."""
    start = jnp.int32(1_000_000)
    return jnp.concatenate([source.batch(start + i)[1].x for i in range(FRESH)])
