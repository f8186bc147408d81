"""What dictionaries, random directions and principal components keep of a model."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax import dictionaries as d
from mijax.io import replace_file
from mijax.models import Loaded

from ._activations import HeldOut

COLUMNS: tuple[str, ...] = ("L0", "FVU", "NMSE", "cosine")
COLUMNS += ("CE share, zero", "CE share, mean", "KL share, zero", "KL share, mean")
# Rows of activations whose latents are computed at once.
ROWS = 1024


class Span(NamedTuple):
    """A number with its confidence interval."""

    mean: float
    low: float
    high: float


class Score(NamedTuple):
    """How good a dictionary is; numbers of its columns have intervals.

    Attributes:
        numbers: by the name of their column.
        density: share of rows in which each latent is active, `[latent]`.
        dead: share of latents that no row activates.
        dense: share of latents that more than a tenth of the rows activate.
    """

    numbers: dict[str, Span]
    density: Float[np.ndarray, " latent"]
    dead: float
    dense: float

    @property
    def l0(self) -> Span:
        """Active latents per row."""
        return self.numbers["L0"]

    @property
    def fvu(self) -> Span:
        """Squared error over variance."""
        return self.numbers["FVU"]


def scored(
    dictionary: d.Dictionary, loaded: Loaded, held: HeldOut, file: Path
) -> Score:
    """Measures a dictionary, or reads what was measured before.

    Args:
        dictionary: any.
        loaded: the model.
        held: what it is measured on.
        file: where the numbers are kept.
    """
    if not file.exists():
        measure(dictionary, loaded, held, file)
    with np.load(file) as kept:
        spans = [Span(*map(float, span)) for span in kept["spans"]]
        numbers: dict[str, Span] = dict(zip(COLUMNS, spans, strict=True))
        return Score(numbers, kept["density"], *map(float, kept["shares"]))


def measure(
    dictionary: d.Dictionary, loaded: Loaded, held: HeldOut, file: Path
) -> None:
    """Measures a dictionary and keeps the numbers."""
    # Its numbers as arrays: others of its kind run the same program.
    dictionary = jax.tree.map(jnp.asarray, dictionary)
    told = d.evaluate(dictionary, held.rows, batch=ROWS, baselines=False)
    loss = d.recovered(
        *(loaded.model, dictionary, held.few, held.site), exclude=held.exclude
    )
    found = [told.l0, told.fvu, told.fvu, told.cosine]
    for share in (loss.ce_share, loss.kl_share):
        found += [share["zero"], share["mean"]]
    spans = np.array([[float(x.mean), float(x.low), float(x.high)] for x in found])
    spans[COLUMNS.index("NMSE")] *= held.spread
    density, shares = np.asarray(told.density), np.array([told.dead, told.dense])
    replace_file(
        file,
        lambda path: np.savez(path, spans=spans, density=density, shares=shares),
    )


def rivals(
    latents: int, k: int, held: HeldOut, axes: tuple[Array, Array]
) -> dict[str, d.Dictionary]:
    """Returns what a dictionary is compared with, each as sparse as it is.

    Args:
        latents: how many it has.
        k: its active latents per row; more than the size of a row count as that.
        held: rows.
        axes: mean and principal components of the rows (`principal`).

    Returns:
        Random directions, of which the `k` largest latents are kept, and the first `k`
        principal components.
    """
    embed = held.rows.shape[1]
    most = min(embed, latents)
    random = d.untrained(
        # Room for any k: all of them are one program.
        *(d.TopK(min(k, most), most=most), d.SAE(embed)),
        latents=latents,
        key=jax.random.key(0),
        centre=axes[0],
    )
    return {"random": random, "PCA": components(min(k, embed), *axes)}


def principal(rows: Float[Array, "row embed"]) -> tuple[Array, Array]:
    """Returns the mean and the principal components of rows, largest first."""
    centred = np.asarray(rows, np.float64)
    mean = centred.mean(0)
    centred -= mean
    _, vectors = np.linalg.eigh(centred.T @ centred)
    return jnp.float32(mean), jnp.float32(vectors[:, ::-1].T)


def components(
    k: int, mean: Float[Array, " embed"], axes: Float[Array, "axis embed"]
) -> d.Dictionary:
    """Writes the first principal components as a dictionary.

    A component and its opposite are two latents, of which one is active: so many active
    latents as components, and what they write is the projection.

    Args:
        k: how many components.
        mean: of the rows.
        axes: components; those beyond `k` become 0, so that all `k` are one program.
    """
    used = jnp.where(jnp.arange(len(axes))[:, None] < k, axes, 0)
    both = jnp.concatenate([used, -used])
    weights = d.Weights(both, jnp.zeros(len(both)), both, mean)
    wiring = d.SAE(axes.shape[1])
    return d.Dictionary(d.ReLU(0.0), wiring, weights, None, None, jnp.float32(1))
