"""Activations of a model: a stream to train on, and rows to measure on."""

from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

import mijax
from mijax import dictionaries as d
from mijax._errors import ConfigError
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
        rows: activations of all sequences that are not left out, `[row, embed]`.
        outliers: share of them that is left out for its length.
        whole: sequences without an outlier, `[sequence, seq]`.
        few: those on which the loss is measured, `[few, seq]`.
        exclude: tokens whose activations are left out.
        site: where.
        spread: share of the rows' mean square that is variance, by which FVU has to be
            multiplied to be relative to zero.
    """

    rows: Float[Array, "row embed"]
    outliers: float
    whole: Int[np.ndarray, "sequence seq"]
    few: Int[Array, "few seq"]
    exclude: tuple[int, ...]
    site: mijax.Site
    spread: float


class Ordinary(AbstractSource):
    """A stream without its outliers: an ordinary row stands in the place of each.

    Where attention rests on a token, its activation is a hundred times as long as
    others: a few of those in a thousand would be most of the variance.

    Attributes:
        source: the stream.
        longest: the norm above which a row is an outlier.
    """

    source: Any
    longest: Float[Array, ""]

    @property
    def digest(self) -> str:
        """What decides the batches."""
        return f"{self.source.digest} up to {float(self.longest)!r}"

    def start(self) -> Any:
        """Returns the state before the first batch."""
        return self.source.start()

    def batch(self, state: Any) -> tuple[Any, Any]:
        """Returns the next state and batch."""
        state, batch = self.source.batch(state)
        return state, eqx.tree_at(lambda b: b.x, batch, replaced(batch.x, self.longest))


@jax.jit
def replaced(
    x: Float[Array, "row embed"], longest: Float[Array, ""]
) -> Float[Array, "row embed"]:
    """Puts the first ordinary row in the place of outliers."""
    ordinary = jnp.linalg.norm(x, axis=1) <= longest
    return jnp.where(ordinary[:, None], x, x[jnp.argmax(ordinary)])


class Sizes(NamedTuple):
    """What a stream is like.

    Attributes:
        scale: what makes the mean square norm of rows their size.
        centre: the geometric median of rows, `[embed]`.
        longest: the norm above which a row is an outlier.
    """

    scale: Float[Array, ""]
    centre: Float[Array, " embed"]
    longest: Float[Array, ""]


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


def sizes(source: AbstractSource, outlier: float, file: Path) -> Sizes:
    """Measures the first batches of a stream, or reads what was measured before.

    A run that goes on has to go on with the same numbers, to the last bit.

    Args:
        source: the stream.
        outlier: how many times the median norm an outlier has.
        file: where the numbers are kept.
    """
    if not file.exists():
        state, parts = source.start(), []
        for _ in range(SAMPLE):
            state, batch = source.batch(state)
            parts.append(batch.x)
        rows = jnp.concatenate(parts).astype(jnp.float32)
        longest = outlier * jnp.median(jnp.linalg.norm(rows, axis=1))
        rows = replaced(rows, longest)
        scale = statistics(Examples(rows, batch=len(rows)), len(rows)).scale
        found = Sizes(scale, geometric_median(rows), longest)
        replace_file(file, lambda path: np.savez(path, **found._asdict()))
    with np.load(file) as kept:
        return Sizes(**{name: jnp.asarray(kept[name]) for name in Sizes._fields})


def held_out(
    loaded: Loaded, text: Text, config: Any, longest: Float[Array, ""]
) -> HeldOut:
    """Runs the model on the sequences that were held out.

    Args:
        loaded: the model.
        text: tokens.
        config: of the experiment.
        longest: the norm above which an activation is an outlier. It is left out, and
            so are sequences with one where the loss is measured.

    Raises:
        ConfigError: every sequence has an outlier.
    """
    site, tokens = mijax.Site(config.site, layer=config.layer), text.held_out
    size, parts = min(config.prompts, len(tokens)), []
    for at in range(0, len(tokens), size):
        # The last part begins earlier and is no shorter: one shape, one program.
        first = min(at, len(tokens) - size)
        found = mijax.capture(loaded.model, jnp.asarray(tokens[first:][:size]), site)
        parts.append(np.asarray(found, np.float32)[at - first :])
    acts = np.concatenate(parts)
    wanted = ~np.isin(tokens, text.exclude)
    ordinary = np.linalg.norm(acts, axis=-1) <= float(longest)
    whole = tokens[(ordinary | ~wanted).all(1)]
    if not len(whole):
        raise ConfigError("Every held-out sequence has an outlier: raise --outlier.")
    few = whole[:: max(1, len(whole) // config.loss_sequences)]
    few = jnp.asarray(few[: config.loss_sequences])
    rows = acts[wanted & ordinary]
    outliers = float(1 - len(rows) / wanted.sum())
    square = (rows.astype(np.float64) ** 2).sum(1).mean()
    spread = rows.var(0, dtype=np.float64).sum() / square
    rest = (outliers, whole, few, text.exclude, site, float(spread))
    return HeldOut(jnp.asarray(rows), *rest)


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
