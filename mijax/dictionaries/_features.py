"""`features`: what is known of each latent, gathered in one pass over text."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import ConfigError, ShapeError, TokenError, nearest
from mijax._progress import Progress, reports
from mijax.core import AbstractModel, Site
from mijax.data import Tokens
from mijax.data.internal import reader_of, valid
from mijax.dictionaries._dictionary import Dictionary
from mijax.dictionaries._direct import SITES, logit_weights
from mijax.dictionaries._gather import Fixed, Held, Keep, Text, begin, gather
from mijax.dictionaries._wiring import SAE
from mijax.dictionaries.evaluation._similarity import directions
from mijax.nn import Readout

_ROWS = 64


class Excerpts(eqx.Module):
    """Windows of text around tokens at which latents are active.

    Where there are fewer than were asked for, the rest has row -1.

    Attributes:
        row: row of the stream of tokens, `[latent, example]`.
        position: place of the token in its row, `[latent, example]`.
        tokens: ids of the window, -1 beyond the ends of the row, `[latent, example,
            window]`.
        values: the latent at each of them, NaN where a token does not count.
        before: place of the token in its window.
    """

    row: Int[np.ndarray, "latent example"]
    position: Int[np.ndarray, "latent example"]
    tokens: Int[np.ndarray, "latent example window"]
    values: Float[np.ndarray, "latent example window"]
    before: int = eqx.field(static=True)

    @property
    def peak(self) -> Float[np.ndarray, "latent example"]:
        """The latent at the token itself; NaN where there is no example."""
        return self.values[:, :, self.before]


class Ranked(eqx.Module):
    """What comes first by some number, and the number.

    Attributes:
        ids: of tokens or of latents, `[latent, rank]`.
        values: the numbers, `[latent, rank]`.
    """

    ids: Int[np.ndarray, "latent rank"]
    values: Float[np.ndarray, "latent rank"]


class Features(eqx.Module):
    """What is known of each latent.

    Attributes:
        latents: which they are.
        tokens: how many tokens count.
        active: at how many of them each latent is active.
        mean: of a latent where it is active; 0 for one that never is.
        largest: its largest value.
        counts: histogram of its values above 0, in bins of equal width.
        reach: upper end of the last bin, a power of two; 0 for a latent never active.
        top: where it is largest, at most one example of each row, largest first.
        sampled: random tokens at which it is active, at most one of each row, largest
            first.
        promoted: tokens whose logits it raises most, `None` where it does not write to
            the residual stream. See `logit_weights`.
        suppressed: tokens whose logits it lowers most.
        neighbours: latents of the dictionary whose decoder rows have the largest cosine
            with its own, and the cosine.
    """

    latents: Int[np.ndarray, " latent"]
    tokens: int = eqx.field(static=True)
    active: Int[np.ndarray, " latent"]
    mean: Float[np.ndarray, " latent"]
    largest: Float[np.ndarray, " latent"]
    counts: Int[np.ndarray, "latent bin"]
    reach: Float[np.ndarray, " latent"]
    top: Excerpts
    sampled: Excerpts
    promoted: Ranked | None
    suppressed: Ranked | None
    neighbours: Ranked

    @property
    def density(self) -> Float[np.ndarray, " latent"]:
        """Share of the tokens at which each latent is active."""
        return (self.active / self.tokens).astype(np.float32)

    def place(self, latent: int) -> int:
        """Returns where a latent stands in the arrays.

        Raises:
            ShapeError: it was not gathered.
        """
        found = np.flatnonzero(self.latents == latent)
        if not found.size:
            names = [str(i) for i in self.latents.tolist()]
            raise ShapeError(
                f"Latent {latent} was not gathered{nearest(str(latent), names)}; give "
                "it to `features`."
            )
        return int(found[0])


@reports("Features")
def features(
    model: AbstractModel,
    dictionary: Dictionary,
    tokens: Tokens,
    site: Site | Sequence[Site],
    *,
    latents: Sequence[int] | None = None,
    rows: int | None = None,
    exclude: Sequence[int] | None = None,
    keep: Keep | None = None,
    progress: Progress = None,
) -> Features:
    """Gathers what a dashboard shows of each latent, in one pass over text.

    Running the model up to the site, encoding, and merging what is found into what is
    kept is one compiled program. The result does not depend on how many rows a batch
    has. Beside the model, a batch takes about `24 * rows * seq` bytes per latent, and
    what is kept `8 * (top + sampled) * window` and a little more: 5.3 kB by default.

    Args:
        model: any `AbstractModel`.
        dictionary: which reads that site.
        tokens: where tokens come from; how many rows are read at a time is theirs.
        site: where, with its layer; a list of sites where the dictionary reads several.
        latents: which; all by default.
        rows: how many rows of the stream are read; all of an epoch by default.
        exclude: ids of tokens that do not count. If `None`, the stream's `bos` and
            separator, as in `mijax.data.Activations`.
        keep: how much is kept.
        progress: called with rows of the stream done and their number; `None` draws a
            bar after three seconds in a terminal or notebook, `False` none.

    Returns:
        The features. Of equal values the one that comes first counts.

    Raises:
        ConfigError: sizes that make no sense, or more rows than an epoch has.
        ShapeError: a latent that there is not, twice the same, or activations that the
            dictionary does not read.
        SiteError: a site that the model does not have, or not one layer of it.
        TokenError: tokens that are no stream, or that the model does not have.

    Examples:
        >>> from mijax import dictionaries as d
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> sae = d.untrained(d.TopK(4), d.SAE(32), latents=64, key=jax.random.key(1))
        >>> text = jax.random.randint(jax.random.key(2), (20, 12), 0, 64)
        >>> corpus = mijax.data.Corpus.from_ids(np.asarray(text))
        >>> stream = mijax.data.Tokens(corpus, seq=12, batch=4)
        >>> found = features(model, sae, stream, Site("resid_post", layer=1))
        >>> found.tokens, found.top.tokens.shape
        (240, (64, 12, 25))
        >>> round(float(found.density.sum()), 3)  # as many as are active at a token
        4.0
    """
    if not isinstance(tokens, Tokens):
        raise TokenError(
            f"Features are gathered from a stream of tokens, got "
            f"{type(tokens).__name__}: give mijax.data.Tokens(corpus, seq=..., "
            "batch=...) of mijax.data.tokenize(...) or Corpus.from_ids(...)."
        )
    keep = Keep() if keep is None else keep
    rows = _rows(tokens, rows)
    which = _which(dictionary, latents)
    specials = (tokens.bos, tokens.corpus.separator)
    given = specials if exclude is None else exclude
    out = sorted({int(i) for i in given if i is not None})
    reader, _ = reader_of(model, tokens, site, None)
    state, seen = begin(len(which), keep), 0
    index = jnp.asarray(which, jnp.int32)
    for first in range(0, rows, tokens.rows):
        batch = tokens.whole(first // tokens.rows)
        real = np.arange(first, first + tokens.rows) < rows
        lengths = np.where(real, np.asarray(batch.lengths), 0).astype(np.int32)
        counted = valid(batch, out) & real[:, None]
        seen += int(counted.sum())
        text = Text(np.asarray(batch.tokens), lengths, counted, np.int32(first))
        state = gather(Fixed(reader, dictionary, index, text, keep), state)
        if progress:
            state.active.block_until_ready()
            progress(min(first + tokens.rows, rows), rows)
    if not seen:
        raise ConfigError("No token counts: each is padding or excluded.")
    held = jax.tree.map(np.asarray, state)
    promoted, suppressed = _words(model, dictionary, site, index, keep.words)
    return Features(
        latents=which,
        tokens=seen,
        active=held.active,
        mean=held.mean,
        largest=held.largest,
        counts=held.counts,
        reach=np.where(held.active > 0, np.exp2(held.exponent), 0).astype(np.float32),
        top=_excerpts(held.top, keep),
        sampled=_excerpts(held.sampled, keep),
        promoted=promoted,
        suppressed=suppressed,
        neighbours=_neighbours(dictionary, index, keep.neighbours),
    )


def _rows(tokens: Tokens, rows: int | None) -> int:
    """Returns how many rows are read."""
    rows = tokens.windows if rows is None else rows
    if not 1 <= rows <= tokens.windows:
        raise ConfigError(
            f"An epoch has {tokens.windows} rows, not {rows}: no row is read twice."
        )
    if rows * tokens.seq >= 2**31:
        raise ConfigError(
            f"{rows} rows of {tokens.seq} tokens are more than can be counted: give "
            "fewer than 2**31 tokens."
        )
    return rows


def _which(
    dictionary: Dictionary, latents: Sequence[int] | None
) -> Int[np.ndarray, " latent"]:
    """Returns which latents are looked at."""
    n = dictionary.latents
    which = np.arange(n) if latents is None else np.asarray(list(latents), np.int64)
    if not which.size or which.min() < 0 or which.max() >= n:
        raise ShapeError(f"Latents are from 0 to {n - 1}, at least one; got {latents}.")
    if np.unique(which).size < which.size:
        raise ShapeError("The same latent is asked for twice; give each once.")
    return which.astype(np.int32)


def _excerpts(held: Held, keep: Keep) -> Excerpts:
    """Sorts examples by the latent at their tokens; of equals, earlier ones first."""
    peak = np.nan_to_num(held.values[:, :, keep.before])
    order = np.lexsort((held.position, held.row, -peak), axis=1)
    row, position = (np.take_along_axis(a, order, 1) for a in (held.row, held.position))
    tokens, values = (
        np.take_along_axis(a, order[:, :, None], 1) for a in (held.tokens, held.values)
    )
    return Excerpts(row, position, tokens, values, keep.before)


def _words(
    model: AbstractModel,
    dictionary: Dictionary,
    site: Site | Sequence[Site],
    which: Int[Array, " latent"],
    count: int,
) -> tuple[Ranked, Ranked] | tuple[None, None]:
    """Returns the tokens that latents promote and those that they suppress."""
    readout = model.readout
    if not isinstance(readout, Readout):
        return None, None
    width = readout.width
    # The heads of z may be as wide as the residual stream, but are not added to it.
    adds = isinstance(site, Site) and site.name in SITES and site.name != "z"
    if dictionary.wiring.writes != (width,) or not (
        adds or not isinstance(dictionary.wiring, SAE)
    ):
        return None, None
    count = min(count, readout.outputs)
    up, down = _extremes(model, dictionary, which, count)
    return ranked(up), ranked((-down[0], down[1]))


def ranked(found: tuple[Array, Array]) -> Ranked:
    """Makes a record of what `top_k` gives."""
    values, ids = found
    return Ranked(np.asarray(ids), np.asarray(values))


@eqx.filter_jit
def _extremes(
    model: AbstractModel,
    dictionary: Dictionary,
    which: Int[Array, " latent"],
    count: int,
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Ranks logits, some latents at a time."""

    def one(latent: Array) -> Any:
        weights = logit_weights(model, dictionary, latent)
        up, down = jax.lax.top_k(weights, count), jax.lax.top_k(-weights, count)
        return tuple(up), tuple(down)

    return jax.lax.map(one, which, batch_size=min(_ROWS, len(which)))


def _neighbours(
    dictionary: Dictionary, which: Int[Array, " latent"], count: int
) -> Ranked:
    """Returns the latents whose rows of the decoder are most alike."""
    count = min(count, dictionary.latents - 1)
    if not count:
        none = np.zeros((len(which), 0))
        return Ranked(none.astype(np.int32), none.astype(np.float32))
    return ranked(_alike(directions(dictionary), which, count))


@eqx.filter_jit
def _alike(
    rows: Float[Array, "all out"], which: Int[Array, " latent"], count: int
) -> tuple[Array, Array]:
    def one(latent: Array) -> tuple[Array, Array]:
        cosines = (rows @ rows[latent]).at[latent].set(-jnp.inf)
        values, ids = jax.lax.top_k(cosines, count)
        return values, ids

    return jax.lax.map(one, which, batch_size=min(_ROWS, len(which)))
