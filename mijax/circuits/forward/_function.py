"""The forward of a function of several streams: every reader sees its own."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._stream import Gate, Inputs, Ran, Stream, Tape, Taps
from mijax.circuits.forward._streams import StreamModel, total
from mijax.core import PlainStream


def enter_function(model: StreamModel, graph: Graph, example: Any) -> Inputs:
    """Returns the terms of all streams; see `enter`."""
    found: dict[str, Array] = {}

    def start(name: str, **terms: Array) -> PlainStream:
        found.update(terms)
        return PlainStream(total(terms))

    model.fn(example, start)
    return Inputs(padded([found[name][None] for name in graph.inputs]), example)


def run_function(
    model: StreamModel,
    graph: Graph,
    inputs: Inputs,
    *,
    gate: Gate,
    reference: Float[Array, "sender rows embed"] | None,
    taps: Taps,
) -> Ran:
    """Runs a function with a stream for each receiver; see `connected`."""
    tape = Tape()

    def start(name: str, **terms: Array) -> Stream:
        x = jnp.zeros_like(next(iter(terms.values())))
        sent = None
        if gate.edges is not None:
            sent = jnp.zeros((len(graph.senders), *x.shape), x.dtype)
        own = gate.edges, gate.nodes, gate.constant, reference, taps
        stream = Stream(x, jnp.int32(0), graph, sent, *own, tape=tape)
        for term in terms:
            at = graph.inputs.index(term)
            stream = stream.send(stream.fit(inputs.senders[at : at + 1]), at)
        return stream

    output = model.fn(inputs.rest, start)
    written = padded([tape.written[at] for at in sorted(tape.written)])
    none = jnp.zeros((0, 0, *written.shape[1:]), written.dtype)
    return Ran((output, inputs.rest), written, none)


def padded(
    parts: list[Float[Array, "_ _ _"]],
) -> Float[Array, "sender rows embed"]:
    """Stacks what senders of streams of different shapes write, zeros at the end."""
    sizes = [max(part.shape[axis] for part in parts) for axis in (1, 2)]

    def pad(part: Array) -> Array:
        missing = [size - own for size, own in zip(sizes, part.shape[1:], strict=True)]
        return jnp.pad(part, [(0, 0), *((0, rest) for rest in missing)])

    return jnp.concatenate([pad(part) for part in parts])
