"""`extract`: steering vectors for all layers from two sets of prompts."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax._errors import ShapeError, SiteError
from mijax.core import Site, capture
from mijax.core.internal import ModelLike, checked
from mijax.steering._directions import Directions
from mijax.steering._methods import AbstractMethod, MeanDifference
from mijax.steering._read import (
    AbstractReading,
    FromEnd,
    as_prompts,
    check_contrast,
    check_site,
    joined,
    read,
)


@checked
def extract(
    model: ModelLike,
    positive: Any,
    negative: Any,
    *,
    method: AbstractMethod = MeanDifference(),  # noqa: B008 - a frozen value
    site: str = "resid_post",
    layers: Sequence[int] | None = None,
    position: AbstractReading = FromEnd(1),  # noqa: B008 - a frozen value
    batch: int | None = None,
) -> Directions:
    """Extract one steering vector per layer from two sets of prompts.

    One program reads both sets in all layers, even if prompt lengths differ. The method
    is then applied to every layer at once.

    Args:
        model: a decoder, or a language model.
        positive: prompts, tokens or texts that show the behavior to add.
        negative: their counterparts without it.
        method: method for computing a direction.
        site: site in the blocks to read from, and to add to later.
        layers: layers to extract vectors for, counted from 0; all by default.
        position: tokens to read.
        batch: number of prompts to run at a time.

    Returns:
        The vectors, with site, layers, method and norm.

    Raises:
        ShapeError: identical sets, different numbers of prompts for a method that
            takes pairs, or vectors that are not finite.
        SiteError: a site or layer that the model does not have.
        PositionError: a token that a prompt does not have.

    Examples:
        >>> import mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> positive, negative = jnp.array([[5, 6, 7], [5, 9, 7]]), jnp.array([[5, 8]])
        >>> extract(model, positive, negative).vectors.shape
        (3, 32)
    """
    bare, plus = as_prompts(model, positive)
    _, minus = as_prompts(model, negative)
    name = type(method).__name__ if method.paired else None
    check_contrast(plus, minus, paired=name)
    both = joined(plus, minus)
    acts = read(bare, both, site=site, reading=position, batch=batch)
    chosen = list(range(acts.shape[1])) if layers is None else [int(i) for i in layers]
    wrong = [layer for layer in chosen if not 0 <= layer < acts.shape[1]]
    if wrong or not chosen:
        raise SiteError(
            f"The model has layers 0 to {acts.shape[1] - 1}, got {wrong or chosen}."
        )
    acts = acts[:, np.array(chosen)]
    return Directions(
        _vectors(method, acts[: len(plus)], acts[len(plus) :]),
        layers=chosen,
        site=site,
        method=method.title,
    )


@eqx.filter_jit
def _vectors(
    method: AbstractMethod,
    positive: Float[Array, "positive layer embed"],
    negative: Float[Array, "negative layer embed"],
) -> Float[Array, "layer embed"]:
    wide = (acts.astype(jnp.float32) for acts in (positive, negative))
    return jax.vmap(method, in_axes=1)(*wide)


@checked
def median_norms(
    model: ModelLike,
    prompts: Any,
    *,
    site: str = "resid_post",
    skip: int = 1,
    batch: int | None = None,
) -> Float[Array, " layer"]:
    """Return the median norm of a token's activation in each layer.

    Args:
        model: a decoder, or a language model.
        prompts: prompts, tokens or texts.
        site: site of the blocks.
        skip: number of tokens to skip at the start, where norms are often unlike those
            at all other tokens.
        batch: number of prompts to run at a time.

    Returns:
        One number per layer, for `LayerNumber`.

    Raises:
        ShapeError: no tokens are left.
        SiteError: a site outside blocks, or with heads.

    Examples:
        >>> import mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> median_norms(model, jnp.array([[5, 6, 7], [8, 9, 10]])).shape
        (3,)
    """
    check_site(site)
    bare, prompts = as_prompts(model, prompts)
    mask = np.array(prompts.mask)
    mask[:, :skip] = False
    if not mask.any():
        raise ShapeError(f"No tokens are left after the first {skip} of each prompt.")
    step, found = batch or len(prompts), []
    for first in range(0, len(prompts), step):
        rows = slice(first, first + step)
        acts = capture(bare, prompts[rows], Site(site)).astype(jnp.float32)
        norms = np.asarray(jnp.linalg.norm(acts, axis=-1))
        found.append(np.moveaxis(norms, 1, 2)[mask[rows]])
    return jnp.asarray(np.median(np.concatenate(found), axis=0), jnp.float32)
