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
    spread = ((x - x.mean(0)) ** 2).sum()
    rows = []
    for one in found:
        latents = one.encode(x)
        active = latents > 0
        error = ((x - one.decode(latents, x)) ** 2).sum()
        best = cosines(source, one.weights.decoder)
        numbers = (best.mean(), (best > FOUND).mean(), error / spread)
        rows.append((*numbers, active.sum(1).mean(), 1 - active.any(0).mean()))
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
    centre = x.mean(0)
    _, sizes, axes = jnp.linalg.svd(x - centre, full_matrices=False)
    best = cosines(source, axes)
    left = (sizes[k:] ** 2).sum() / (sizes**2).sum()
    numbers = (best.mean(), (best > FOUND).mean(), left, float(k), 0.0)
    components = Row(*(np.asarray([number], np.float64) for number in numbers))
    return {"random": scored(new, source), "PCA": components}


def fresh(source: PlantedFeatures) -> jax.Array:
    """Draws examples that no training has seen."""
    start = jnp.int32(1_000_000)
    return jnp.concatenate([source.batch(start + i)[1].x for i in range(FRESH)])


def cosines(source: PlantedFeatures, rows: jax.Array) -> jax.Array:
    """Returns each feature's largest cosine with a row."""
    features = source.features
    features = features / jnp.linalg.norm(features, axis=1, keepdims=True)
    rows = rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return (features @ rows.T).max(1)
