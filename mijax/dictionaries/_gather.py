"""The pass over text in which features are gathered: one compiled program."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt32

from mijax._errors import ConfigError
from mijax.data.internal import Reader
from mijax.dictionaries._dictionary import Dictionary
from mijax.dictionaries._latents import fitting

# Values below 2 to this count as 0 in histograms, as their bins could not be doubled
# often enough.
_LOWEST = -64


class Keep(eqx.Module):
    """How much is kept of each latent: a frozen value.

    Attributes:
        top: examples at which it is largest.
        sampled: random examples at which it is active.
        before: tokens of the window before the one in question.
        after: tokens after it.
        bins: of the histogram.
        words: tokens whose logits it raises most, and as many that it lowers.
        neighbours: latents with the most similar rows of the decoder.
        seed: of the random examples.

    Raises:
        ConfigError: a negative size, or nothing to keep.

    Examples:
        >>> Keep(top=20, before=30).window
        39
    """

    top: int = eqx.field(static=True, default=12)
    sampled: int = eqx.field(static=True, default=12)
    before: int = eqx.field(static=True, default=16)
    after: int = eqx.field(static=True, default=8)
    bins: int = eqx.field(static=True, default=40)
    words: int = eqx.field(static=True, default=10)
    neighbours: int = eqx.field(static=True, default=8)
    seed: int = eqx.field(static=True, default=0)

    def __check_init__(self):
        """Refuses sizes that cannot be."""
        some = (self.top, self.bins, self.words)
        rest = (self.sampled, self.before, self.after, self.neighbours)
        if min(some) < 1 or min(rest) < 0:
            raise ConfigError(f"Sizes are not negative and some positive, got {self}.")

    @property
    def window(self) -> int:
        """Tokens of a window."""
        return self.before + 1 + self.after


class Held(NamedTuple):
    """Examples of each latent that are kept, first ones first.

    Attributes:
        order: what decides, larger is better; 0 where there is no example.
        row: of the stream, -1 where there is none.
        position: in its row.
        tokens: of the window; -1 beyond the ends of the row.
        values: the latent there; NaN where a token does not count.
    """

    order: Shaped[Any, "latent example"]
    row: Int[Any, "latent example"]
    position: Int[Any, "latent example"]
    tokens: Int[Any, "latent example window"]
    values: Float[Any, "latent example window"]


class Carried(NamedTuple):
    """What is known so far.

    Attributes:
        active: tokens at which each latent is active.
        mean: of its values there.
        largest: of them.
        exponent: its bins reach from 0 to 2 to the power of this.
        counts: of its values in bins.
        top: where it is largest.
        sampled: random ones.
    """

    active: Int[Any, " latent"]
    mean: Float[Any, " latent"]
    largest: Float[Any, " latent"]
    exponent: Int[Any, " latent"]
    counts: Int[Any, "latent bin"]
    top: Held
    sampled: Held


class Text(NamedTuple):
    """A batch of tokens.

    Attributes:
        tokens: `[batch, seq]`.
        lengths: of rows.
        counted: which tokens count.
        first: number of the first row in the stream.
    """

    tokens: Int[Any, "batch seq"]
    lengths: Int[Any, " batch"]
    counted: Bool[Any, "batch seq"]
    first: Int[Any, ""]


class Fixed(NamedTuple):
    """What a step reads and does not change."""

    reader: Reader
    dictionary: Dictionary
    which: Int[Array, " latent"]
    text: Text
    keep: Keep


def begin(latents: int, keep: Keep) -> Carried:
    """Returns what is known before the first batch."""

    def held(count: int, kind: Any) -> Held:
        shape = (latents, count)
        return Held(
            jnp.zeros(shape, kind),
            jnp.full(shape, -1, jnp.int32),
            jnp.full(shape, -1, jnp.int32),
            jnp.full((*shape, keep.window), -1, jnp.int32),
            jnp.full((*shape, keep.window), jnp.nan, jnp.float32),
        )

    return Carried(
        active=jnp.zeros(latents, jnp.int32),
        mean=jnp.zeros(latents, jnp.float32),
        largest=jnp.zeros(latents, jnp.float32),
        exponent=jnp.full(latents, _LOWEST, jnp.int32),
        counts=jnp.zeros((latents, keep.bins), jnp.int32),
        top=held(keep.top, jnp.float32),
        sampled=held(keep.sampled, jnp.uint32),
    )


@eqx.filter_jit(donate="all-except-first")
def gather(fixed: Fixed, known: Carried) -> Carried:
    """Adds what a batch of text shows."""
    reader, dictionary, which, text, keep = fixed
    # The reader has joined heads.
    x = fitting(dictionary, reader(text.tokens, text.lengths).x, heads=False)
    found = dictionary.encode(x)[..., which]
    # What does not count may be no number.
    found = jnp.where(text.counted[..., None], found, 0)
    here = found > 0
    count = here.sum((0, 1), dtype=jnp.int32)
    active = known.active + count
    # The mean is moved, not divided from a sum that rounding stops from growing.
    moved = (jnp.where(here, found - known.mean, 0)).sum((0, 1))
    largest = jnp.maximum(known.largest, found.max((0, 1)))
    exponent, counts = _binned(known, found, largest)
    draws = _draws(text, which, found.shape[1], keep.seed)
    return Carried(
        active=active,
        mean=known.mean + moved / jnp.maximum(active, 1),
        largest=largest,
        exponent=exponent,
        counts=counts,
        top=_merged(known.top, found, found, text, keep),
        sampled=_merged(known.sampled, jnp.where(here, draws, 0), found, text, keep),
    )


def _binned(
    known: Carried, found: Float[Array, "batch seq latent"], largest: Array
) -> tuple[Int[Array, " latent"], Int[Array, "latent bin"]]:
    """Counts values in bins; their width doubles until the largest value has one.

    As it doubles, old bins fall into new ones whole: the result is that of bins which
    were wide enough from the start.
    """
    bins = known.counts.shape[1]
    wanted = jnp.where(largest > 0, jnp.frexp(largest)[1], _LOWEST)
    exponent = jnp.maximum(known.exponent, wanted)
    steps = jnp.minimum(exponent - known.exponent, 31)
    row = jnp.arange(len(exponent))[:, None]
    to = jnp.arange(bins)[None, :] >> steps[:, None]
    counts = jnp.zeros_like(known.counts).at[row, to].add(known.counts)
    scaled = jnp.ldexp(found * bins, -exponent)
    index = jnp.minimum(scaled.astype(jnp.int32), bins - 1)
    # What is not active has no bin: it is dropped.
    index = jnp.where(found > 0, index, bins)
    latent = jnp.broadcast_to(jnp.arange(len(exponent)), index.shape)
    return exponent, counts.at[latent, index].add(1, mode="drop")


def _draws(
    text: Text, which: Int[Array, " latent"], seq: int, seed: int
) -> UInt32[Array, "batch seq latent"]:
    """Draws a number for each latent at each token, whatever batch it comes in."""
    row = text.first + jnp.arange(text.tokens.shape[0])
    place = (row[:, None] * seq + jnp.arange(seq)).astype(jnp.uint32)
    place = _mixed(place + jnp.uint32((seed * 0x9E3779B9) % 2**32))
    latent = _mixed(which.astype(jnp.uint32) + jnp.uint32(0x9E3779B9))
    return _mixed(place[..., None] ^ latent) | jnp.uint32(1)


def _mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Mixes the bits of numbers: the last step of MurmurHash3 (Appleby 2011)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _merged(
    held: Held,
    order: Shaped[Array, "batch seq latent"],
    found: Float[Array, "batch seq latent"],
    text: Text,
    keep: Keep,
) -> Held:
    """Keeps the best tokens of what is held and of the best one of each new row."""
    count = held.order.shape[1]
    if not count:
        return held
    place = order.argmax(1).T  # [latent, batch]; of equals the first
    both = jnp.concatenate([held.order, order.max(1).T], axis=1)
    # Of equals the first, which came before in the stream.
    best, index = jax.lax.top_k(both, count)
    old, row = index < count, jnp.maximum(index - count, 0)
    position = jnp.take_along_axis(place, row, 1)
    tokens, values = _windows(found, text, row, position, keep)
    new = Held(best, text.first + row, position, tokens, values)

    def kept(one: Array, other: Array) -> Array:
        more = (1,) * (one.ndim - 2)
        slot = jnp.minimum(index, count - 1).reshape(*index.shape, *more)
        one = jnp.take_along_axis(one, slot, 1)
        return jnp.where(old.reshape(*old.shape, *more), one, other)

    # A row without the latent, of order 0, never gets in: the empty slots of what is
    # held are as good and come first.
    return jax.tree.map(kept, held, new)


def _windows(
    found: Float[Array, "batch seq latent"],
    text: Text,
    row: Int[Array, "latent example"],
    position: Int[Array, "latent example"],
    keep: Keep,
) -> tuple[Array, Array]:
    """Cuts windows out of rows of the batch: tokens, and the latent at each."""
    seq = found.shape[1]
    place = position[..., None] + jnp.arange(-keep.before, keep.after + 1)
    inside = (place >= 0) & (place < text.lengths[row][..., None])
    place, row = jnp.clip(place, 0, seq - 1), row[..., None]
    latent = jnp.arange(found.shape[2])[:, None, None]
    tokens = jnp.where(inside, text.tokens[row, place], -1)
    counted = inside & text.counted[row, place]
    return tokens, jnp.where(counted, found[row, place, latent], jnp.nan)
