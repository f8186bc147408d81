"""Checks of places, metrics and tokens against a model, before anything runs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from mijax._errors import (
    FrameError,
    PositionError,
    ShapeError,
    SiteError,
    nearest,
    quoted,
)
from mijax.core._block import stated
from mijax.core._check_masks import check_masks
from mijax.core._decoder_sites import check_decoder_site, own_names
from mijax.core._edited import EditedModel
from mijax.core._edits import Compose, Placed, compose
from mijax.core._integers import integers
from mijax.core._metric import AbstractMetric
from mijax.core._model import AbstractModel
from mijax.core._operands import check_per_prompt
from mijax.core._shapes import site_shapes
from mijax.core._sharding import automatic
from mijax.core._sites import (
    BLOCK_SITES,
    END,
    SITES,
    PerPrompt,
    Site,
    Sites,
    filled,
    get,
    known,
    span_ends,
)
from mijax.core._sources import settled
from mijax.core._traced import Bound, bounds_of_edit, checks, guarded


def check_model(model: Any) -> None:
    """Refuses what is not a model, such as a model with its tokenizer.

    Raises:
        ShapeError: something else.
    """
    if isinstance(model, AbstractModel):
        return
    loaded = isinstance(getattr(model, "model", None), AbstractModel)
    hint = "give its `.model`" if loaded else "load one with mijax.models.load"
    if callable(model) and not loaded:
        hint = "turn a function into one with mijax.model(fn, example)"
    inner = getattr(model, "model", model)
    if callable(inner) and isinstance(getattr(inner, "text", None), AbstractModel):
        name = "model" if inner is model else "model.model"
        hint = (
            f"give {name}.text for texts, or what {name}.on_images(prompts) returns "
            "for prompts with images"
        )
    raise ShapeError(f"Expected a model, got {type(model).__name__}: {hint}.")


def check_linear_writes(model: Any, verb: str) -> None:
    """Refuse blocks that do not state how they read and write the residual stream.

    Raises:
        FrameError: the class that defines the block's `__call__`, or a subclass, does
            not set `linear_writes`.
    """
    if stated(model.blocks, "linear_writes"):
        return
    raise FrameError(
        f"{verb} needs blocks that add attn_out and mlp_out unchanged to the residual "
        f"stream; {type(model.blocks).__name__} does not state `linear_writes = True`."
    )


def check_metric(
    metric: Any,
    tokens: Array,
    *,
    lengths: np.ndarray | None,
    vocab: int | None,
    looks: bool = False,
) -> AbstractMetric:
    """Refuses a metric that reads what is not there, or padding.

    Args:
        metric: the metric.
        tokens: `[seq]` or `[batch, seq]`.
        lengths: number of tokens of each prompt, if it is known.
        vocab: number of logits, if it is known.
        looks: whether the verb measures metrics of activations.

    Returns:
        The metric.

    Raises:
        ShapeError: no metric, one of activations where these are not measured, or
            operands of other prompts or another vocabulary.
        PositionError: a position beyond the prompts, or in their padding.
    """
    if not isinstance(metric, AbstractMetric):
        raise ShapeError(
            "A metric is wanted, such as mijax.logit_difference(answer, wrong), got "
            f"{type(metric).__name__}: one's own is a subclass of "
            "mijax.core.AbstractMetric."
        )
    if metric.looks() and not looks:
        raise ShapeError(
            "site_metric is measured by sweep and gradients only: here give a metric "
            "of logits, such as mijax.logit_difference(answer, wrong)."
        )
    metric.check(*tokens.shape[:-1], seq=tokens.shape[-1])
    if vocab is not None:
        metric.check_tokens(vocab)
    if lengths is None or type(metric).reads is not AbstractMetric.reads:
        return metric
    read = tokens.shape[-1] - 1 if metric.position is None else known(metric.position)
    if read is None:
        return metric
    read = np.reshape(read, (-1, 1)) if np.ndim(read) < 2 else np.asarray(read)
    beyond, counted = read >= lengths[:, None], metric.counted()
    padding = np.flatnonzero((beyond if counted is None else beyond & counted).any(1))
    if len(padding):
        i = padding[0]
        raise PositionError(
            f"The metric reads padding: prompt {i} has {lengths[i]} of "
            f"{tokens.shape[-1]} tokens. Give it position=prompts.last."
        )
    return metric


def check_sites(
    model: Any,
    tokens: Array,
    sites: Any,
    *,
    lengths: np.ndarray | None = None,
) -> Sites[Any]:
    """Refuses sites that the model lacks and indices beyond its axes.

    Args:
        model: the model.
        tokens: `[seq]` or `[batch, seq]`.
        sites: a pytree of `Site`.
        lengths: number of tokens of each prompt, if it is known.

    Returns:
        The shapes of all sites, for the caller's use.

    Raises:
        SiteError: unknown site, or layer, head or feature out of range.
        PositionError: position beyond the prompt, or not one per prompt.
    """
    check_model(model)
    shapes = site_shapes(model, tokens.shape[-1])
    for site in jax.tree.leaves(sites, is_leaf=lambda node: isinstance(node, Site)):
        if not isinstance(site, Site):
            raise SiteError(
                f"Give a Site, for instance Site('resid_pre'), got {quoted(site)}."
            )
        if any(isinstance(i, PerPrompt) for i in (site.layer, site.head, site.feature)):
            raise SiteError(
                f"What is read at {site.name!r} has one layer, head and feature for "
                "all prompts; with one per prompt, read all of them and index."
            )
        check_place(shapes, tokens, site)
        for axis in site.axes or {}:
            raise SiteError(
                f"Only capture and gradients read {axis}= at {site.name!r}: here give "
                "feature=, the same axis."
            )
        if not isinstance(site.position, slice):
            check_padding(site.position, lengths)
    return shapes


def check_edits(
    model: Any,
    tokens: Array,
    edits: Any,
    *,
    ahead: int = 0,
    lengths: np.ndarray | None = None,
    operands: bool = True,
) -> Sites[Any]:
    """Joins edits and refuses places that the model or the prompts do not have.

    Args:
        model: the model.
        tokens: `[seq]` or `[batch, seq]`.
        edits: placed edits, a list of them, or `None`.
        ahead: tokens that are yet to come, at which edits may be placed.
        lengths: number of tokens of each prompt, if it is known.
        operands: whether operands are checked too, which needs their final places.

    Returns:
        One record of edits.

    Raises:
        SiteError: unknown site, or layer, head or feature out of range.
        PositionError: position beyond the prompt, or not one per prompt.
        ShapeError: an operand of other prompts or of a part of the site.
    """
    check_model(model)
    record = automatic(compose(edits))
    check_prompts(model, tokens)
    if not filled(record):
        return record
    record = settled(record)
    most = tokens.shape[-1] + ahead
    longer = jnp.zeros((*tokens.shape[:-1], most), int) if ahead else tokens
    shapes = site_shapes(model, tokens.shape[-1])
    for name in filled(record):
        for placed in placed_at(get(record, name)):
            position = placed.start
            if placed.stop is not None:
                position = slice(placed.start, None)
            axes = dict.fromkeys(placed.axes or {}, 0)
            site = Site(
                name, placed.layer, position, placed.head, placed.feature, **axes
            )
            check_place(shapes, longer, site)
            own = get(shapes, name).shape[name in BLOCK_SITES :]
            check_masks(placed, own, tokens.shape[:-1], most)
            check_place(shapes, longer, Site(name, feature=placed.features))
            for index in ("layer", "start", "stop", "head", "feature"):
                what = "position" if index in ("start", "stop") else index
                check_per_prompt(getattr(placed, index), what, tokens.shape[:-1])
            if placed.stop is None:
                check_padding(placed.start, lengths)
            if operands:
                rows = rows_of(placed, tokens.shape[-1], most)
                placed.edit.check_operand(get(shapes, name), rows, tokens.shape[:-1])
            bounds = bounds_of_edit(placed, shapes, most)
            record = guarded(record, bounds)
    return record


def check_padding(position: Any, lengths: np.ndarray | None) -> None:
    """Refuses a position that is in the padding of a prompt."""
    at = known(position)
    if lengths is None or at is None or not np.any(at >= lengths):
        return
    i = int(np.argmax(at >= lengths))
    raise PositionError(
        f"Position {np.broadcast_to(at, lengths.shape)[i]} is padding in prompt {i}"
        f", which has {lengths[i]} tokens."
    )


def rows_of(placed: Placed, seq: int, most: int) -> range:
    """Returns how many tokens activations may have that are put at an edit's place.

    As many as the prompt, or any number that reaches to the last one that is edited.
    """
    start, stop = known(placed.start), known(placed.stop)
    if placed.stop is None and start is not None:
        stop = start + 1
    if placed.start is None:
        return range(seq, most + 1)
    if stop is None or stop.max() > most:
        return range(seq, END)
    return range(int(stop.max()), END)


def check_prompts(model: AbstractModel, tokens: Array) -> None:
    """Refuses prompts longer than a model's context and ids that it does not have.

    Raises:
        SiteError: an edit that the model keeps, at a place that it does not have.
        PositionError: prompts that are too long.
        ShapeError: ids beyond the vocabulary, or a model with sources of other prompts.
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
    held = stated(model.blocks, "prompts")
    given = 1 if tokens.ndim == 1 else tokens.shape[0]
    if held is not None and held != given:
        raise ShapeError(
            f"The model holds {held} sources, one for each prompt in order, got "
            f"{given} prompts: give as many, or the decoder of their sources."
        )
    if isinstance(model, EditedModel):
        check_edits(model.model, tokens, model.edits)


def traced_tokens(model: AbstractModel, tokens: Array) -> Array:
    """Return tokens that raise, with checks on, at ids beyond the vocabulary.

    They also raise where an index of the edits that a model keeps is out of range.
    """
    if isinstance(model, EditedModel) and checks():
        shapes, seq = site_shapes(model.model, tokens.shape[-1]), tokens.shape[-1]
        for name in filled(model.edits):
            for placed in placed_at(get(model.edits, name)):
                tokens = guarded(tokens, bounds_of_edit(placed, shapes, seq))
        return traced_tokens(model.model, tokens)
    vocab = getattr(model, "vocab", None)
    if not isinstance(vocab, int):
        return tokens
    return guarded(tokens, iter([Bound(tokens, vocab, "A token id")]))


def one_each(ids: Any, batch: tuple[int, ...], vocab: int) -> Int[Array, "*batch"]:
    """Returns the token of each prompt, given one for all or one for each.

    Raises:
        ShapeError: no ids, ids of other prompts, or ids that the model does not have.
    """
    each = integers(ids, "A token id")
    if each.shape not in ((), batch):
        raise ShapeError(
            f"Give a token id, or one for each of {batch[0]} prompts; got {each.dtype} "
            f"of shape {each.shape}."
        )
    told = known(each)
    if told is not None and not 0 <= told.min() <= told.max() < vocab:
        worst = told.min() if told.min() < 0 else told.max()
        raise ShapeError(f"Token ids are from 0 to {vocab - 1}, got {worst}.")
    each = guarded(each, iter([Bound(each, vocab, "A token id")]))
    return jnp.broadcast_to(jnp.asarray(each, jnp.int32), batch)


def placed_at(edits: Any) -> list[Placed]:
    """List the placed edits of one site."""
    if isinstance(edits, Compose):
        return [placed for one in edits.edits for placed in placed_at(one)]
    return [edits] if isinstance(edits, Placed) else []


def check_place(shapes: Sites[Any], tokens: Array, site: Site) -> None:
    """Checks one site's name and indices; traced indices are taken as they are."""
    check_decoder_site(site)
    shape = get(shapes, site.name)
    if shape is None:
        has = [name for name in SITES if get(shapes, name) is not None]
        raise SiteError(
            f"This model has no site {site.name!r}.{nearest(site.name, has)}"
        )
    sizes = dict(zip(_axes(site), shape.shape, strict=True))
    names = {index: axis for axis, index in own_names(site.name).items()}
    for axis in ("layer", "head", "feature"):
        index = known(getattr(site, axis))
        if index is not None and np.any(index >= sizes[axis]):
            name = names.get(axis, axis) if "expert" in names.values() else axis
            raise SiteError(
                f"{name} {index.max()} is out of range: site {site.name!r} has "
                f"{name}s 0 to {sizes[axis] - 1}."
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
