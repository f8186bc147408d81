"""Activations of texts, token by token, and their latents."""

from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

import mijax
from mijax.dictionaries import Dictionary
from mijax.io import replace_file
from mijax.nn import Transformer

from ._texts import Texts

# Texts that the model runs on at once; their lengths are rounded up.
ROWS, ROUND = 32, 16


class Acts(NamedTuple):
    """Activations of texts; the first token, on which attention rests, is left out.

    Attributes:
        x: `[text, seq, embed]`.
        lengths: how many tokens of each are real, `[text]`.
    """

    x: Float[np.ndarray, "text seq embed"]
    lengths: Int[np.ndarray, " text"]

    @property
    def mask(self) -> Bool[np.ndarray, "text seq"]:
        """Which tokens are real."""
        return np.arange(self.x.shape[1]) < self.lengths[:, None]

    @property
    def last(self) -> Float[np.ndarray, "text embed"]:
        """Those of the last token."""
        return self.x[np.arange(len(self.x)), self.lengths - 1]


class Latents(NamedTuple):
    """Latents of texts.

    Attributes:
        last: of the last token, `[text, latent]`.
        largest: the largest of all tokens, `[text, latent]`.
    """

    last: Float[np.ndarray, "text latent"]
    largest: Float[np.ndarray, "text latent"]


def read(model: Transformer, texts: Texts, site: mijax.Site, file: Path) -> Acts:
    """Runs the model, or reads what a run that was interrupted kept.

    Args:
        model: the model.
        texts: of any lengths.
        site: where.
        file: where activations are kept, in half precision.

    Returns:
        The activations.
    """
    if not file.exists():
        count, longest = texts.tokens.shape
        out = None
        for at, size in _alike(texts.lengths, longest):
            tokens = np.zeros((ROWS, size), np.int32)
            tokens[: len(at)] = texts.tokens[at, :size]
            acts = mijax.capture(model, tokens, site)
            if out is None:
                out = np.zeros((count, longest - 1, acts.shape[-1]), np.float16)
            out[at, : size - 1] = np.asarray(acts)[: len(at), 1:]
        assert out is not None
        kept = out
        replace_file(file, lambda path: np.save(path, kept))
    return Acts(np.load(file), texts.lengths - 1)


def encode(dictionary: Dictionary, acts: Acts) -> Latents:
    """Reads the latents of texts.

    Args:
        dictionary: which reads the site.
        acts: activations of the texts.

    Returns:
        Latents of the last token, and the largest of all tokens.
    """
    count, longest, _ = acts.x.shape
    shape = (count, dictionary.latents)
    last, largest = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for at, size in _alike(acts.lengths, longest):
        x = np.zeros((ROWS, size, acts.x.shape[2]), np.float32)
        x[: len(at)] = acts.x[at, :size]
        lengths = np.ones(ROWS, np.int32)
        lengths[: len(at)] = acts.lengths[at]
        found = _encoded(dictionary, jnp.asarray(x), jnp.asarray(lengths))
        last[at], largest[at] = (np.asarray(part)[: len(at)] for part in found)
    return Latents(last, largest)


def _alike(lengths: Int[np.ndarray, " text"], longest: int) -> Any:
    """Yields the indices of texts of like length, and that length rounded up."""
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), ROWS):
        at = order[start : start + ROWS]
        yield at, min(longest, -(-int(lengths[at].max()) // ROUND) * ROUND)


@eqx.filter_jit
def _encoded(
    dictionary: Dictionary, x: Float[Array, "text seq embed"], lengths: Array
) -> tuple[Array, Array]:
    # Text by text, so that latents of all tokens are never there at once.
    def one(given: tuple[Array, Array]) -> tuple[Array, Array]:
        x, length = given
        latents = dictionary.encode(x)
        real = jnp.arange(len(x))[:, None] < length
        return latents[length - 1], jnp.where(real, latents, 0).max(0)

    return jax.lax.map(one, (x, lengths))


def rows_of(
    acts: list[Acts], part: slice, outlier: float
) -> Float[np.ndarray, "row embed"]:
    """Gathers activations of single tokens, to train a dictionary on.

    Args:
        acts: of several data sets.
        part: which texts of each.
        outlier: rows so many times as long as the median are left out.

    Returns:
        The rows.
    """
    rows = [one.x[part][one.mask[part]] for one in acts]
    x = np.concatenate(rows).astype(np.float32)
    norms = np.linalg.norm(x, axis=1)
    return x[norms <= outlier * np.median(norms)]
