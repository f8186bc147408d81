"""Interchange interventions of many lanes: models and data shared, places not."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from mijax._errors import ConfigError, PositionError, ShapeError, SiteError, quoted
from mijax.causal._counterfactuals import Counterfactuals
from mijax.causal._swap import Subspaces, Swap, activation
from mijax.causal._tail import Tail
from mijax.core import AbstractEdit, AbstractModel, PerPrompt, Place, Set, Site, Sites
from mijax.core.internal import Sequence as Rows
from mijax.core.internal import check_prompts, empty, get, put


class Shared(eqx.Module):
    """One model, or several of one kind, stacked."""

    arrays: Any
    static: Any = eqx.field(static=True)
    several: bool = eqx.field(static=True)

    @staticmethod
    def of(models: Any) -> "Shared":
        """Stacks models, if there are several."""
        several = isinstance(models, list | tuple)
        every = models if several else [models]
        edits = [isinstance(one, AbstractEdit) for one in every]
        if not every or any(edits) or not all(callable(one) for one in every):
            raise ShapeError(
                f"Give a model(x, edits) or several, got {quoted(models)}."
            )
        parts = [
            eqx.partition(m, eqx.is_array) for m in (models if several else [models])
        ]
        arrays, static = zip(*parts, strict=True)
        shapes = [jax.tree.map(jnp.shape, one) for one in arrays]
        if any(s != shapes[0] for s in shapes) or any(s != static[0] for s in static):
            raise ConfigError("Models that are searched at once must be of one kind.")
        if not several:
            return Shared(arrays[0], static[0], several)
        stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays)
        return Shared(stack, static[0], several)

    def __len__(self) -> int:
        return jax.tree.leaves(self.arrays)[0].shape[0] if self.several else 1

    def first(self) -> Any:
        """Returns the first model."""
        arrays = self.arrays
        if self.several:
            arrays = jax.tree.map(lambda leaf: leaf[0], arrays)
        return eqx.combine(arrays, self.static)

    def map(self, run: Callable[[Any, Any], Any], given: Any) -> Any:
        """Calls `run(model, given)` for every model with its own part of `given`."""

        def one(arrays: Any, given: Any) -> Any:
            return run(eqx.combine(arrays, self.static), given)

        return (jax.vmap(one) if self.several else one)(self.arrays, given)


class Lanes(eqx.Module):
    """Searches, stacked."""

    method: Any
    site: Site
    task: Int[Array, " search"]

    @staticmethod
    def of(searches: Sequence[Any]) -> "Lanes":
        """Stacks searches of one kind."""
        if not len(searches):
            raise ConfigError("There is nothing to search: give one search at least.")
        for one in searches:
            if not hasattr(one, "method"):
                raise ConfigError(f"Give Search(method, site), got {quoted(one)}.")
            check_place_of(one.site)
        trees = [
            jax.tree.map(jnp.asarray, (one.method, one.site, jnp.int32(one.task)))
            for one in searches
        ]
        kinds = [
            (
                jax.tree.structure(tree),
                [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)],
            )
            for tree in trees
        ]
        for i, kind in enumerate(kinds):
            if kind != kinds[0]:
                raise ConfigError(
                    f"Searches 0 and {i} differ in more than numbers (kind of method, "
                    "name of the site), so they cannot share a program: call twice."
                )
        return Lanes(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees))

    def __len__(self) -> int:
        return len(self.task)


def losses(
    model: Any,
    lanes: Any,
    subspaces: Subspaces,
    tasks: tuple[Counterfactuals, ...],
    *,
    at_once: int | None = None,
) -> tuple[Float[Array, "search batch"], Float[Array, "search batch"]]:
    """Runs every search's interchange interventions in one model.

    Args:
        model: one model.
        lanes: sites and tasks of the searches.
        subspaces: of every search.
        tasks: counterfactuals.
        at_once: searches that run at a time; all by default.

    Returns:
        Cross-entropy of the label, and whether the output is as labelled, 0 or 1.
    """
    given = jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks)
    name = lanes.site.name

    def read(x: Array) -> Any:
        return put(empty(), name, get(model(x)[1], name))

    of_base = jax.vmap(jax.vmap(read))(given.base)
    of_sources = jax.vmap(jax.vmap(jax.vmap(read)))(given.sources)

    def one(site: Site, task: Array, subspaces: Subspaces) -> Any:
        here = jax.tree.map(lambda leaf: leaf[task], given)
        base, sources = jax.tree.map(lambda leaf: leaf[task], (of_base, of_sources))

        def example(x: Any, acts: Any, others: Any, own: Counterfactuals) -> Array:
            into = site if own.position is None else site.replace(position=own.position)
            now = activation(acts, into)

            def read(acts: Any, position: Array | None) -> Array:
                at = site if position is None else site.replace(position=position)
                return activation(acts, at)

            source = jax.vmap(read)(others, own.source_position)
            new = swap(now, source, subspaces, own.swapped)
            return logits_of(model(x, Set(new).at(into))[0], own.lengths)

        logits = jax.vmap(example)(here.base, base, sources, here)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, here.label)
        right = logits.argmax(-1) == here.label
        return loss, right.astype(loss.dtype)

    lanes = (lanes.site, lanes.task, subspaces)
    if at_once is None or len(lanes[1]) <= at_once:
        return jax.vmap(one)(*lanes)
    return jax.lax.map(lambda lane: one(*lane), lanes, batch_size=at_once)


def swap(
    now: Float[Array, " width"],
    source: Float[Array, "variable width"],
    subspaces: Subspaces,
    swapped: Bool[Array, " variable"],
) -> Float[Array, " width"]:
    """Swaps the subspaces of the variables that are set, in one activation."""
    mask = subspaces.mask * swapped[:, None]
    edit = Swap(Subspaces(subspaces.basis, mask), source)
    return edit(now[None], Place(Rows(jnp.zeros(1, jnp.int32))))[0]


def logits_of(
    out: Float[Array, "*seq classes"], length: Int[Array, ""] | None = None
) -> Float[Array, " classes"]:
    """Return the logits of a model of one output, or those of the last token."""
    if out.ndim == 1:
        return out
    return out[-1] if length is None else out[length - 1]


def as_tuple(batch: Any) -> tuple[Counterfactuals, ...]:
    """Return a tuple of counterfactuals, given one or several.

    Raises:
        ShapeError: anything else.
    """
    found = batch if isinstance(batch, list | tuple) else (batch,)
    wrong = [one for one in found if not isinstance(one, Counterfactuals)]
    if wrong or not found:
        given = wrong[0] if wrong else batch
        raise ShapeError(f"Give Counterfactuals, or several, got {quoted(given)}.")
    return tuple(found)


def check(
    shared: Shared, site: Site, task: Array, batch: tuple[Counterfactuals, ...]
) -> tuple[int, int]:
    """Refuses places and tasks that are not there; returns width and variables.

    Args:
        shared: models.
        site: the sites of all searches, stacked.
        task: the tasks of all searches.
        batch: counterfactuals; their numbers are looked at outside jit only.

    Returns:
        Size of the activation, and number of variables.
    """
    if int(task.max()) >= len(batch) or int(task.min()) < 0:
        raise ConfigError(
            f"Tasks {sorted(set(task.tolist()))} are asked for, but batches hold "
            f"{len(batch)} of them, from 0."
        )
    shapes = {(one.base.shape[1:], one.sources.shape[1:]) for one in batch}
    if len(shapes) > 1:
        raise ShapeError(f"Tasks of a batch need inputs of one shape, got {shapes}.")
    model = shared.first()
    found = eqx.filter_eval_shape(model, batch[0].base[0])
    if not isinstance(found, tuple) or not isinstance(found[-1], Sites):
        raise ShapeError(
            f"A model returns outputs and activations (Sites), got {quoted(found)}."
        )
    out, acts = found
    for one in batch:
        _check_examples(model, one, jax.eval_shape(logits_of, out).shape[0])
        _check_lengths(model, one, site)
        _check_positions(one, site)
    kinds = {
        (one.lengths is None, one.source_lengths is None, one.position is None)
        for one in batch
    }
    if len(kinds) > 1:
        raise ShapeError(
            "Tasks of a batch have lengths and positions all, or none of them."
        )
    value = get(acts, site.name)
    if value is not None:
        first = int(site.layered)
        for name, axis in (("layer", 0), ("position", first), ("head", first + 1)):
            index = getattr(site, name)
            if index is None or axis >= value.ndim - 1:
                continue
            if int(index.max()) >= value.shape[axis]:
                raise SiteError(
                    f"There is no {name} {int(index.max())} at {site.name!r}: there "
                    f"are {value.shape[axis]}, from 0."
                )
    one = jax.tree.map(lambda leaf: leaf[0], site)
    if batch[0].position is not None:
        one = one.replace(position=0)
    vector = eqx.filter_eval_shape(activation, acts, one)
    return vector.shape[0], batch[0].sources.shape[1]


def check_place_of(site: Site) -> None:
    """Refuse a place that is not one vector, the same for all examples.

    Raises:
        PositionError: several layers, positions or heads, or features.
    """
    for axis in ("layer", "position", "head"):
        index = getattr(site, axis)
        several = isinstance(index, slice | PerPrompt)
        if several or (index is not None and jnp.ndim(index)):
            raise PositionError(
                f"A search has one {axis} for all examples, got {index}: make one "
                f"search for each {axis}, with the examples that it fits."
            )
    if site.feature is not None:
        raise PositionError(
            "A search is over subspaces of whole activations: give no feature."
        )


def _check_lengths(model: Any, batch: Counterfactuals, site: Site) -> None:
    """Refuse token inputs without lengths, and places in their padding."""
    if not isinstance(model, AbstractModel):
        return
    seq = batch.base.shape[-1]
    if batch.lengths is None:
        raise PositionError(
            "Counterfactuals of a model of tokens need lengths, to read each prompt's "
            "last token: give Prompts, or lengths=prompts.lengths, or lengths="
            f"{seq} where no prompt is padded."
        )
    for lengths in (batch.lengths, batch.source_lengths):
        if lengths is None or isinstance(lengths, Tracer):
            continue
        least, most = int(lengths.min()), int(lengths.max())
        if least < 1 or most > seq:
            raise PositionError(f"lengths are from 1 to {seq}, got {least} to {most}.")
        if least < seq and not model.causal:
            raise ShapeError(
                "This model is not causal, so padding would change its output: give "
                "prompts of one length."
            )
        if site.position is not None and int(jnp.max(site.position)) >= least:
            raise PositionError(
                f"Position {int(jnp.max(site.position))} is padding in an example of "
                f"{least} tokens."
            )


def _check_positions(batch: Counterfactuals, site: Site) -> None:
    """Refuse two places for one example, and places that it does not have."""
    if batch.position is None:
        return
    if site.position is not None:
        raise PositionError(
            "The counterfactuals have a position for each example: give the search a "
            "site without a position."
        )
    seq = batch.base.shape[-1]
    for what, position, lengths in (
        ("base", batch.position, batch.lengths),
        ("source", batch.source_position, batch.source_lengths),
    ):
        if position is None or isinstance(position, Tracer):
            continue
        most = seq if lengths is None or isinstance(lengths, Tracer) else lengths
        beyond = (position < 0) | (position >= most)
        if bool(jnp.any(beyond)):
            wrong = int(position[beyond][0])
            raise PositionError(
                f"Position {wrong} is not in its {what}, or is padding there."
            )


def _check_examples(model: Any, batch: Counterfactuals, classes: int) -> None:
    """Refuses inputs and labels that the model does not have."""
    if batch.sources.shape[2:] != batch.base.shape[1:]:
        raise ShapeError(
            f"Sources of {batch.sources.shape[2:]} for bases of "
            f"{batch.base.shape[1:]}: inputs need one shape, pad them alike."
        )
    for x in (batch.base, batch.sources):
        if isinstance(model, Tail):
            model.check(x)
        elif isinstance(model, AbstractModel):
            check_prompts(model, x)
    if isinstance(batch.label, Tracer) or not batch.label.size:
        return
    least, most = int(batch.label.min()), int(batch.label.max())
    if least < 0 or most >= classes:
        raise ShapeError(
            f"Labels are from 0 to {classes - 1}, the model's classes; got "
            f"{least if least < 0 else most}."
        )
