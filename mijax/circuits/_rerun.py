"""One block in which some receiver misses a sender, and the layers after it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax.circuits._connected import Stream, Taps
from mijax.circuits._graph import Graph
from mijax.core import (
    AbstractBlock,
    AbstractMetric,
    AbstractModel,
    AbstractStream,
    Place,
)
from mijax.core.internal import Base, Packed, Reads, Sequence, empty, measure


class OnlyMLP(AbstractStream):
    """A stream for the MLP alone: the heads read nothing and write nowhere."""

    x: Float[Array, "rows embed"]
    n_heads: int = eqx.field(static=True)
    out: Float[Array, "rows embed"] | None = None

    def read_heads(self) -> tuple[Float[Array, "rows heads embed"], ...]:
        """Returns zeros; what heads make of them is never used, so never computed."""
        rows, embed = self.x.shape
        return (jnp.zeros((rows, self.n_heads, embed), self.x.dtype),) * 3

    def read_mlp(self) -> Float[Array, "rows embed"]:
        """Returns the rows."""
        return self.x

    def write_heads(
        self,
        heads: Float[Array, "rows heads embed"],
        bias: Float[Array, " embed"] | None,
    ) -> "OnlyMLP":
        """Drops what the heads write."""
        return self

    def write_mlp(self, out: Float[Array, "rows embed"]) -> "OnlyMLP":
        """Keeps what the MLP writes."""
        return OnlyMLP(self.x, self.n_heads, out)


def block_at(model: AbstractModel, layer: Int[Array, ""]) -> AbstractBlock:
    """Returns one block."""
    arrays, static = eqx.partition(model.blocks, eqx.is_array)
    here = jax.tree.map(
        lambda a: jax.lax.dynamic_index_in_dim(a, layer, keepdims=False), arrays
    )
    return eqx.combine(here, static)


def apply_mlp(
    block: AbstractBlock,
    graph: Graph,
    x: Float[Array, "*lane rows embed"],
    layer: Array,
) -> Float[Array, "*lane rows embed"]:
    """Applies a block's MLP to many streams at once."""
    flat = x.reshape(-1, x.shape[-1])
    place = Place(Sequence(jnp.arange(flat.shape[0], dtype=jnp.int32)), layer)
    stream: Any = block.connect(OnlyMLP(flat, graph.n_heads), empty().blocks, place)
    return stream.out.reshape(x.shape)


def without_sender(
    model: AbstractModel,
    graph: Graph,
    x: Float[Array, "seq embed"],
    missing: Float[Array, "seq embed"],
    layer: Int[Array, ""],
    prompt: Int[Array, ""],
    rows: Int[Array, " rows"],
) -> Float[Array, "receiver rows embed"]:
    """Runs a block once for every head's query, key and value that misses a sender.

    Args:
        model: the model.
        graph: its graph.
        x: the stream before the block.
        missing: what is taken from what the receiver reads.
        layer: which block.
        prompt: which prompt.
        rows: positions that are returned.

    Returns:
        The stream after the block, in the order of the receivers.
    """
    block, heads = block_at(model, layer), graph.n_heads
    place = Place(
        Sequence(jnp.arange(x.shape[0], dtype=jnp.int32), prompt, prompt), layer
    )

    def write(letter: Array) -> Stream:
        """Runs the block in which one letter of all heads misses the sender."""
        here = jnp.arange(graph.readers) // heads == letter
        here &= jnp.arange(graph.readers) < 3 * heads
        taps = Taps(receivers=jnp.where(here[:, None, None], -missing, 0))
        stream = Stream(x, jnp.int32(0), heads, taps=taps)
        found: Any = block.connect(stream, empty().blocks, place)
        return found

    clean = write(jnp.int32(-1))
    change = jax.vmap(lambda letter: write(letter).written[0])(jnp.arange(3))
    change = (change - clean.written[0])[:, :, rows].reshape(3 * heads, len(rows), -1)
    after = clean.x[rows] + change
    if not graph.mlp or graph.parallel:
        return after
    assert clean.middle is not None
    middle = clean.middle[rows]
    mlp = apply_mlp(block, graph, middle + change, layer)
    return after + mlp - clean.written[1][0, rows]


def without_mlp(
    model: AbstractModel,
    graph: Graph,
    x: Float[Array, "seq embed"],
    missing: Float[Array, "seq embed"],
    layer: Int[Array, ""],
    prompt: Int[Array, ""],
    rows: Int[Array, " rows"],
) -> Float[Array, "receiver rows embed"]:
    """Runs a block whose MLP misses a sender; see `without_sender`."""
    block = block_at(model, layer)
    place = Place(
        Sequence(jnp.arange(x.shape[0], dtype=jnp.int32), prompt, prompt), layer
    )
    stream = Stream(x, jnp.int32(0), graph.n_heads)
    clean: Any = block.connect(stream, empty().blocks, place)
    read = (x if graph.parallel else clean.middle)[rows]
    change = apply_mlp(block, graph, read - missing[rows], layer)
    return (clean.x[rows] + change - clean.written[1][0, rows])[None]


def finish(
    model: AbstractModel,
    metric: AbstractMetric,
    base: Base,
    x: Float[Array, "lane width embed"],
    layer: Int[Array, ""],
    prompt: Int[Array, " lane"],
    start: int,
) -> Float[Array, " lane"]:
    """Runs many lanes from a layer on to the metric.

    Args:
        model: the model.
        metric: what to measure.
        base: the clean run, whose keys and values come before `start`.
        x: each lane's stream before the layer, at the positions from `start` on.
        layer: first layer to run, not the last but one.
        prompt: prompt of each lane.
        start: first position that lanes run.

    Returns:
        The metric of every lane.
    """
    lanes, width, embed = x.shape
    layers, _, seq = base.x.shape[:3]
    lane = jnp.arange(lanes, dtype=jnp.int32)
    read = base.reads[prompt]
    offset = lane * width
    own = jnp.maximum(read - start, 0)
    reads = Reads(
        position=read.reshape(-1),
        prompt=jnp.repeat(prompt, read.shape[1]),
        lane=jnp.repeat(lane, read.shape[1]),
        row=(offset[:, None] + own).reshape(-1),
        key_seq=seq,
        lanes=lanes,
    )

    def rows(reads: Reads | None) -> Packed:
        return Packed(
            position=jnp.tile(jnp.arange(start, seq, dtype=jnp.int32), lanes),
            prompt=jnp.repeat(prompt, width),
            lane=jnp.repeat(lane, width),
            offset=offset,
            start=jnp.full(lanes, start, jnp.int32),
            lane_prompt=prompt,
            width=width,
            key_seq=seq,
            reads=reads,
        )

    def step(layer: Array, x: Array, reads: Reads | None = None) -> Array:
        past = base.k[layer], base.v[layer]
        place = Place(rows(reads), layer)
        return block_at(model, layer)(x, empty().blocks, place, past)[0]

    x = jax.lax.fori_loop(layer, layers - 1, step, x.reshape(-1, embed))
    x = step(jnp.int32(layers - 1), x, reads).reshape(lanes, -1, embed)
    before = base.last[prompt[:, None], read]
    x = jnp.where((read >= start)[..., None], x, before)
    return measure(model, metric, x, prompt)
