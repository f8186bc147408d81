"""Latents of a model's activations, and what each of them writes."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mijax._errors import ShapeError, SiteError
from mijax.core import AbstractModel, Site, capture
from mijax.core.internal import (
    PromptsLike,
    TokensLike,
    as_tokens,
    has_second_axis,
    known,
)
from mijax.dictionaries._dictionary import Dictionary
from mijax.dictionaries._wiring import product

ROWS = 256


class Largest(NamedTuple):
    """The largest latents of each token, largest first.

    Attributes:
        values: `[*batch, seq, k]`; 0 where fewer are active.
        latents: which they are.
    """

    values: Float[Array, "*batch k"]
    latents: Int[Array, "*batch k"]


class Pooled(NamedTuple):
    """Means over the tokens of each text.

    Attributes:
        x: of activations, `[batch, *reads]`.
        latents: of their latents, `[batch, latent]`.
    """

    x: Float[Array, "batch *reads"]
    latents: Float[Array, "batch latent"]


def latents(
    model: AbstractModel,
    dictionary: Dictionary,
    tokens: TokensLike,
    site: Site | Sequence[Site],
    *,
    edits: Any = None,
) -> Float[Array, "..."]:
    """Reads the latents of a model's activations.

    Args:
        model: any `AbstractModel`.
        dictionary: which reads that site.
        tokens: token ids of one prompt, or of a batch.
        site: where, with its layer; a list of sites where the dictionary reads several.
        edits: placed edits, a list of them, or `None`.

    Returns:
        Latents, `[*batch, seq, latent]`; a position in the site drops `seq`.

    Raises:
        SiteError: a site that the model does not have, or no layer where it has one.
        ShapeError: activations that the dictionary does not read.

    Examples:
        >>> from mijax import dictionaries as d
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> sae = d.untrained(d.TopK(4), d.SAE(32), latents=64, key=jax.random.key(1))
        >>> found = latents(model, sae, [5, 6, 7], Site("resid_post", layer=1))
        >>> found.shape, int((found > 0).sum(1).max())
        ((3, 64), 4)
    """
    return _encoded(dictionary, inputs(model, dictionary, tokens, site, edits))


def top_latents(
    model: AbstractModel,
    dictionary: Dictionary,
    tokens: TokensLike,
    site: Site | Sequence[Site],
    *,
    k: int,
    edits: Any = None,
) -> Largest:
    """Reads the k largest latents of each token, never all of them at once.

    Args:
        model: any `AbstractModel`.
        dictionary: which reads that site.
        tokens: token ids of one prompt, or of a batch.
        site: where, with its layer; a list of sites where the dictionary reads several.
        k: how many.
        edits: placed edits, a list of them, or `None`.

    Returns:
        Values and indices, `[*batch, seq, k]` each.

    Raises:
        SiteError: a site that the model does not have, or no layer where it has one.
        ShapeError: activations that the dictionary does not read, or more latents
            than it has.

    Examples:
        >>> from mijax import dictionaries as d
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> sae = d.untrained(d.TopK(4), d.SAE(32), latents=64, key=jax.random.key(1))
        >>> site = Site("resid_post", layer=1)
        >>> values, index = top_latents(model, sae, [5, 6, 7], site, k=4)
        >>> values.shape, index.shape
        ((3, 4), (3, 4))
    """
    if not 1 <= k <= dictionary.latents:
        raise ShapeError(
            f"There are {dictionary.latents} latents, not the {k} largest."
        )
    return _largest(dictionary, inputs(model, dictionary, tokens, site, edits), k)


def pooled(
    model: AbstractModel,
    dictionary: Dictionary,
    tokens: TokensLike,
    site: Site | Sequence[Site],
    *,
    mask: Bool[Array, "batch seq"] | None = None,
) -> Pooled:
    """Averages activations and latents over the tokens of each prompt.

    What probes of texts read: see `sparse_probe`, `perturb`, `unbias`.

    Args:
        model: any `AbstractModel`.
        dictionary: which reads that site.
        tokens: token ids of a batch, or `mijax.data.Prompts`.
        site: where, with its layer; a list of sites where the dictionary reads several.
        mask: which tokens count; all but the padding of `Prompts` by default.

    Returns:
        Mean activations and mean latents.

    Raises:
        SiteError: a site that the model does not have, or no layer where it has one.
        ShapeError: tokens that are not a batch, a mask of another shape, or activations
            that the dictionary does not read.

    Examples:
        >>> from mijax import dictionaries as d
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> sae = d.untrained(d.TopK(4), d.SAE(32), latents=64, key=jax.random.key(1))
        >>> site = Site("resid_post", layer=1)
        >>> texts = pooled(model, sae, [[5, 6, 7], [8, 9, 10]], site)
        >>> texts.x.shape, texts.latents.shape
        ((2, 32), (2, 64))
    """
    if mask is None and isinstance(tokens, PromptsLike):
        mask = jnp.arange(jnp.shape(tokens.tokens)[-1]) < tokens.lengths[:, None]
    given, tokens = tokens, as_tokens(tokens)
    mask = jnp.ones(tokens.shape, bool) if mask is None else jnp.asarray(mask)
    if tokens.ndim != 2 or mask.shape != tokens.shape:
        raise ShapeError(
            f"Latents are pooled over a batch of tokens and a mask of its shape, got "
            f"{tokens.shape} and {mask.shape}."
        )
    return _pooled(dictionary, inputs(model, dictionary, given, site, None), mask)


def direction(
    dictionary: Dictionary, latent: int | Int[Array, "*some"]
) -> Float[Array, "*shape"]:
    """Returns what a latent of 1 writes: its row of the decoder.

    Args:
        dictionary: the dictionary.
        latent: which; may be traced, or several.

    Returns:
        The direction, `[*latent, *writes]`, in the units of the activations:
        `mijax.Add(direction(sae, 5), 8.0)` steers as if latent 5 were 8 larger.

    Raises:
        SiteError: a latent that the dictionary does not have.

    Examples:
        >>> from mijax import dictionaries as d
        >>> sae = d.untrained(d.TopK(4), d.SAE(32), latents=64, key=jax.random.key(1))
        >>> edit = mijax.Add(direction(sae, 5), 8.0).at("resid_post", layer=1)
        >>> direction(sae, 5).shape
        (32,)
    """
    check_latents(latent, dictionary.latents)
    chosen = rows(dictionary)[jnp.asarray(latent)]
    return chosen.reshape(*chosen.shape[:-1], *dictionary.wiring.writes)


def check_latents(which: Any, latents: int) -> None:
    """Refuses indices, where they are known, beyond the latents that there are."""
    index = known(which)
    if index is None:
        return
    beyond = index[(index < 0) | (index >= latents)]
    if beyond.size:
        raise SiteError(
            f"Latent {beyond[0]} is out of range: there are 0 to {latents - 1}."
        )


def inputs(
    model: AbstractModel, dictionary: Dictionary, tokens: Any, site: Any, edits: Any
) -> Float[Array, "..."]:
    """Captures what a dictionary reads, `[*batch, seq, *reads]`."""
    several = not isinstance(site, Site)
    sites = list(site) if several else [site]
    for one in sites:
        of_one_layer(one)
    found = capture(model, tokens, sites, edits)
    if several:
        size = dictionary.wiring.reads[-1]
        found = [
            joined(x, size) if has_heads(one) else x
            for x, one in zip(found, sites, strict=True)
        ]
        return fitting(dictionary, jnp.stack(found, axis=-2), heads=False)
    return fitting(dictionary, found[0], heads=has_heads(site))


def has_heads(site: Site) -> bool:
    """True if activations of a site have an axis of heads."""
    one = site.head is not None and not jnp.ndim(site.head)
    return has_second_axis(site.name) and not one


def of_one_layer(site: Site) -> None:
    """Refuses a site that is not one activation of each token."""
    if site.layered and (site.layer is None or jnp.ndim(site.layer)):
        raise SiteError(
            f"A dictionary reads one layer: give Site({site.name!r}, layer=...)."
        )


def fitting(dictionary: Dictionary, x: Array, *, heads: bool) -> Float[Array, "..."]:
    """Returns activations as a dictionary reads them: float32, heads joined if need be.

    Args:
        dictionary: the dictionary.
        x: activations.
        heads: whether their axis before the last is heads.

    Raises:
        ShapeError: activations that it does not read.
    """
    reads = dictionary.wiring.reads
    x = x.astype(jnp.float32)
    if heads and len(reads) == 1:
        x = joined(x, reads[0])
    if x.shape[x.ndim - len(reads) :] != reads:
        raise ShapeError(
            f"The dictionary reads activations {list(reads)}, but those of the site "
            f"have shape {list(x.shape[-2:])} (the last axes): check site and layer."
        )
    return x


def joined(x: Array, size: int) -> Array:
    """Joins the last two axes, heads, where that and nothing else gives the size."""
    if x.shape[-1] != size and math.prod(x.shape[-2:]) == size:
        return x.reshape(*x.shape[:-2], size)
    return x


def rows(dictionary: Dictionary) -> Float[Array, "latent out"]:
    """Returns what each latent writes, in the units of the activations."""
    found, scale = dictionary.wiring.rows(dictionary.weights), dictionary.scale
    if scale.ndim:
        scale = jnp.repeat(scale, dictionary.wiring.writes[-1])
    return found / scale


def written(
    dictionary: Dictionary, latents: Float[Array, "*batch latent"]
) -> Float[Array, "*shape"]:
    """Returns what latents write, without the decoder's bias: linear in them."""
    flat = latents.reshape(-1, latents.shape[-1])
    out = product(flat, rows(dictionary).T)
    return out.reshape(*latents.shape[:-1], *dictionary.wiring.writes)


@eqx.filter_jit
def _encoded(dictionary: Dictionary, x: Array) -> Array:
    return dictionary.encode(x)


@eqx.filter_jit
def _largest(dictionary: Dictionary, x: Array, k: int) -> Largest:
    reads = dictionary.wiring.reads
    flat = x.reshape(-1, *reads)

    def one(row: Array) -> tuple[Array, Array]:
        values, index = jax.lax.top_k(dictionary.encode(row), k)
        return values, index

    values, index = jax.lax.map(one, flat, batch_size=min(ROWS, flat.shape[0]))
    shape = (*x.shape[: x.ndim - len(reads)], k)
    return Largest(values.reshape(shape), index.reshape(shape))


@eqx.filter_jit
def _pooled(dictionary: Dictionary, x: Array, mask: Array) -> Pooled:
    def one(given: tuple[Array, Array]) -> Pooled:
        x, mask = given
        weight = mask / jnp.maximum(mask.sum(), 1)
        # What is not counted may be no number, and 0 times that is none.
        clean = jnp.where(mask.reshape(-1, *(1,) * (x.ndim - 1)), x, 0)
        mean = jnp.tensordot(weight, clean, axes=1)
        return Pooled(mean, weight @ dictionary.encode(clean))

    return jax.lax.map(one, (x, mask))
