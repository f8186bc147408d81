"""Runs that differ from the clean one only from some layer on, many masks at a time."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mijax.circuits._task import Task, enter_clean
from mijax.circuits.forward._connected import connected, score
from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._rerun import block_at
from mijax.circuits.forward._stream import Stream, missing
from mijax.core import AbstractModel
from mijax.core.internal import Sequence


class Clean(eqx.Module):
    """What runs with different masks share, in every prompt.

    Attributes:
        streams: the stream before each block, and what the logits read.
        passing: what each sender writes minus its reference.
        reference: what each sender is replaced by.
        length: number of tokens before padding, where the model is not causal.
    """

    streams: Float[Array, "*prompt point seq embed"]
    passing: Float[Array, "*prompt sender seq embed"]
    reference: Float[Array, "*prompt sender seq embed"]
    length: Int[Array, "*prompt"] | None


@eqx.filter_jit
def run_clean(model: AbstractModel, graph: Graph, task: Task) -> Clean:
    """Runs every prompt and its reference once."""

    def one(prompt: Array) -> Clean:
        inputs = enter_clean(model, graph, task, prompt)
        ran = connected(model, graph, inputs, prompt=prompt)
        reference = task.ablation.reference(model, graph, task, prompt)
        streams = jnp.concatenate([ran.before[:, 0], ran.final[None]])
        return Clean(streams, ran.senders - reference, reference, inputs.length)

    return jax.lax.map(one, jnp.arange(len(task), dtype=jnp.int32))


@eqx.filter_jit
def run_masks(
    model: AbstractModel,
    graph: Graph,
    task: Task,
    clean: Clean,
    edges: Bool[Array, "mask sender receiver"],
    *,
    first: Int[Array, ""],
    chunk: int,
) -> Float[Array, " mask"]:
    """Evaluates the task's metric under many masks.

    Args:
        model: the model.
        graph: its graph.
        task: what is measured.
        clean: the clean run.
        edges: the edges that are kept.
        first: the first layer where any mask misses an edge; the number of layers if
            only edges into the logits are missed. One program serves all.
        chunk: prompts that run at once.

    Returns:
        The metric under each mask, averaged over prompts.
    """
    gates = jnp.where(graph.edges, edges, True).astype(clean.streams.dtype)

    def one(prompt: Array) -> Array:
        here = jax.tree.map(lambda a: a[prompt], clean)

        def lane(gate: Array) -> Array:
            final = _run_from(model, graph, here, gate, first, prompt)
            return score(model, task.metric, final, prompt)

        return jax.vmap(lane)(gates)

    prompts = jnp.arange(len(task), dtype=jnp.int32)
    return jax.lax.map(one, prompts, batch_size=chunk).mean(0)


def fit_prompts(clean: Clean, graph: Graph, lanes: int, memory: int) -> int:
    """Returns how many prompts run at once with so many masks each."""
    prompts, senders, seq, embed = clean.passing.shape
    # Every lane holds all senders and, in one block, what each receiver makes of them.
    rows = (senders + 4 * graph.ports.readers) * seq * embed
    each = lanes * rows * clean.passing.dtype.itemsize
    return max(1, min(prompts, memory // each))


def _run_from(
    model: AbstractModel,
    graph: Graph,
    clean: Any,
    gate: Float[Array, "sender receiver"],
    first: Int[Array, ""],
    prompt: Int[Array, ""],
) -> Float[Array, "seq embed"]:
    """Runs one prompt from a layer on; see `connected`."""
    seq = clean.streams.shape[1]
    rows = Sequence(jnp.arange(seq, dtype=jnp.int32), prompt, prompt, clean.length)

    def body(layer: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        x, sent = carry
        ports = graph.ports
        writer = len(graph.inputs) + layer * ports.writers
        slice_of = jax.lax.dynamic_slice_in_dim
        stream = Stream(
            x,
            writer,
            graph,
            sent,
            edges=slice_of(gate, layer * ports.readers, ports.readers, axis=1),
            reference=slice_of(clean.reference, writer, ports.writers),
        )
        block = block_at(model, layer)
        done = block(stream, rows)
        return done.x, done.sent

    start = jax.lax.dynamic_index_in_dim(clean.streams, first, keepdims=False)
    x, sent = jax.lax.fori_loop(first, graph.n_layers, body, (start, clean.passing))
    return x - missing(gate[:, -1:], sent)[0]
