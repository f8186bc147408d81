"""`run`, `capture` and `gradients`: the verbs on one program each."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax._errors import PositionError
from mijax.core._arguments import checked
from mijax.core._check import (
    check_edits,
    check_metric,
    check_sites,
    traced_tokens,
)
from mijax.core._check_looks import check_looks
from mijax.core._check_stated import masked_lengths
from mijax.core._decoder_sites import with_feature
from mijax.core._edits import AbstractEdit, compose, edit
from mijax.core._ends import finish, metric_of
from mijax.core._function import FunctionModel
from mijax.core._function_run import (
    capture_function,
    gradients_function,
    run_function,
)
from mijax.core._metric import AbstractMetric
from mijax.core._model import AbstractModel, Layered, scan_blocks
from mijax.core._part import part
from mijax.core._rows import Place, Sequence
from mijax.core._score import Metric
from mijax.core._sites import BlockSites, Site, Sites, get, known, span_ends
from mijax.core._text import ModelLike, opened
from mijax.core._tokens import (
    as_tokens,
    length_of,
    lengths_of,
    over_prompts,
    padded_lengths,
)
from mijax.core._traced import bounds_of_metric, bounds_of_site, guarded


@checked
def run(model: ModelLike, tokens: Any, edits: Any = None) -> Any:
    """Runs a model, with or without edits.

    Compiled once per shape: other layers, positions or heads of the same edits reuse
    the program. Prompts of different length are padded on the right. Padding changes
    nothing before it: in a causal model no token reads it, and other models mask it or
    refuse it.

    Args:
        model: any `AbstractModel`, a language model (`mijax.models.load(...)`), or any
            function as a model (`mijax.model`).
        tokens: token ids of one prompt, or of a batch, or `mijax.data.Prompts`; with a
            language model also a text or a list of texts. A `FunctionModel` takes one
            example, or a batch.
        edits: placed edits (`Zero().at("z", layer=9, head=6)`), a list of them, or
            `None`.

    Returns:
        Logits, or what the function returns. After the end of a prompt of `Prompts`
        logits are NaN, so no result can be read from padding unnoticed.

    Raises:
        SiteError: a place that the model does not have.
        PositionError: a position beyond the prompt.
        ShapeError: tokens or operands of a shape that does not fit.
        TokenError: a text for a model without a tokenizer.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> tokens = jax.numpy.array([[5, 6, 7], [8, 9, 10]])
        >>> ablate = mijax.Zero().at("z", layer=1, head=2)
        >>> mijax.run(model, tokens, ablate).shape
        (2, 3, 64)
    """
    if isinstance(model, FunctionModel):
        return run_function(model, tokens, edits)
    model, tokens = opened(model, tokens)
    given, lengths, tokens = tokens, lengths_of(tokens), as_tokens(tokens)
    record = check_edits(model, tokens, edits, lengths=lengths, masked=True)
    masked_lengths(model, given, tokens.shape[-1])
    tokens = traced_tokens(model, tokens)
    return _run(model, tokens, record, padded_lengths(given, tokens.shape[-1]))


@eqx.filter_jit
def _run(
    model: AbstractModel, tokens: Array, edits: Sites[Any], lengths: Array | None
) -> Array:
    def one(tokens: Array, prompt: Array | None) -> Array:
        if lengths is None:
            return model(tokens, edits, prompt=prompt)[0]
        length = lengths[0 if prompt is None else prompt]
        masked = {} if model.causal else {"length": length}
        logits = model(tokens, edits, prompt=prompt, **masked)[0]
        return jnp.where(jnp.arange(len(tokens))[:, None] < length, logits, jnp.nan)

    return over_prompts(one, tokens)


@checked
def capture(
    model: ModelLike,
    tokens: Any,
    sites: Any,
    edits: Any = None,
) -> Any:
    """Reads activations.

    Layer, position, head and feature are selected inside the scan over layers, so
    memory is proportional to what is asked for. Layers after the last one that is asked
    for are not run, and `resid_final` and `logits` are computed only at the positions
    asked for.

    Args:
        model: any `AbstractModel`, a language model (`mijax.models.load(...)`), or any
            function as a model (`mijax.model`).
        tokens: token ids of one prompt, or of a batch, or `mijax.data.Prompts`; with a
            language model also a text or a list of texts. A `FunctionModel` takes one
            example, or a batch.
        sites: a `Site` or the name of one, or any tree of them (a dict, a list).
        edits: placed edits, a list of them, or `None`.

    Returns:
        The tree of `sites` with an array for each,
        `[*batch, layer, seq, ...features]`. An integer index drops its axis, an array
        of indices keeps it; a position per prompt drops the `seq` axis.

    Raises:
        SiteError: a site or index that the model does not have.
        PositionError: a position beyond the prompt, or a span that is not the same
            for every prompt.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> tokens = jax.numpy.array([5, 6, 7, 8])
        >>> sites = {"last": mijax.Site("resid_post", layer=2, position=3)}
        >>> mijax.capture(model, tokens, sites)["last"].shape
        (32,)
    """
    if isinstance(model, FunctionModel):
        return capture_function(model, tokens, sites, edits)
    model, tokens = opened(model, tokens)
    sites = named_sites(sites)
    given, lengths, tokens = tokens, lengths_of(tokens), as_tokens(tokens)
    options = {"lengths": lengths, "masked": True}
    shapes = check_sites(model, tokens, sites, **options)
    edits = check_edits(model, tokens, edits, **options)
    masked = masked_lengths(model, given, tokens.shape[-1])
    check_spans(sites)
    tokens = _guarded(model, tokens, sites, shapes)
    traced = jax.tree.map(
        lambda site: _traced(site, tokens.shape[-1]), sites, is_leaf=_is_site
    )
    return _capture(model, tokens, traced, edits, shapes, masked)


def named_sites(sites: Any) -> Any:
    """Return a tree of sites in which names stand for whole sites."""
    return jax.tree.map(
        lambda site: Site(site) if isinstance(site, str) else with_feature(site),
        sites,
        is_leaf=_is_site,
    )


def check_spans(sites: Any) -> None:
    """Refuses spans that are not the same for every prompt."""
    for site in jax.tree.leaves(sites, is_leaf=_is_site):
        ends = [known(end) for end in _span(site)]
        if any(end is None or end.ndim for end in ends):
            raise PositionError(
                "What is read takes a span of fixed integers; with one per prompt, "
                "read every position and select with the prompts' masks."
            )


def _is_site(node: Any) -> bool:
    return isinstance(node, Site | str)


def _guarded(model: Any, tokens: Array, sites: Any, shapes: Sites[Any]) -> Array:
    """Return tokens that raise, with checks on, where traced indices do not exist."""
    tokens, seq = traced_tokens(model, tokens), tokens.shape[-1]
    for site in jax.tree.leaves(sites, is_leaf=_is_site):
        tokens = guarded(tokens, bounds_of_site(site, shapes, seq))
    return tokens


def _traced(site: Site, seq: int) -> Site:
    """Returns a site whose indices are arrays, so that others share its program.

    A span becomes the positions in it, `[1, span]`.
    """
    position = site.position
    if isinstance(position, slice):
        position = np.arange(seq)[position][None]
    index = (site.layer, position, site.head, site.feature)
    return Site(site.name, *(None if i is None else jnp.asarray(i) for i in index))


def _span(site: Site) -> tuple[Any, ...]:
    """Returns the ends of a site's position if it is a slice."""
    return span_ends(site.position) if isinstance(site.position, slice) else ()


@eqx.filter_jit
def _capture(
    model: AbstractModel,
    tokens: Array,
    sites: Any,
    edits: Sites[Any],
    shapes: Any,
    lengths: Array | None,
) -> Any:
    flat, tree = jax.tree.flatten(sites, is_leaf=_is_site)
    per_layer = {i: s for i, s in enumerate(flat) if s.layered and s.layer is None}
    one_layer = {i: s for i, s in enumerate(flat) if s.layered and s.layer is not None}

    def one(tokens: Array, prompt: Array | None) -> list[Array]:
        position = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        length = length_of(lengths, prompt)
        place = Place(Sequence(position, prompt, prompt, length))

        def select(kept: Any, acts: BlockSites[Any], layer: Array) -> Any:
            value = {
                i: part(getattr(acts, site.name), site, prompt)
                for i, site in (per_layer | one_layer).items()
            }
            for i, site in one_layer.items():
                here = jnp.asarray(site.layer) == layer
                here = here.reshape(here.shape + (1,) * value[i].ndim)
                kept[i] = jnp.where(here, value[i], kept[i])
            return kept, {i: value[i] for i in per_layer}

        kept = {}
        for i, site in one_layer.items():
            spec = get(shapes, site.name)
            value = jnp.zeros(spec.shape[1:], spec.dtype)
            shape = jax.eval_shape(lambda v, s=site: part(v, s, prompt), value).shape
            kept[i] = jnp.zeros(jnp.shape(site.layer) + shape, spec.dtype)
        embed = edit(edits.embed, model.embed(tokens, position), place)
        x, (kept, layers) = scan_blocks(
            *(model, embed, edits.blocks, place.rows),
            kept=kept,
            last=_last_layer(flat),
            want={site.name for site in flat if site.layered},
            select=select,
        )
        found = kept | layers

        def end(site: Site) -> Array:
            if site.name == "embed":
                return part(embed, site, prompt)
            # Of all positions, or only of those that are read.
            read = part(position, Site("embed", position=site.position), prompt)
            rows = Sequence(jnp.atleast_1d(read), prompt, prompt)
            final, logits = finish(model, x[rows.position], edits, rows)
            value = final if site.name == "resid_final" else logits
            value = value if read.ndim else value[0]
            return part(value, Site(site.name, feature=site.feature), prompt)

        return [found[i] if s.layered else end(s) for i, s in enumerate(flat)]

    return jax.tree.unflatten(tree, over_prompts(one, tokens))


def _last_layer(sites: list[Site]) -> Array | None:
    """Returns the last layer that sites need, -1 for the embedding, None for all."""
    for site in sites:
        if site.name != "embed" and (not site.layered or site.layer is None):
            return None
    layers = [jnp.max(jnp.asarray(s.layer)) for s in sites if s.layered]
    return jnp.max(jnp.stack([jnp.int32(-1), *layers]))


class Shift(AbstractEdit):
    """Adds one value per row; the gradient in it is the gradient at the site."""

    value: Any

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Adds."""
        value = self.value.value if isinstance(self.value, Layered) else self.value
        if len(value) != len(x):
            # After the last block only the rows that are read are computed.
            value = value[place.rows.position]
        return x + value


@checked
def gradients(
    model: ModelLike,
    tokens: Any,
    metric: Metric,
    sites: Any,
    edits: Any = None,
) -> Any:
    """Computes the gradient of a metric at any set of sites, in one backward pass.

    The gradient at a site is that with respect to the value that the model goes on
    with there, after any edit: `d metric / d activation`.

    Args:
        model: any `AbstractModel`, or a language model (`mijax.models.load(...)`).
        tokens: token ids of one prompt, or of a batch (each prompt's own gradient), or
            `mijax.data.Prompts`; with a language model also a text or a list of texts.
        metric: a metric, for instance `logit_difference(answer, wrong)`.
        sites: a `Site`, or any tree of them.
        edits: placed edits, a list of them, or `None`.

    Returns:
        The tree of `sites` with an array for each, shaped as `capture` gives it.

    Raises:
        SiteError: a site or index that the model does not have.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> tokens = jax.numpy.array([5, 6, 7])
        >>> metric = mijax.logit_difference(3, 4)
        >>> mijax.gradients(model, tokens, metric, mijax.Site("z")).shape
        (3, 3, 4, 8)
    """
    if isinstance(model, FunctionModel):
        return gradients_function(model, tokens, metric, sites, edits)
    model, tokens = opened(model, tokens)
    sites = named_sites(sites)
    given, lengths, tokens = tokens, lengths_of(tokens), as_tokens(tokens)
    options = {"lengths": lengths, "masked": True}
    shapes = check_sites(model, tokens, sites, **options)
    edits = check_edits(model, tokens, edits, **options)
    masked = masked_lengths(model, given, tokens.shape[-1])
    vocab = shapes.logits.shape[-1]
    one = check_metric(metric, tokens, lengths=lengths, vocab=vocab, looks=True)
    measured = check_looks(model, tokens, one, lengths)
    check_spans(sites)
    tokens = _guarded(model, tokens, sites, shapes)
    tokens = guarded(tokens, bounds_of_metric(measured, tokens.shape[-1], vocab))
    traced = jax.tree.map(
        lambda site: _traced(site, tokens.shape[-1]), sites, is_leaf=_is_site
    )
    return _gradients(model, tokens, measured, traced, edits, (shapes, masked))


@eqx.filter_jit
def _gradients(
    model: AbstractModel,
    tokens: Array,
    metric: AbstractMetric,
    sites: Any,
    edits: Sites[Any],
    shapes_and_lengths: Any,
) -> Any:
    shapes, lengths = shapes_and_lengths
    flat, tree = jax.tree.flatten(sites, is_leaf=_is_site)
    single = [s.layer is not None and jnp.ndim(s.layer) == 0 for s in flat]

    def one(tokens: Array, prompt: Array | None) -> list[Array]:
        def value(shifts: list[Array]) -> Array:
            placed = [
                Shift(Layered(d) if s.layered and not lone else d).at(
                    Site(s.name, layer=s.layer if lone else None)
                )
                for d, s, lone in zip(shifts, flat, single, strict=True)
            ]
            every, length = compose(edits, placed), length_of(lengths, prompt)
            return metric_of(model, metric, tokens, every, prompt, length=length)

        specs = [get(shapes, s.name) for s in flat]
        zeros = [
            jnp.zeros(spec.shape[lone:], spec.dtype)
            for spec, lone in zip(specs, single, strict=True)
        ]
        grads = jax.grad(value)(zeros)
        return [_select(g, s, prompt) for g, s in zip(grads, flat, strict=True)]

    return jax.tree.unflatten(tree, over_prompts(one, tokens))


def _select(grad: Array, site: Site, prompt: Array | None) -> Array:
    """Selects what the site asks for from the gradient at the whole site."""
    if not site.layered or (site.layer is not None and jnp.ndim(site.layer) == 0):
        return part(grad, site, prompt)
    if site.layer is not None:
        grad = jnp.take(grad, jnp.asarray(site.layer), axis=0)
    return jax.vmap(lambda g: part(g, site, prompt))(grad)
