"""The device side of a sweep: the unedited run, and one chunk of packed lanes."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from mijax.core._block import apply_block
from mijax.core._check_stated import check_cache, mixes_once
from mijax.core._edits import AbstractEdit, Compose, Placed, edit
from mijax.core._held import held
from mijax.core._keeping import cached
from mijax.core._metric import AbstractMetric, wide
from mijax.core._model import AbstractModel, scan_blocks
from mijax.core._packed import Packed, Reads
from mijax.core._place import Place
from mijax.core._rows import Sequence
from mijax.core._site_metric import seen_rows
from mijax.core._sites import BLOCK_SITES, Sites, empty, get, put
from mijax.core._source_place import SOURCE
from mijax.core._sources import moved


class Base(eqx.Module):
    """The unedited run: what lanes reuse, and what the metric says of it.

    `past` is the blocks' cache, a value per token and kind.
    """

    x: Float[Array, "layer prompt seq embed"]
    past: dict[str, Float[Array, "layer prompt ..."]]
    last: Float[Array, "prompt seq embed"]
    site: Float[Array, "..."]
    reads: Int[Array, "prompt reads"]
    metric: Float[Array, "prompt ..."]
    edits: Sites[Any]
    lengths: Int[Array, " prompt"] | None = None
    seen: tuple[Float[Array, "prompt reads ..."], ...] = ()


@eqx.filter_jit
def run_base(
    model: AbstractModel,
    tokens: Array,
    site: str,
    metric: AbstractMetric,
    edits: Sites[Any] | None = None,
    lengths: Int[Array, " prompt"] | None = None,
) -> Base:
    """Run all prompts without the swept edit.

    Args:
        model: the model.
        tokens: `[prompt, seq]`.
        site: the site that will be edited.
        metric: what is measured.
        edits: edits that stay in every run, at `embed` or in blocks.
        lengths: number of tokens before padding, where the model is not causal.

    Returns:
        The residual stream and the cache at every layer, the last residual stream, and
        the site's activations (with a layer axis of 1 outside the blocks).
    """
    seq, kinds = tokens.shape[1], check_cache(model, "A sweep")
    edits = empty() if edits is None else edits
    # A block that is run again applies its edit at `resid_pre` again, so then what is
    # kept is what the block before it returned.
    stream = "resid_pre" if edits.blocks.resid_pre is None else "resid_post"

    def one(tokens: Array, prompt: Array) -> Any:
        length = None if lengths is None else lengths[prompt]
        rows = Sequence(jnp.arange(seq, dtype=jnp.int32), prompt, prompt, length)
        embed = edit(edits.embed, model.embed(tokens, rows.position), Place(rows))

        def select(kept: Any, acts: Any, layer: Array) -> Any:
            of_site = getattr(acts, site) if site in BLOCK_SITES else None
            past = cached(acts, kinds, rows)
            seen = tuple(getattr(acts, look.site.name)[read] for look in looks)
            return kept, (getattr(acts, stream), past, of_site, seen)

        looks, read = metric.looks(), metric.reads(prompt, seq)
        want = {stream, *kinds, *({site} & set(BLOCK_SITES))}
        want |= {look.site.name for look in looks}
        last, (_, kept) = scan_blocks(
            *(model, embed, edits.blocks, rows), want=want, select=select
        )
        x, past, of_site, seen = kept
        seen = tuple(a[look.site.layer] for a, look in zip(seen, looks, strict=True))
        of_site = embed[None] if of_site is None else of_site
        if stream == "resid_post":
            x = jnp.concatenate([embed[None], x[:-1]])
        return x, past, of_site, last, seen

    prompts = jnp.arange(tokens.shape[0], dtype=jnp.int32)
    axes = (1, 1, 1, 0, 0)
    x, past, of_site, last, seen = jax.vmap(one, out_axes=axes)(tokens, prompts)
    reads = jax.vmap(lambda prompt: metric.reads(prompt, seq))(prompts)
    read = jnp.take_along_axis(last, reads[..., None], axis=1)
    found = measure(model, metric, read, prompts, seen)
    return Base(x, past, last, of_site, reads, found, held(edits), lengths, seen)


def measure(
    model: AbstractModel,
    metric: AbstractMetric,
    x: Float[Array, "lane reads embed"],
    prompt: Int[Array, " lane"],
    seen: tuple[Array, ...] = (),
) -> Float[Array, "lane ..."]:
    """Evaluates a metric on the residual stream at the positions that it reads."""
    ids = jax.vmap(metric.ids)(prompt)
    if ids is not None:
        ids = jnp.broadcast_to(ids[:, None], (*x.shape[:2], ids.shape[-1]))
    logits = wide(model.unembed(model.normalise(x), ids))
    values = jax.vmap(metric.picked)(seen, prompt)
    return jax.vmap(metric.score_seen)(logits, values, prompt)


@eqx.filter_jit
def changed(
    one: AbstractEdit, base: Base, layered: bool
) -> tuple[Bool[Array, "..."], Bool[Array, "..."]]:
    """Find the rows that an edit changes, applied everywhere in the unedited run.

    Args:
        one: the edit, without a place.
        base: the unedited run.
        layered: whether the site has layers.

    Returns:
        Rows that change and rows that become NaN, `[layer, prompt, seq, heads]`; the
        last axis is 1 at sites without heads.
    """
    position = jnp.arange(base.site.shape[2], dtype=jnp.int32)

    def rows(acts: Array, prompt: Array, layer: Array) -> tuple[Array, Array]:
        place = Place(Sequence(position, prompt, prompt), layer if layered else None)
        new = one(acts, place)
        found = (new != acts).any(-1), (jnp.isnan(new) & ~jnp.isnan(acts)).any(-1)
        by_head = [rows if rows.ndim == 2 else rows[:, None] for rows in found]
        return by_head[0], by_head[1]

    def of_layer(inputs: Any) -> tuple[Array, Array]:
        acts, layer = inputs
        prompts = jnp.arange(acts.shape[0], dtype=jnp.int32)
        return jax.vmap(rows, in_axes=(0, 0, None))(acts, prompts, layer)

    layers = jnp.arange(base.site.shape[0], dtype=jnp.int32)
    return jax.lax.map(of_layer, (base.site, layers))


class Tile(eqx.Module):
    """Lanes whose rows are packed together, one entry per lane or per row.

    A chunk is a stack of tiles, sorted by `first`.

    Attributes:
        first: lowest layer that any lane starts from.
        prompt: prompt of each lane.
        start: first position of each lane.
        offset: first row of each lane.
        lane: lane of each row.
        position: position of each row.
        place: the edit's indices per lane: layer, start, stop, head, feature,
            coefficient, and those of a source; those that are absent mean everywhere.
        width: longest suffix.
    """

    first: Any
    prompt: Any
    start: Any
    offset: Any
    lane: Any
    position: Any
    place: dict[str, Any]
    width: int = eqx.field(static=True)

    def rows(
        self,
        key_seq: int,
        read: Array | None = None,
        lengths: Array | None = None,
    ) -> Packed:
        """Returns where the rows stand.

        Args:
            key_seq: number of tokens of a prompt.
            read: positions that are read of each lane, `[lane, reads]`, in the last
                block.
            lengths: number of tokens of every prompt before padding, where the model
                is not causal.

        Returns:
            The packed rows.
        """
        reads = None
        if read is not None:
            lanes, each = read.shape
            lane = jnp.repeat(jnp.arange(lanes, dtype=jnp.int32), each)
            row = self.offset[:, None] + read - self.start[:, None]
            row = jnp.clip(row, 0, self.lane.shape[0] - 1).reshape(-1)
            prompt = self.prompt[lane]
            reads = Reads(read.reshape(-1), prompt, lane, row, key_seq, lanes)
        return Packed(
            position=self.position,
            prompt=self.prompt[self.lane],
            lane=self.lane,
            offset=self.offset,
            start=self.start,
            lane_prompt=self.prompt,
            width=self.width,
            key_seq=key_seq,
            reads=reads,
            lengths=None if lengths is None else lengths[self.prompt],
        )


def run_chunk(
    model: AbstractModel,
    metric: AbstractMetric,
    placed: Placed,
    base: Base,
    tiles: Tile,
) -> Float[Array, "tile lane ..."]:
    """Runs a chunk's lanes and returns the metric of each.

    Layer by layer, over the tiles that have started: a layer's weights are read once
    for all of them.

    Args:
        model: the model.
        metric: what to measure.
        placed: the edit; its indices are replaced by the lanes' own.
        base: the unedited run.
        tiles: the lanes; every array has a leading tile axis.

    Returns:
        The metric per lane; entries of unused lanes mean nothing.
    """
    layers, _, seq = base.x.shape[:3]
    arrays, static = eqx.partition(model.blocks, eqx.is_array)
    reads = base.reads[tiles.prompt]
    # Reading few rows of each lane, the last block goes on with these alone.
    kinds, looks = check_cache(model, "A sweep"), metric.looks()
    narrow = reads[0].size < tiles.lane.shape[1] and mixes_once(kinds)

    def start(tile: Tile) -> Array:
        rows = tile.rows(seq)
        first = jnp.minimum(tile.first, layers - 1)
        x = base.x[first, rows.prompt, rows.position]
        return edit(_at_lanes(placed, tile, empty()).embed, x, Place(rows))

    def block(layer: Array, x: Array, tile: Tile, read: Array | None) -> Any:
        here, every = jax.tree.map(lambda a: _at(a, layer), (arrays, base.past))
        past = {
            name: kind.at_lanes(every[name], tile.prompt, tile.start)
            for name, kind in kinds.items()
        }
        place = Place(tile.rows(seq, read, base.lengths), layer)
        one = eqx.combine(here, static)
        edits = _at_lanes(placed, tile, base.edits).blocks
        want = {look.site.name for look in looks}
        return apply_block(one, x, edits, place, past, want=want)

    def each(one: Callable[..., Any], out: Any, layer: Any) -> Any:
        """Set `out[i] = one(i, tile, out)` for the tiles that have started."""

        def step(i: Array, out: Any) -> Any:
            tile = jax.tree.map(lambda a: _at(a, i), tiles)
            new = one(i, tile, out)
            return jax.tree.map(lambda all_, own: all_.at[i].set(own), out, new)

        return jax.lax.fori_loop(0, (tiles.first <= layer).sum(), step, out)

    def body(layer: Array, state: Any) -> Any:
        # Of what the loop carries, not of `x`, which would have to be copied.
        def one(i: Array, tile: Tile, state: Any) -> Any:
            x, acts = block(layer, state[0][i], tile, None)
            before = tuple(a[i] for a in state[1])
            return x, seen_rows(looks, layer, acts, before, tile, reads[i])

        return each(one, state, layer)

    count, rows = tiles.lane.shape
    x = jnp.zeros((count, rows, base.x.shape[-1]), base.x.dtype)
    x = each(lambda i, tile, _: start(tile), x, layers)
    seen = tuple(of_base[tiles.prompt] for of_base in base.seen)
    x, seen = jax.lax.fori_loop(tiles.first[0], layers - 1, body, (x, seen))

    def last(i: Array, tile: Tile, _: Any) -> Array:
        layer, read = jnp.asarray(layers - 1, jnp.int32), reads[i]
        now, acts = block(layer, x[i], tile, read if narrow else None)
        before = tuple(a[i] for a in seen)
        looked = seen_rows(looks, layer, acts, before, tile, read)
        row = tile.rows(seq, read).reads
        now = now if narrow or row is None else now[row.row]
        own = (read >= tile.start[:, None])[..., None]
        before = base.last[tile.prompt[:, None], read]
        now = jnp.where(own, now.reshape(before.shape), before)
        return measure(model, metric, now, tile.prompt, looked)

    first = jax.tree.map(lambda a: a[0], tiles)
    kind = jax.eval_shape(last, jnp.int32(0), first, None)
    return each(last, jnp.zeros((count, *kind.shape), kind.dtype), layers)


def _at(array: Array, index: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(array, index, keepdims=False)


def _at_lanes(placed: Placed, tile: Tile, base: Sites[Any]) -> Sites[Any]:
    """Return the edit with one place per lane, after the edits of the base run."""
    one: Any = placed.edit
    if "coefficient" in tile.place:
        one = eqx.tree_at(lambda e: e.coefficient, one, tile.place["coefficient"])
    source = {key: i for key, i in tile.place.items() if key.startswith(SOURCE)}
    if source:
        one = moved(one, {key.removeprefix(SOURCE): i for key, i in source.items()})
    at = tile.place.get
    layer, start, stop = at("layer"), at("start"), at("stop")
    head, feature, site = at("head"), at("feature"), placed.site
    lists = (placed.features, placed.axes, placed.mask)
    here = Placed(one, layer, start, stop, head, feature, site, *lists)
    before = get(base, site)
    return put(base, site, here if before is None else Compose((before, here)))


@eqx.filter_jit
def run_chunk_jit(
    model: AbstractModel,
    metric: AbstractMetric,
    placed: Placed,
    base: Base,
    tiles: Tile,
) -> Float[Array, "1 tile lane ..."]:
    """Compile `run_chunk`, with the device axis of `run_chunks_on`."""
    return run_chunk(model, metric, placed, base, tiles)[None]


@eqx.filter_jit
def run_chunks_on(
    mesh: Mesh,
    over: tuple[str, ...],
    shared: tuple[AbstractModel, AbstractMetric, Placed, Base],
    chunks: Tile,
) -> Float[Array, "device tile lane ..."]:
    """Runs one chunk per device, or per group of devices that hold a model together.

    Args:
        mesh: the devices.
        over: axes of the mesh that tell the groups apart. Along the others the
            compiler follows the sharding of the weights.
        shared: the first arguments of `run_chunk`.
        chunks: a chunk per group; every array has a leading axis of groups.

    Returns:
        The metric per lane.
    """
    arrays, static = eqx.partition(shared, eqx.is_array)

    def on_device(arrays: Any, chunks: Tile) -> Array:
        model, metric, placed, base = eqx.combine(arrays, static)
        tiles = jax.tree.map(lambda a: a[0], chunks)
        return run_chunk(model, metric, placed, base, tiles)[None]

    lanes = PartitionSpec(over)
    if not over:
        return on_device(arrays, chunks)
    return jax.shard_map(
        on_device,
        mesh=mesh,
        axis_names=set(over),
        in_specs=(PartitionSpec(), lanes),
        out_specs=lanes,
        check_vma=False,
    )(arrays, chunks)
