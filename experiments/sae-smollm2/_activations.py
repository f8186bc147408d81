"""Activations of a model: a stream to train on, and rows to measure on."""

from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

import mijax
from mijax import dictionaries as d
from mijax.data import (
    AbstractSource,
    Activations,
    Examples,
    Stored,
    Tokens,
    geometric_median,
    statistics,
    store,
)
from mijax.io import replace_file
from mijax.models import Loaded

from ._text import Text

# Batches of which scale and centre are taken.
SAMPLE = 8


class HeldOut(NamedTuple):
    """What dictionaries are measured on.

    Attributes:
        tokens: sequences, `[sequence, seq]`.
        acts: activations of all of them, `[sequence, seq, embed]`.
        rows: those that are not left out, `[row, embed]`.
        few: sequences on which the loss is measured, `[few, seq]`.
        exclude: tokens whose activations are left out.
        site: where.
        spread: share of the rows' mean square that is variance, by which FVU has to be
            multiplied to be relative to zero.
    """

    tokens: Int[np.ndarray, "sequence seq"]
    acts: Float[np.ndarray, "sequence seq embed"]
    rows: Float[Array, "row embed"]
    few: Int[Array, "few seq"]
    exclude: tuple[int, ...]
    site: mijax.Site
    spread: float


def stream(loaded: Loaded, text: Text, config: Any, folder: Path) -> AbstractSource:
    """Returns batches of activations to train on.

    With a number of rows in the config they are written to disk once, and gone through
    as often as training needs; without, the model runs beside the training.

    Args:
        loaded: the model.
        text: tokens.
        config: of the experiment.
        folder: where rows are kept.
    """
    tokens = Tokens(
        text.train,
        seq=config.seq,
        batch=config.prompts,
        bos=text.bos,
        seed=config.seed,
        epochs=1 if config.rows else None,
    )
    site = mijax.Site(config.site, layer=config.layer)
    live = Activations(
        loaded.model, tokens, site, batch=config.batch, exclude=text.exclude
    )
    if not config.rows:
        return live
    available = live.available or config.rows
    n = min(config.rows, available // config.batch * config.batch)
    store(live, folder, n, dtype="float16")
    return Stored(folder, batch=config.batch, seed=config.seed)


def scaled(source: AbstractSource, file: Path) -> tuple[Array, Array]:
    """Returns scale and centre of a stream: those in the file if there is one.

    A run that goes on has to go on with the same numbers, to the last bit.

    Args:
        source: the stream.
        file: where they are kept.

    Returns:
        What makes the mean square norm of rows their size, and the geometric median of
        rows, scaled.
    """
    if not file.exists():
        state, parts = source.start(), []
        for _ in range(SAMPLE):
            state, batch = source.batch(state)
            parts.append(batch.x)
        rows = jnp.concatenate(parts).astype(jnp.float32)
        scale = statistics(Examples(rows, batch=len(rows)), len(rows)).scale
        centre = geometric_median(rows) * scale
        replace_file(file, lambda path: np.savez(path, scale=scale, centre=centre))
    with np.load(file) as kept:
        return jnp.asarray(kept["scale"]), jnp.asarray(kept["centre"])


def held_out(loaded: Loaded, text: Text, config: Any) -> HeldOut:
    """Runs the model on the sequences that were held out.

    Args:
        loaded: the model.
        text: tokens.
        config: of the experiment.
    """
    site, tokens = mijax.Site(config.site, layer=config.layer), text.held_out
    size, parts = min(config.prompts, len(tokens)), []
    for at in range(0, len(tokens), size):
        # The last part begins earlier and is no shorter: one shape, one program.
        first = min(at, len(tokens) - size)
        found = mijax.capture(loaded.model, jnp.asarray(tokens[first:][:size]), site)
        parts.append(np.asarray(found, np.float32)[at - first :])
    acts = np.concatenate(parts)
    rows = acts[~np.isin(tokens, text.exclude)]
    square = (rows.astype(np.float64) ** 2).sum(1).mean()
    spread = rows.var(0, dtype=np.float64).sum() / square
    step = max(1, len(tokens) // config.loss_sequences)
    few = jnp.asarray(tokens[::step][: config.loss_sequences])
    return HeldOut(
        *(tokens, acts, jnp.asarray(rows), few, text.exclude, site, float(spread))
    )


def splice_error(loaded: Loaded, dictionary: d.Dictionary, held: HeldOut) -> float:
    """Measures what a splice that changes no latent changes in the logits.

    Args:
        loaded: the model.
        dictionary: any.
        held: sequences.

    Returns:
        The largest difference of a logit.
    """
    tokens = held.few[:2]
    edit = d.Splice(dictionary, mijax.Scale(1.0)).at(held.site)
    apart = mijax.run(loaded.model, tokens, edit) - mijax.run(loaded.model, tokens)
    return float(jnp.abs(apart).max())
