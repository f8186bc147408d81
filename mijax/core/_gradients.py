"""`gradients`: those of a metric at any sites, in one backward pass."""

import os
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax._progress import Progress
from mijax.core._arguments import checked
from mijax.core._capture import (
    check_spans,
    guarded_tokens,
    is_site,
    named_sites,
    traced_site,
)
from mijax.core._check import check_edits, check_metric, check_sites
from mijax.core._check_looks import check_looks
from mijax.core._check_stated import masked_lengths
from mijax.core._chunked import chunked, over_chunks
from mijax.core._edits import AbstractEdit, compose
from mijax.core._ends import metric_of
from mijax.core._function import FunctionModel
from mijax.core._function_run import gradients_function
from mijax.core._metric import AbstractMetric
from mijax.core._model import AbstractModel, Layered
from mijax.core._part import part
from mijax.core._place import Place
from mijax.core._score import Metric
from mijax.core._sites import Site, Sites, get
from mijax.core._text import ModelLike, opened
from mijax.core._tokens import as_tokens, length_of, lengths_of, over_prompts
from mijax.core._traced import bounds_of_metric, guarded


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
    *,
    batch: int | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: Progress = None,
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
        batch: number of prompts that the program takes at a time, for data sets larger
            than the memory of the device; all at once by default.
        out: with `batch`, a folder for the result, a `.npy` file for each array. The
            same call goes on after an interruption, and opens what is done.
        progress: with `batch`, called with the number of prompts done and their total;
            `None` draws a bar after three seconds in a terminal or notebook, `False`
            none.

    Returns:
        The tree of `sites` with an array for each, shaped as `capture` gives it.
        With `batch` they are NumPy arrays, with `out` read-only memory maps.

    Raises:
        SiteError: a site or index that the model does not have.
        ConfigError: `batch` below 1, or `out` without `batch`.
        OutputError: a folder `out` with anything else than this result.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> tokens = jax.numpy.array([5, 6, 7])
        >>> metric = mijax.logit_difference(3, 4)
        >>> mijax.gradients(model, tokens, metric, mijax.Site("z")).shape
        (3, 3, 4, 8)
    """
    chunks = chunked(batch, out, progress)
    if isinstance(model, FunctionModel):
        return gradients_function(model, tokens, metric, sites, edits, chunks)
    model, tokens = opened(model, tokens)
    sites = named_sites(sites)
    given, lengths, tokens = tokens, lengths_of(tokens), as_tokens(tokens)
    shapes = check_sites(model, tokens, sites, lengths=lengths)
    edits = check_edits(model, tokens, edits, lengths=lengths)
    masked = masked_lengths(model, given, tokens.shape[-1])
    vocab = shapes.logits.shape[-1]
    one = check_metric(metric, tokens, lengths=lengths, vocab=vocab, looks=True)
    measured = check_looks(model, tokens, one, lengths)
    check_spans(sites)
    tokens = guarded_tokens(model, tokens, sites, shapes)
    tokens = guarded(tokens, bounds_of_metric(measured, tokens.shape[-1], vocab))
    traced = jax.tree.map(
        lambda site: traced_site(site, tokens.shape[-1]), sites, is_leaf=is_site
    )
    args = (model, tokens, measured, traced, edits, (shapes, masked))
    return over_chunks(_gradients, args, chunks)


@eqx.filter_jit
def _gradients(
    model: AbstractModel,
    tokens: Array,
    metric: AbstractMetric,
    sites: Any,
    edits: Sites[Any],
    shapes_and_lengths: Any,
    prompts: Array | None,
) -> Any:
    shapes, lengths = shapes_and_lengths
    flat, tree = jax.tree.flatten(sites, is_leaf=is_site)
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

    return jax.tree.unflatten(tree, over_prompts(one, tokens, prompts))


def _select(grad: Array, site: Site, prompt: Array | None) -> Array:
    """Selects what the site asks for from the gradient at the whole site."""
    if not site.layered or (site.layer is not None and jnp.ndim(site.layer) == 0):
        return part(grad, site, prompt)
    if site.layer is not None:
        grad = jnp.take(grad, jnp.asarray(site.layer), axis=0)
    return jax.vmap(lambda g: part(g, site, prompt))(grad)
