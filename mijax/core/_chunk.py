"""The device side of a sweep: the unedited run, and one chunk of packed lanes."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from mijax.core._edits import AbstractEdit, Placed, edit
from mijax.core._metrics import AbstractMetric
from mijax.core._model import AbstractModel, scan_blocks
from mijax.core._rows import Packed, Place, Sequence
from mijax.core._sites import BLOCK_SITES, empty, put


class Base(eqx.Module):
    """The unedited run: what lanes re-use, and what the metric says of it."""

    x: Float[Array, "layer prompt seq embed"]
    k: Float[Array, "layer prompt seq heads head_dim"]
    v: Float[Array, "layer prompt seq heads head_dim"]
    last: Float[Array, "prompt seq embed"]
    site: Float[Array, "layer prompt seq ..."]
    reads: Int[Array, "prompt reads"]
    metric: Float[Array, " prompt"]


@eqx.filter_jit
def run_base(
    model: AbstractModel, tokens: Array, site: str, metric: AbstractMetric
) -> Base:
    """Runs all prompts unedited.

    Args:
        model: the model.
        tokens: `[prompt, seq]`.
        site: the site that will be edited.
        metric: what is measured.

    Returns:
        The residual stream, keys and values at every layer, the last residual stream,
        and the site's activations (with a layer axis of 1 outside the blocks).
    """
    seq = tokens.shape[1]

    def one(tokens: Array, prompt: Array) -> Any:
        rows = Sequence(jnp.arange(seq, dtype=jnp.int32), prompt, prompt)
        embed = model.embed(tokens, rows.position)

        def select(kept: Any, acts: Any, layer: Array) -> Any:
            of_site = getattr(acts, site) if site in BLOCK_SITES else None
            return kept, (acts.resid_pre, acts.k, acts.v, of_site)

        last, (_, kept) = scan_blocks(model, embed, empty().blocks, rows, select=select)
        x, k, v, of_site = kept
        of_site = embed[None] if of_site is None else of_site
        return x, k, v, of_site, last

    prompts = jnp.arange(tokens.shape[0], dtype=jnp.int32)
    x, k, v, of_site, last = jax.vmap(one, out_axes=(1, 1, 1, 1, 0))(tokens, prompts)
    reads = jax.vmap(lambda prompt: metric.reads(prompt, seq))(prompts)
    read = jnp.take_along_axis(last, reads[..., None], axis=1)
    return Base(x, k, v, last, of_site, reads, measure(model, metric, read, prompts))


def measure(
    model: AbstractModel,
    metric: AbstractMetric,
    x: Float[Array, "lane reads embed"],
    prompt: Int[Array, " lane"],
) -> Float[Array, " lane"]:
    """Evaluates a metric on the residual stream at the positions that it reads."""
    ids = jax.vmap(metric.ids)(prompt)
    if ids is not None:
        ids = jnp.broadcast_to(ids[:, None], (*x.shape[:2], ids.shape[-1]))
    logits = model.unembed(model.normalise(x), ids)
    return jax.vmap(metric.score)(logits, prompt)


@eqx.filter_jit
def changed(one: AbstractEdit, base: Base, layered: bool) -> Bool[Array, "..."]:
    """Tells which rows an edit changes, applied everywhere in the unedited run.

    Args:
        one: the edit, without a place.
        base: the unedited run.
        layered: whether the site has layers.

    Returns:
        `[layer, prompt, seq, heads]`; the last axis is 1 at sites without heads.
    """
    position = jnp.arange(base.site.shape[2], dtype=jnp.int32)

    def rows(acts: Array, prompt: Array, layer: Array) -> Array:
        place = Place(Sequence(position, prompt, prompt), layer if layered else None)
        differs = (one(acts, place) != acts).any(-1)
        return differs if differs.ndim == 2 else differs[:, None]

    def of_layer(inputs: Any) -> Array:
        acts, layer = inputs
        prompts = jnp.arange(acts.shape[0], dtype=jnp.int32)
        return jax.vmap(rows, in_axes=(0, 0, None))(acts, prompts, layer)

    layers = jnp.arange(base.site.shape[0], dtype=jnp.int32)
    return jax.lax.map(of_layer, (base.site, layers))


class Chunk(eqx.Module):
    """Lanes that run together; `Int[Array]` of one entry per lane, or per row.

    Attributes:
        first: lowest layer that any lane starts from.
        prompt: prompt of each lane.
        start: first position of each lane.
        offset: first row of each lane.
        lane: lane of each row.
        position: position of each row.
        place: the edit's indices per lane: layer, start, stop, head, feature,
            coefficient; those that are absent mean everywhere.
        width: longest suffix.
    """

    first: Array
    prompt: Array
    start: Array
    offset: Array
    lane: Array
    position: Array
    place: dict[str, Array]
    width: int = eqx.field(static=True)


def run_chunk(
    model: AbstractModel,
    metric: AbstractMetric,
    placed: Placed,
    base: Base,
    chunk: Chunk,
) -> Float[Array, " lane"]:
    """Runs a chunk's lanes and returns the metric of each.

    Args:
        model: the model.
        metric: what to measure.
        placed: the edit; its indices are replaced by the lanes' own.
        base: the unedited run.
        chunk: the lanes.

    Returns:
        The metric per lane; entries of unused lanes mean nothing.
    """
    rows = Packed(
        position=chunk.position,
        prompt=chunk.prompt[chunk.lane],
        lane=chunk.lane,
        offset=chunk.offset,
        start=chunk.start,
        lane_prompt=chunk.prompt,
        width=chunk.width,
        key_seq=base.x.shape[2],
    )
    edits = put(empty(), placed.site, _at_lanes(placed, chunk.place))
    x = base.x[chunk.first, rows.prompt, rows.position]
    x = edit(edits.embed, x, Place(rows))
    arrays, static = eqx.partition(model.blocks, eqx.is_array)

    def body(layer: Array, x: Array) -> Array:
        here = lambda a: jax.lax.dynamic_index_in_dim(a, layer, keepdims=False)  # noqa: E731
        block = eqx.combine(jax.tree.map(here, arrays), static)
        past = here(base.k), here(base.v)
        return block(x, edits.blocks, Place(rows, layer), past)[0]

    x = jax.lax.fori_loop(chunk.first, base.x.shape[0], body, x)
    reads = base.reads[chunk.prompt]
    row = chunk.offset[:, None] + reads - chunk.start[:, None]
    own = (reads >= chunk.start[:, None])[..., None]
    now = x[jnp.clip(row, 0, x.shape[0] - 1)]
    read = jnp.where(own, now, base.last[chunk.prompt[:, None], reads])
    return measure(model, metric, read, chunk.prompt)


def _at_lanes(placed: Placed, place: dict[str, Array]) -> Placed:
    """Returns the edit with one place per lane."""
    one = placed.edit
    if "coefficient" in place:
        one = eqx.tree_at(lambda e: e.coefficient, one, place["coefficient"])  # pyright: ignore
    index = [place.get(key) for key in ("layer", "start", "stop", "head", "feature")]
    return Placed(one, *index, placed.site)


run_chunk_jit = eqx.filter_jit(run_chunk)


@eqx.filter_jit
def run_chunks_on(
    mesh: Mesh,
    model: AbstractModel,
    metric: AbstractMetric,
    placed: Placed,
    base: Base,
    chunks: Chunk,
) -> Float[Array, "device lane"]:
    """Runs one chunk per device; the arrays of `chunks` have a leading device axis."""
    shared, static = eqx.partition((model, metric, placed, base), eqx.is_array)

    def on_device(shared: Any, chunks: Chunk) -> Array:
        chunk = jax.tree.map(lambda a: a[0], chunks)
        return run_chunk(*eqx.combine(shared, static), chunk)[None]

    lanes = PartitionSpec(mesh.axis_names)
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), lanes),
        out_specs=lanes,
        check_vma=False,
    )(shared, chunks)
