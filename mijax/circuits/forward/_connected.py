"""The one forward of every circuit method: each receiver sees a stream of its own.

What receiver `r` reads is

    x_r = x + tap_r - sum_s (1 - mask[s, r]) (now_s - reference_s)

where `x` is the residual stream, `now_s` what sender `s` writes in this run and
`reference_s` what it is replaced by. With a full mask and no taps it is the model.
"""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax._errors import ShapeError
from mijax.circuits.forward._function import enter_function, run_function
from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._stream import (
    Gate,
    Inputs,
    OtherRun,
    Ran,
    Stream,
    Taps,
    missing,
)
from mijax.circuits.forward._streams import Model, StreamModel, with_blocks
from mijax.core.internal import Sequence, measure
from mijax.core.internal import score as score_output


def enter(
    model: Model, graph: Graph, tokens: Any, length: Int[Array, ""] | None = None
) -> Inputs:
    """Embeds a prompt.

    Args:
        model: the model.
        graph: its graph.
        tokens: ids of one prompt, `[seq]`; of a `StreamModel` one input.
        length: number of tokens before padding, which a model that is not causal
            masks.

    Returns:
        What enters the first block, by sender.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> inputs = enter(model, Graph.of(model), jnp.array([5, 6, 7]))
        >>> inputs.senders.shape  # input, seq, embed
        (1, 3, 32)
    """
    if isinstance(model, StreamModel):
        return enter_function(model, graph, tokens)
    position = jnp.arange(tokens.shape[0], dtype=jnp.int32)
    terms = jnp.stack(list(model.embeddings(tokens, position).values()))
    size = len(graph.inputs)
    masked = None if model.causal else length
    return Inputs(terms[:size], terms[size:].sum(0), masked)


def connected(
    model: Model,
    graph: Graph,
    inputs: Inputs,
    *,
    prompt: Int[Array, ""] | None = None,
    gate: Gate | None = None,
    reference: Float[Array, "sender rows embed"] | None = None,
    taps: Taps | None = None,
    other: OtherRun | None = None,
) -> Ran:
    """Runs a model with a stream of its own for every receiver.

    Args:
        model: the model.
        graph: its graph.
        inputs: what enters the first block (see `enter`).
        prompt: index of the prompt in its batch.
        gate: what passes; all by default.
        reference: what each sender is replaced by, `[sender, rows, embed]`; needed
            where the gate stops something.
        taps: what is added at receivers and senders: the gradient in it is the
            gradient there.
        other: receivers that read the stream of another run instead.

    Returns:
        The stream that the logits read, and what every sender wrote.

    Raises:
        ShapeError: a gate over edges or nodes, and nothing to replace them by.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> graph = Graph.of(model)
        >>> clean, corrupt = (
        ...     enter(model, graph, jnp.array(ids)) for ids in ([5, 6, 7], [5, 9, 7])
        ... )
        >>> reference = connected(model, graph, corrupt).senders
        >>> gate = Gate(edges=jnp.zeros(graph.edges.shape))  # the empty circuit
        >>> ran = connected(model, graph, clean, gate=gate, reference=reference)
        >>> ran.final.shape  # seq, embed
        (3, 32)
    """
    gate, reference = checked(gate, reference, inputs.senders.dtype)
    taps = Taps() if taps is None else taps
    if other is not None:
        model = with_blocks(model, "Another run")
    if isinstance(model, StreamModel):
        return run_function(
            model, graph, inputs, gate=gate, reference=reference, taps=taps
        )
    size, first = len(graph.inputs), jnp.arange(graph.n_layers) * graph.ports.writers
    start = _begin(graph, inputs, gate, reference, taps)
    arrays, static = eqx.partition(model.blocks, eqx.is_array)
    position = jnp.arange(inputs.rest.shape[0], dtype=jnp.int32)
    rows = Sequence(position, prompt, prompt, inputs.length)

    def body(carry: Any, layered: Any) -> tuple[Any, Any]:
        x, sent = carry
        arrays, first, own = layered
        stream = Stream(x, first, graph, sent, **own)
        stream = eqx.combine(arrays, static)(stream, rows)
        written = jnp.concatenate(stream.written)
        return (stream.x, stream.sent), (written, jnp.stack(stream.before))

    own = _layers(graph, gate, reference, taps, other)
    (x, sent), (written, before) = jax.lax.scan(
        body, (start.x, start.sent), (arrays, first + size, own)
    )
    if other is not None:
        x = jnp.where(other.receivers[-1], other.run.final, x)
    if sent is not None and gate.edges is not None:
        x = x - missing(gate.edges[:, -1:], sent)[0]
    if taps.receivers is not None:
        x = x + taps.receivers[-1]
    senders = jnp.concatenate(
        [start.written[0], written.reshape(-1, *written.shape[2:])]
    )
    return Ran(x, senders, before)


def checked(
    gate: Gate | None, reference: Float[Array, "sender rows embed"] | None, dtype: Any
) -> tuple[Gate, Float[Array, "sender rows embed"] | None]:
    """Returns gate and reference in the precision of the stream.

    Raises:
        ShapeError: a gate over edges or nodes, and nothing to replace them by.
    """
    gate = Gate() if gate is None else gate
    if reference is None and (gate.edges is not None or gate.nodes is not None):
        raise ShapeError(
            "A gate over edges or nodes needs what senders are replaced by where it "
            "stops them: give a reference, [sender, rows, embed]."
        )
    edges, nodes, reference = jax.tree.map(
        lambda a: a.astype(dtype), (gate.edges, gate.nodes, reference)
    )
    return Gate(edges, nodes, gate.constant), reference


def _begin(
    graph: Graph, inputs: Inputs, gate: Gate, reference: Any, taps: Taps
) -> Stream:
    """Returns the stream before the first block, after the input senders."""
    rest, size = inputs.rest, len(graph.inputs)
    start = Stream(rest, jnp.int32(0), graph)
    if gate.edges is not None:
        sent = jnp.zeros((len(graph.senders), *rest.shape), rest.dtype)
        start = replace(start, sent=sent)
    nodes, constant, known, shift = jax.tree.map(
        lambda a: a[:size], (gate.nodes, gate.constant, reference, taps.senders)
    )
    start = replace(
        start, nodes=nodes, constant=constant, reference=known, taps=Taps(None, shift)
    )
    return start.send(inputs.senders, 0)


def score(model: Model, metric: Any, final: Any, prompt: Array) -> Float[Array, ""]:
    """Evaluates a metric on the stream that the logits read, `Ran.final`."""
    if isinstance(model, StreamModel):
        output, example = final
        return score_output(metric, output, example, prompt)
    read = final[metric.reads(prompt, final.shape[0])]
    return measure(model, metric, read[None], jnp.asarray(prompt)[None])[0]


def _layers(
    graph: Graph, gate: Gate, reference: Any, taps: Taps, other: OtherRun | None
) -> dict[str, Any]:
    """Returns the arrays of each layer's stream, layers first."""

    def split(array: Array | None, each: int, skip: int, axis: int = 0) -> Array | None:
        if array is None:
            return None
        stop = skip + graph.n_layers * each
        part = jax.lax.slice_in_dim(array, skip, stop, axis=axis)
        shape = (*part.shape[:axis], graph.n_layers, each, *part.shape[axis + 1 :])
        return jnp.moveaxis(part.reshape(shape), axis, 0)

    def read(array: Array | None, axis: int = 0) -> Array | None:
        return split(array, graph.ports.readers, 0, axis)

    def written(array: Array | None) -> Array | None:
        return split(array, graph.ports.writers, len(graph.inputs))

    return {
        "edges": read(gate.edges, axis=1),
        "nodes": written(gate.nodes),
        "constant": written(gate.constant),
        "reference": written(reference),
        "taps": Taps(read(taps.receivers), written(taps.senders)),
        "elsewhere": None if other is None else read(other.receivers),
        "other": None if other is None else other.run.before,
    }
