"""One block in which some receiver misses a sender, and the layers after it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._ports import Stage
from mijax.circuits.forward._stream import Stream, Taps
from mijax.core import (
    AbstractBlock,
    AbstractMetric,
    AbstractModel,
    AbstractStream,
)
from mijax.core.internal import (
    Base,
    Packed,
    Reads,
    Sequence,
    measure,
    run_block,
    stated,
    summed_write,
)


class Part(AbstractStream):
    """A stream for one part of a block; all others read zeros and write nowhere.

    Attributes:
        x: what the part reads.
        reader: name under which it reads.
        writer: name under which it writes.
        out: what it has written.
    """

    x: Float[Array, "rows embed"]
    reader: str = eqx.field(static=True)
    writer: str = eqx.field(static=True)
    out: Float[Array, "rows embed"] | None = None

    def read(
        self,
        *names: str,
        heads: int | None = None,
        norm: Callable[[Array], Array] | None = None,
    ) -> Any:
        """Returns the rows, or zeros; what others make of these is never computed."""
        zeros = jnp.zeros_like(self.x)
        found = [self.x if name == self.reader else zeros for name in names]
        found = tuple(x if norm is None else norm(x) for x in found)
        return found if len(names) > 1 else found[0]

    def write(
        self,
        name: str,
        z: Float[Array, "rows ..."],
        weight: Float[Array, "... embed"],
        bias: Float[Array, " embed"] | None = None,
    ) -> "Part":
        """Keeps what the part writes."""
        if name != self.writer:
            return self
        return self.add(name, summed_write(z, weight))

    def add(self, name: str, value: Float[Array, "rows embed"]) -> "Part":
        """Keeps what the part writes."""
        return replace(self, out=value) if name == self.writer else self


def block_at(model: AbstractModel, layer: Int[Array, ""]) -> AbstractBlock:
    """Returns one block."""
    arrays, static = eqx.partition(model.blocks, eqx.is_array)
    here = jax.tree.map(
        lambda a: jax.lax.dynamic_index_in_dim(a, layer, keepdims=False), arrays
    )
    return eqx.combine(here, static)


def apply_part(
    block: AbstractBlock,
    ports: tuple[str, str],
    x: Float[Array, "*lane rows embed"],
) -> Float[Array, "*lane rows embed"]:
    """Applies a part of a block that computes every row by itself.

    Args:
        block: the block.
        ports: names under which the part reads and writes.
        x: what it reads, in many streams.

    Returns:
        What it writes.
    """
    flat = x.reshape(-1, x.shape[-1])
    rows = Sequence(jnp.arange(flat.shape[0], dtype=jnp.int32))
    return block(Part(flat, *ports), rows).out.reshape(x.shape)


def without_sender(
    model: AbstractModel,
    graph: Graph,
    stage: Stage,
    x: Float[Array, "seq embed"],
    missing: Float[Array, "seq embed"],
    layer: Int[Array, ""],
    every: Sequence,
    rows: Int[Array, " rows"],
) -> Float[Array, "receiver rows embed"]:
    """Runs a block once for every receiver of a stage that misses a sender.

    Args:
        model: the model.
        graph: its graph.
        stage: the receivers.
        x: the stream before the block.
        missing: what is taken from what the receiver reads.
        layer: which block.
        every: where the tokens of the prompt stand.
        rows: positions that are returned.

    Returns:
        The stream after the block, in the order of the receivers.
    """
    block = block_at(model, layer)
    groups = group_receivers(graph, stage, apart=False)

    def run(group: Array, groups: np.ndarray = groups) -> Stream:
        """Runs the block in which a group of receivers misses the sender."""
        here = (jnp.asarray(groups) == group)[:, None, None]
        taps = Taps(receivers=jnp.where(here, -missing, 0))
        found: Any = block(Stream(x, jnp.int32(0), graph, taps=taps), every)
        return found

    writer = graph.ports.writer(stage.names[0])
    by_row = stated(block, "by_row")
    later = [] if writer is None else readers_after(graph, writer.name)
    whole = (stage.heads is None) and stage.names[0] in by_row
    # A head that writes through a norm of all of them changes what the others write.
    heads = stage.heads is not None and getattr(writer, "heads", None) is not None
    if writer is None or not set(later) <= set(by_row) or not (whole or heads):
        groups = group_receivers(graph, stage, apart=True)
        each = lambda group: run(group, groups).x[rows]  # noqa: E731
        return jax.vmap(each)(jnp.arange(stage.size))
    at = graph.ports.writes.index(writer)
    if whole:
        clean = block(Stream(x, jnp.int32(0), graph), every)
        read = clean.before[graph.ports.point(stage.names[0])][rows] - missing[rows]
        now = apply_part(block, (stage.names[0], writer.name), read)[None]
        old = clean.written[at][0, rows]
    else:
        clean = run(jnp.int32(-1))
        now = jax.vmap(lambda group: run(group).written[at])(
            jnp.arange(len(stage.names))
        )
        now = (now - clean.written[at])[:, :, rows].reshape(stage.size, len(rows), -1)
        old = 0
    return settle(block, graph, clean, later, (now, old), rows)


def settle(
    block: AbstractBlock,
    graph: Graph,
    clean: Stream,
    later: list[str],
    change: tuple[Any, Any],
    rows: Int[Array, " rows"],
) -> Float[Array, "lane rows embed"]:
    """Finishes a block in which one write is changed, in many streams.

    Args:
        block: the block.
        graph: the graph.
        clean: the unchanged run of the block.
        later: readers of the block after the write; each computes rows by itself.
        change: what is written now, and what it replaces.
        rows: positions that are returned.

    Returns:
        The stream after the block.
    """
    after = clean.x[rows] + change[0] - change[1]
    total = change[0] - change[1]
    for name in later:
        writer = graph.ports.writer(name)
        assert writer is not None
        read = clean.before[graph.ports.point(name)][rows] + total
        now = apply_part(block, (name, writer.name), read)
        old = clean.written[graph.ports.writes.index(writer)][0, rows]
        after, total = after + now - old, total + now - old
    return after


def group_receivers(
    graph: Graph, stage: Stage, *, apart: bool
) -> Int[np.ndarray, " reader"]:
    """Numbers the receivers of a stage, by port or each apart; others are -2."""
    found = np.full(graph.ports.readers, -2)
    first = graph.ports.offset(stage.names[0])
    each = 1 if apart else stage.size // len(stage.names)
    found[first : first + stage.size] = np.arange(stage.size) // each
    return found


def readers_after(graph: Graph, writer: str) -> list[str]:
    """Returns the ports of a block that read after another wrote."""
    at = graph.ports.order.index(graph.ports.port(writer))
    return [port.name for port in graph.ports.order[at:] if not port.writes]


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
            lengths=None if base.lengths is None else base.lengths[prompt],
        )

    def step(layer: Array, x: Array, reads: Reads | None = None) -> Array:
        past = {name: value[layer] for name, value in base.past.items()}
        return run_block(block_at(model, layer), x, rows(reads), past)

    x = jax.lax.fori_loop(layer, layers - 1, step, x.reshape(-1, embed))
    x = step(jnp.int32(layers - 1), x, reads).reshape(lanes, -1, embed)
    before = base.last[prompt[:, None], read]
    x = jnp.where((read >= start)[..., None], x, before)
    return measure(model, metric, x, prompt)
