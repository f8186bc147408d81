"""Activations of prompts at one site, one row per prompt and layer."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mijax._errors import PositionError, ShapeError, SiteError
from mijax.core import Site, capture
from mijax.core.internal import PromptsLike, as_tokens, lengths_of, opened
from mijax.data import Prompts


class AbstractReading(eqx.Module):
    """The tokens that a direction is read from, in prompts of any length."""

    @abc.abstractmethod
    def mask(self, prompts: Prompts) -> Bool[np.ndarray, "prompt seq"]:
        """Return the mask of tokens to average in each prompt."""


class FromEnd(AbstractReading):
    """One token, counted from the end of each prompt.

    Attributes:
        back: 1 is the last token, 2 the one before it.

    Examples:
        >>> import mijax
        >>> prompts = mijax.data.Prompts.from_ids([[5, 6, 7], [8, 9]])
        >>> FromEnd(2).mask(prompts).tolist()
        [[False, True, False], [True, False, False]]
    """

    back: int = eqx.field(static=True, default=1)

    def mask(self, prompts: Prompts) -> Bool[np.ndarray, "prompt seq"]:
        """Return one token of each prompt.

        Raises:
            PositionError: a prompt with fewer tokens.
        """
        lengths = np.asarray(prompts.lengths)
        if not 1 <= self.back <= lengths.min():
            raise PositionError(
                f"FromEnd({self.back}) is out of range: give 1 to {lengths.min()}, the "
                "number of tokens in the shortest prompt."
            )
        return _columns(prompts) == (lengths - self.back)[:, None]


class LastOf(AbstractReading):
    """The last token of a named span.

    Attributes:
        name: name of the span.
    """

    name: str = eqx.field(static=True)

    def mask(self, prompts: Prompts) -> Bool[np.ndarray, "prompt seq"]:
        """Return one token of each prompt."""
        return _columns(prompts) == np.asarray(prompts.position(self.name))[:, None]


class MeanOf(AbstractReading):
    """The mean over the tokens of a named span, or of the whole prompt.

    Attributes:
        name: name of the span; `None` for the whole prompt.
        skip: number of tokens to skip at the start of the prompt, such as 1 for a
            beginning-of-text token.
    """

    name: str | None = eqx.field(static=True, default=None)
    skip: int = eqx.field(static=True, default=0, kw_only=True)

    def mask(self, prompts: Prompts) -> Bool[np.ndarray, "prompt seq"]:
        """Return the tokens of the span.

        Raises:
            PositionError: a prompt without any such token.
        """
        inside = np.asarray(prompts.mask)
        if self.name is not None:
            start, stop = (np.asarray(end)[:, None] for end in prompts.find(self.name))
            inside = (_columns(prompts) >= start) & (_columns(prompts) < stop)
        inside = inside & (_columns(prompts) >= self.skip)
        if not inside.any(1).all():
            i = int(inside.any(1).argmin())
            raise PositionError(f"Prompt {i} has no tokens to read for {self!r}.")
        return inside


def _columns(prompts: Prompts) -> Int[np.ndarray, "1 seq"]:
    return np.arange(prompts.tokens.shape[1])[None]


def as_prompts(model: Any, given: Any) -> tuple[Any, Prompts]:
    """Return a bare model, and texts, tokens or prompts as `Prompts`."""
    bare, given = opened(model, given)
    if isinstance(given, Prompts):
        return bare, given
    tokens = jnp.atleast_2d(as_tokens(given))
    lengths = lengths_of(given)
    if lengths is None:
        lengths = np.full(tokens.shape[0], tokens.shape[1], np.int32)
    lengths = jnp.asarray(lengths, jnp.int32)
    spans = dict(given.spans) if isinstance(given, PromptsLike) else {}
    spans |= {"last": (lengths - 1, lengths)}
    return bare, Prompts(tokens, lengths, spans, ("",) * len(tokens))


def joined(first: Prompts, second: Prompts) -> Prompts:
    """Return two batches as one, with the spans present in both."""
    seq = max(first.tokens.shape[1], second.tokens.shape[1])
    tokens = [
        np.pad(np.asarray(p.tokens), ((0, 0), (0, seq - p.tokens.shape[1])))
        for p in (first, second)
    ]
    both = [name for name in first.spans if name in second.spans]
    merge = lambda a, b: jnp.concatenate([jnp.asarray(a), jnp.asarray(b)])  # noqa: E731
    spans = {n: jax.tree.map(merge, first.spans[n], second.spans[n]) for n in both}
    return Prompts(
        jnp.asarray(np.concatenate(tokens)),
        merge(first.lengths, second.lengths),
        spans,
        first.texts + second.texts,
    )


def read(
    model: Any,
    prompts: Prompts,
    *,
    site: str,
    reading: AbstractReading,
    batch: int | None = None,
) -> Float[Array, "prompt layer embed"]:
    """Read the activations of every layer in one program.

    Raises:
        SiteError: a site outside blocks, or with heads.
    """
    check_site(site)
    mask = reading.mask(prompts)
    if (mask.sum(1) == 1).all():
        place = Site(site, position=mask.argmax(1).astype(np.int32))
        return jnp.asarray(capture(model, prompts, place, batch=batch, progress=False))
    step, found = batch or len(prompts), []
    for first in range(0, len(prompts), step):
        rows = slice(first, first + step)
        acts = capture(model, prompts[rows], Site(site))
        weight = jnp.asarray(mask[rows], jnp.float32)
        weight = weight / weight.sum(1, keepdims=True)
        # Values at padding are arbitrary, and 0 times infinity is NaN.
        acts = jnp.where(mask[rows][:, None, :, None], acts, 0)
        found.append(jnp.einsum("ps,plse->ple", weight, acts.astype(jnp.float32)))
    return jnp.concatenate(found)


def check_site(site: str) -> None:
    """Raise unless the site has one vector per layer and token."""
    place = Site(site)
    if not place.layered or place.rank != 3:
        raise SiteError(
            f"Expected a site in the blocks without a head axis, such as resid_post, "
            f"got {site!r}."
        )


def check_contrast(positive: Prompts, negative: Prompts, *, paired: str | None) -> None:
    """Raise if two sets are identical, or cannot be paired for a method that pairs.

    Raises:
        ShapeError: the sets are identical, or their sizes differ where pairs are
            needed.
    """
    if paired is not None and len(positive) != len(negative):
        raise ShapeError(
            f"{paired} takes pairs, got {len(positive)} positive and {len(negative)} "
            "negative prompts: give each a counterpart, or use MeanDifference."
        )
    sets = [
        sorted(
            tuple(row[:length])
            for row, length in zip(
                np.asarray(p.tokens).tolist(), np.asarray(p.lengths), strict=True
            )
        )
        for p in (positive, negative)
    ]
    if sets[0] == sets[1]:
        raise ShapeError(
            "The positive and negative prompts are identical, so they define no "
            "direction: give two different sets."
        )
