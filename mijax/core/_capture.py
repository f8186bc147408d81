"""`capture`: activations, selected inside one program."""

import os
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mijax._errors import PositionError
from mijax._progress import Progress
from mijax.core._arguments import checked
from mijax.core._check import check_edits, check_sites, traced_tokens
from mijax.core._check_stated import masked_lengths
from mijax.core._chunked import chunked, over_chunks
from mijax.core._decoder_sites import with_feature
from mijax.core._edits import edit
from mijax.core._ends import finish
from mijax.core._function import FunctionModel
from mijax.core._function_run import capture_function
from mijax.core._model import AbstractModel, scan_blocks
from mijax.core._part import part
from mijax.core._place import Place
from mijax.core._rows import Sequence
from mijax.core._sites import BlockSites, Site, Sites, get, known, span_ends
from mijax.core._text import ModelLike, opened
from mijax.core._tokens import as_tokens, length_of, lengths_of, over_prompts
from mijax.core._traced import bounds_of_site, guarded


@checked
def capture(
    model: ModelLike,
    tokens: Any,
    sites: Any,
    edits: Any = None,
    *,
    batch: int | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: Progress = None,
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
        batch: number of prompts that the program takes at a time, for data sets larger
            than the memory of the device; all at once by default.
        out: with `batch`, a folder for the result, a `.npy` file for each array. The
            same call goes on after an interruption, and opens what is done.
        progress: with `batch`, called with the number of prompts done and their total;
            `None` draws a bar after three seconds in a terminal or notebook, `False`
            none.

    Returns:
        The tree of `sites` with an array for each,
        `[*batch, layer, seq, ...features]`. An integer index drops its axis, an array
        of indices keeps it; a position per prompt drops the `seq` axis.
        With `batch` they are NumPy arrays, with `out` read-only memory maps.

    Raises:
        SiteError: a site or index that the model does not have.
        PositionError: a position beyond the prompt, or a span that is not the same
            for every prompt.
        ConfigError: `batch` below 1, or `out` without `batch`.
        OutputError: a folder `out` with anything else than this result.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> tokens = jax.numpy.array([5, 6, 7, 8])
        >>> sites = {"last": mijax.Site("resid_post", layer=2, position=3)}
        >>> mijax.capture(model, tokens, sites)["last"].shape
        (32,)
    """
    chunks = chunked(batch, out, progress)
    if isinstance(model, FunctionModel):
        return capture_function(model, tokens, sites, edits, chunks)
    model, tokens = opened(model, tokens)
    sites = named_sites(sites)
    given, lengths, tokens = tokens, lengths_of(tokens), as_tokens(tokens)
    shapes = check_sites(model, tokens, sites, lengths=lengths)
    edits = check_edits(model, tokens, edits, lengths=lengths)
    masked = masked_lengths(model, given, tokens.shape[-1])
    check_spans(sites)
    tokens = guarded_tokens(model, tokens, sites, shapes)
    traced = jax.tree.map(
        lambda site: traced_site(site, tokens.shape[-1]), sites, is_leaf=is_site
    )
    args = (model, tokens, traced, edits, shapes, masked)
    return over_chunks(_capture, args, chunks)


def named_sites(sites: Any) -> Any:
    """Return a tree of sites in which names stand for whole sites."""
    return jax.tree.map(
        lambda site: Site(site) if isinstance(site, str) else with_feature(site),
        sites,
        is_leaf=is_site,
    )


def check_spans(sites: Any) -> None:
    """Refuses spans that are not the same for every prompt."""
    for site in jax.tree.leaves(sites, is_leaf=is_site):
        ends = [known(end) for end in _span(site)]
        if any(end is None or end.ndim for end in ends):
            raise PositionError(
                "What is read takes a span of fixed integers; with one per prompt, "
                "read every position and select with the prompts' masks."
            )


def is_site(node: Any) -> bool:
    return isinstance(node, Site | str)


def guarded_tokens(model: Any, tokens: Array, sites: Any, shapes: Sites[Any]) -> Array:
    """Return tokens that raise, with checks on, where traced indices do not exist."""
    tokens, seq = traced_tokens(model, tokens), tokens.shape[-1]
    for site in jax.tree.leaves(sites, is_leaf=is_site):
        tokens = guarded(tokens, bounds_of_site(site, shapes, seq))
    return tokens


def traced_site(site: Site, seq: int) -> Site:
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
    prompts: Array | None,
) -> Any:
    flat, tree = jax.tree.flatten(sites, is_leaf=is_site)
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

    return jax.tree.unflatten(tree, over_prompts(one, tokens, prompts))


def _last_layer(sites: list[Site]) -> Array | None:
    """Returns the last layer that sites need, -1 for the embedding, None for all."""
    for site in sites:
        if site.name != "embed" and (not site.layered or site.layer is None):
            return None
    layers = [jnp.max(jnp.asarray(s.layer)) for s in sites if s.layered]
    return jnp.max(jnp.stack([jnp.int32(-1), *layers]))
