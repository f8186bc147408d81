"""Checks of tokens and places against a model, before anything runs."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from mijax._errors import PositionError, ShapeError, SiteError, nearest
from mijax.core._edits import Compose, Placed, compose
from mijax.core._model import AbstractModel
from mijax.core._operands import check_per_prompt
from mijax.core._sites import SITES, Site, Sites, get, known, span_ends

TokensLike = (
    Int[Array, "*batch seq"]
    | Int[np.ndarray, "*batch seq"]
    | Sequence[int]
    | Sequence[Sequence[int]]
)


def as_tokens(tokens: Any) -> Int[Array, "..."]:
    """Returns tokens as an int32 array `[seq]` or `[batch, seq]`.

    Raises:
        ShapeError: for another rank, an empty prompt, or values that are not integers.
    """
    try:
        array = jnp.asarray(tokens)
    except (TypeError, ValueError, OverflowError) as error:
        raise ShapeError(
            "Tokens are integers [seq] or [batch, seq], all prompts of one length: for "
            "prompts of several lengths give the `tokens` of mijax.data.Prompts, got "
            f"{type(tokens).__name__}."
        ) from error
    if array.ndim not in (1, 2) or array.size == 0:
        raise ShapeError(
            f"Tokens are [seq] or [batch, seq] and not empty, got shape {array.shape}."
        )
    if array.dtype.kind not in "iu":
        raise ShapeError(f"Tokens are integers, got {array.dtype}.")
    # NumPy's may have more bits than JAX's.
    ids = known(tokens if isinstance(tokens, np.ndarray) else array)
    if ids is not None and (ids.min() < 0 or ids.max() > np.iinfo(np.int32).max):
        raise ShapeError(f"Token ids count from 0, got {ids.min()} to {ids.max()}.")
    return array.astype(jnp.int32)


def site_shapes(model: AbstractModel, seq: int) -> Sites[Any]:
    """Returns the shape of every activation of one example, without running it.

    Args:
        model: the model.
        seq: number of tokens.

    Returns:
        `Sites` of `jax.ShapeDtypeStruct`, `None` at sites that the model lacks.
    """
    arrays, static = eqx.partition(model, eqx.is_array)
    leaves, tree = jax.tree.flatten(static)
    tokens = jax.ShapeDtypeStruct((seq,), jnp.int32)
    return _shapes.eval_shape(arrays, tuple(leaves), tree, tokens)


@partial(jax.jit, static_argnums=(1, 2))
def _shapes(arrays: Any, leaves: Any, tree: Any, tokens: Array) -> Sites[Any]:
    model = eqx.combine(arrays, jax.tree.unflatten(tree, leaves))
    return model(tokens)[1]


def check_sites(model: AbstractModel, tokens: Array, sites: Any) -> Sites[Any]:
    """Refuses sites that the model lacks and indices beyond its axes.

    Args:
        model: the model.
        tokens: `[seq]` or `[batch, seq]`.
        sites: a pytree of `Site`.

    Returns:
        The shapes of all sites, for the caller's use.

    Raises:
        SiteError: unknown site, or layer, head or feature out of range.
        PositionError: position beyond the prompt, or not one per prompt.
    """
    shapes = site_shapes(model, tokens.shape[-1])
    for site in jax.tree.leaves(sites, is_leaf=lambda node: isinstance(node, Site)):
        if not isinstance(site, Site):
            raise SiteError(
                f"Give a Site, for instance Site('resid_pre'), got {site!r}."
            )
        check_place(shapes, tokens, site)
    return shapes


def check_edits(
    model: AbstractModel, tokens: Array, edits: Any, *, ahead: int = 0
) -> Sites[Any]:
    """Joins edits and refuses places that the model or the prompts do not have.

    Args:
        model: the model.
        tokens: `[seq]` or `[batch, seq]`.
        edits: placed edits, a list of them, or `None`.
        ahead: tokens that are yet to come, at which edits may be placed.

    Returns:
        One record of edits.

    Raises:
        SiteError: unknown site, or layer, head or feature out of range.
        PositionError: position beyond the prompt, or not one per prompt.
        ShapeError: an operand of other prompts or of a part of the site.
    """
    record = compose(edits)
    check_prompts(model, tokens)
    if all(get(record, name) is None for name in SITES):
        return record
    longer = jnp.zeros((*tokens.shape[:-1], tokens.shape[-1] + ahead), int)
    shapes = site_shapes(model, tokens.shape[-1])
    for name in SITES:
        for placed in _placed(get(record, name)):
            position = placed.start
            if placed.stop is not None:
                position = slice(placed.start, None)
            site = Site(name, placed.layer, position, placed.head, placed.feature)
            check_place(shapes, longer, site)
            for index in ("layer", "start", "stop", "head", "feature"):
                what = "position" if index in ("start", "stop") else index
                check_per_prompt(getattr(placed, index), what, tokens.shape[:-1])
            reach = _reach(placed, tokens.shape[-1], longer.shape[-1])
            placed.edit.check_operand(get(shapes, name), reach, tokens.shape[:-1])
    return record


def _reach(placed: Placed, seq: int, most: int) -> int:
    """Returns how many tokens there are up to the last one that is edited.

    All that there are where the place does not say, or says "to the end".
    """
    start, stop = known(placed.start), known(placed.stop)
    if placed.stop is None and start is not None:
        stop = start + 1
    if stop is None or stop.max() > most:
        return seq
    return int(stop.max())


def check_prompts(model: AbstractModel, tokens: Array) -> None:
    """Refuses prompts longer than a model's context and ids that it does not have.

    Raises:
        PositionError: prompts that are too long.
        ShapeError: ids beyond the vocabulary.
    """
    # A model of one's own may mean something else by these names.
    context, vocab = (
        found if isinstance(found := getattr(model, name, None), int) else None
        for name in ("context", "vocab")
    )
    if context is not None and tokens.shape[-1] > context:
        raise PositionError(
            f"Prompts of {tokens.shape[-1]} tokens exceed the model's context of "
            f"{context}."
        )
    ids = known(tokens)
    if vocab is not None and ids is not None and ids.max() >= vocab:
        raise ShapeError(
            f"Token {ids.max()} is not in the model's vocabulary of {vocab} (0 to "
            f"{vocab - 1}): is it another model's tokenizer?"
        )


def _placed(edits: Any) -> list[Placed]:
    """Lists the placed edits of one site."""
    if isinstance(edits, Compose):
        return [placed for one in edits.edits for placed in _placed(one)]
    return [edits] if isinstance(edits, Placed) else []


def check_place(shapes: Sites[Any], tokens: Array, site: Site) -> None:
    """Checks one site's name and indices; traced indices are taken as they are."""
    shape = get(shapes, site.name)
    if shape is None:
        has = [name for name in SITES if get(shapes, name) is not None]
        raise SiteError(
            f"This model has no site {site.name!r}.{nearest(site.name, has)}"
        )
    sizes = dict(zip(_axes(site), shape.shape, strict=True))
    for axis in ("layer", "head", "feature"):
        index = known(getattr(site, axis))
        if index is not None and np.any(index >= sizes[axis]):
            raise SiteError(
                f"{axis} {index.max()} is out of range: site {site.name!r} has "
                f"{axis}s 0 to {sizes[axis] - 1}."
            )
    span = isinstance(site.position, slice)
    for end in span_ends(site.position):
        index = known(end)
        if index is None:
            continue
        # A span ends before its stop, which may be the prompt's length.
        stop = span and end is site.position.stop
        if np.any(index >= tokens.shape[-1] + stop):
            raise PositionError(
                f"Position {index.max()} is beyond the prompt, which has "
                f"{tokens.shape[-1]} tokens (0 to {tokens.shape[-1] - 1})."
            )
        batch = tokens.shape[:-1]
        if index.ndim and index.shape != batch:
            raise PositionError(
                f"Positions of shape {index.shape} do not fit "
                f"{f'{batch[0]} prompts' if batch else 'a single prompt'}: give one "
                "integer, or one per prompt."
            )


def _axes(site: Site) -> tuple[str, ...]:
    """Names the axes of a site's activations."""
    heads = ("head",) if site.rank - site.layered == 3 else ()
    return (*(("layer",) if site.layered else ()), "position", *heads, "feature")
