"""The one forward of every circuit method: each receiver sees a stream of its own.

What receiver `r` reads is

    x_r = x + tap_r - sum_s (1 - mask[s, r]) (now_s - reference_s)

where `x` is the residual stream, `now_s` what sender `s` writes in this run and
`reference_s` what it is replaced by. With a full mask and no taps it is the model.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mijax._errors import ShapeError
from mijax.circuits.forward._graph import Graph
from mijax.core import AbstractMetric, AbstractModel, AbstractStream
from mijax.core.internal import Sequence, measure


class Inputs(eqx.Module):
    """What enters the first block.

    Attributes:
        senders: what each input sender writes, `[input, rows, embed]`.
        rest: what belongs to no sender: position embeddings, unless they are split
            off as a sender of their own.
    """

    senders: Float[Array, "input rows embed"]
    rest: Float[Array, "rows embed"]


def enter(model: AbstractModel, graph: Graph, tokens: Int[Array, " rows"]) -> Inputs:
    """Embeds a prompt.

    Args:
        model: the model.
        graph: its graph.
        tokens: ids of one prompt, `[seq]`.

    Returns:
        What enters the first block, by sender.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> inputs = enter(model, Graph.of(model), jnp.array([5, 6, 7]))
        >>> inputs.senders.shape  # input, seq, embed
        (1, 3, 32)
    """
    position = jnp.arange(tokens.shape[0], dtype=jnp.int32)
    terms = jnp.stack(list(model.embeddings(tokens, position).values()))
    size = len(graph.inputs)
    return Inputs(terms[:size], terms[size:].sum(0))


class Gate(eqx.Module):
    """How much of each sender's difference from its reference passes.

    Attributes:
        edges: share that each receiver sees of each sender, `[sender, receiver]`, 0 to
            1 or a mask; `None` is all of it.
        nodes: share of each sender that is written, `[sender, 1]`, or of each of its
            neurons, `[sender, embed]`; `None` is all of it.
        constant: senders through which no gradient flows, `[sender]`.
    """

    edges: (
        Float[Array, "*circuit sender receiver"]
        | Bool[Array, "*circuit sender receiver"]
        | None
    ) = None
    nodes: (
        Float[Array, "*circuit sender embed_or_1"]
        | Bool[Array, "*circuit sender embed_or_1"]
        | None
    ) = None
    constant: Bool[Array, " sender"] | None = None


class Taps(eqx.Module):
    """What is added, so that a gradient can be taken there.

    Attributes:
        receivers: added to what each receiver reads, `[receiver, rows, embed]`.
        senders: added to what each sender writes, `[sender, rows, embed]`.
    """

    receivers: Float[Array, "*layer receiver rows embed"] | None = None
    senders: Float[Array, "*layer sender rows embed"] | None = None


class Ran(eqx.Module):
    """What a run gives.

    Attributes:
        final: the stream that the logits read, `[rows, embed]`.
        senders: what each sender wrote, `[sender, rows, embed]`.
        before: the stream before each write of each block; the first is the stream
            that enters the block.
    """

    final: Float[Array, "rows embed"]
    senders: Float[Array, "sender rows embed"]
    before: Float[Array, "layer write rows embed"]


class OtherRun(eqx.Module):
    """Receivers that read the stream of another run.

    Attributes:
        receivers: which of them, `[receiver]`.
        run: the other run, of the same prompt.
    """

    receivers: Bool[Array, " receiver"]
    run: Ran


class Stream(AbstractStream):
    """The stream inside one block; arrays hold this block's slice, `None` is unused."""

    x: Float[Array, "rows embed"]
    first: Int[Array, ""]
    graph: Graph = eqx.field(static=True)
    sent: Float[Array, "sender rows embed"] | None = None
    edges: Float[Array, "sender reader"] | None = None
    nodes: Float[Array, "writer embed_or_1"] | None = None
    constant: Bool[Array, " writer"] | None = None
    reference: Float[Array, "writer rows embed"] | None = None
    taps: Taps = Taps()
    elsewhere: Bool[Array, " reader"] | None = None
    other: Float[Array, "write rows embed"] | None = None
    written: tuple[Array, ...] = ()
    before: tuple[Array, ...] = ()

    def read(
        self,
        *names: str,
        heads: int | None = None,
        norm: Callable[[Array], Array] | None = None,
    ) -> Any:
        """Return the input of each receiver."""
        start, each = self.graph.ports.offset(names[0]), 1 if heads is None else heads
        x = self.seen(start, start + len(names) * each)
        if heads is not None:
            x = jnp.moveaxis(x.reshape(len(names), heads, *x.shape[1:]), 1, 2)
        found = tuple(x if norm is None else norm(x) for x in x)
        return found if len(names) > 1 else found[0]

    def seen(self, start: int, stop: int) -> Float[Array, "reader rows embed"]:
        """Returns what the block's receivers from `start` to `stop` see."""
        x = jnp.broadcast_to(self.x, (stop - start, *self.x.shape))
        if self.elsewhere is not None and self.other is not None:
            elsewhere = self.elsewhere[start:stop, None, None]
            x = jnp.where(elsewhere, self.other[len(self.before)], x)
        if self.taps.receivers is not None:
            x = x + self.taps.receivers[start:stop]
        if self.sent is None or self.edges is None:
            return x
        return x - missing(self.edges[:, start:stop], self.sent)

    def write(
        self,
        name: str,
        z: Float[Array, "rows ..."],
        weight: Float[Array, "... embed"],
        bias: Float[Array, " embed"] | None = None,
    ) -> "Stream":
        """Adds what each head writes."""
        if z.ndim == 3:
            heads = jnp.einsum("nhd,hde->nhe", z, weight)
            now = jnp.moveaxis(heads, 0, 1)
        else:
            now = (z @ weight)[None]
        x = self.x if bias is None else self.x + bias
        point = replace(self, before=(*self.before, self.x), x=x)
        return point.send(now, self.graph.ports.offset(name))

    def add(self, name: str, value: Float[Array, "rows embed"]) -> "Stream":
        """Adds a value."""
        point = replace(self, before=(*self.before, self.x))
        return point.send(value[None], self.graph.ports.offset(name))

    def send(self, now: Float[Array, "k rows embed"], at: int) -> "Stream":
        """Adds what the block's senders from `at` on write."""
        here = slice(at, at + now.shape[0])
        if self.constant is not None:
            stopped = jax.lax.stop_gradient(now)
            now = jnp.where(self.constant[here, None, None], stopped, now)
        sent = self.sent
        if self.reference is not None:
            passing = now - self.reference[here]
            if self.nodes is not None:
                stopped = (1 - self.nodes[here, None]) * passing
                passing, now = passing - stopped, now - stopped
            if sent is not None:
                zero = jnp.zeros_like(self.first)
                start = (self.first + at, zero, zero)
                sent = jax.lax.dynamic_update_slice(sent, passing, start)
        if self.taps.senders is not None:
            now = now + self.taps.senders[here]
        x, written = self.x + now.sum(0), (*self.written, now)
        return replace(self, x=x, sent=sent, written=written)


def connected(
    model: AbstractModel,
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
    gate, reference = checked(gate, reference, inputs.rest.dtype)
    taps = Taps() if taps is None else taps
    elsewhere = None if other is None else other.receivers
    size, first = len(graph.inputs), jnp.arange(graph.n_layers) * graph.ports.writers
    start = _begin(graph, inputs, gate, reference, taps)
    arrays, static = eqx.partition(model.blocks, eqx.is_array)
    rows = Sequence(jnp.arange(inputs.rest.shape[0], dtype=jnp.int32), prompt, prompt)

    def body(carry: Any, layered: Any) -> tuple[Any, Any]:
        x, sent = carry
        arrays, first, own = layered
        stream = Stream(x, first, graph, sent, *own)
        stream = eqx.combine(arrays, static)(stream, rows)
        written = jnp.concatenate(stream.written)
        return (stream.x, stream.sent), (written, jnp.stack(stream.before))

    own = (
        _by_layer(gate.edges, graph.n_layers, graph.ports.readers, axis=1),
        *(
            _by_layer(array, graph.n_layers, graph.ports.writers, skip=size)
            for array in (gate.nodes, gate.constant, reference)
        ),
        Taps(
            _by_layer(taps.receivers, graph.n_layers, graph.ports.readers),
            _by_layer(taps.senders, graph.n_layers, graph.ports.writers, skip=size),
        ),
        _by_layer(elsewhere, graph.n_layers, graph.ports.readers),
        None if other is None else other.run.before,
    )
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


def score(
    model: AbstractModel, metric: AbstractMetric, final: Array, prompt: Array
) -> Float[Array, ""]:
    """Evaluates a metric on the stream that the logits read."""
    read = final[metric.reads(prompt, final.shape[0])]
    return measure(model, metric, read[None], jnp.asarray(prompt)[None])[0]


def _by_layer(
    array: Array | None, layers: int, size: int, *, skip: int = 0, axis: int = 0
) -> Array | None:
    """Splits an axis of senders or receivers by layer and puts the layers first."""
    if array is None:
        return None
    part = jax.lax.slice_in_dim(array, skip, skip + layers * size, axis=axis)
    shape = (*part.shape[:axis], layers, size, *part.shape[axis + 1 :])
    return jnp.moveaxis(part.reshape(shape), axis, 0)


def missing(
    edges: Float[Array, "sender reader"], sent: Float[Array, "sender rows embed"]
) -> Float[Array, "reader rows embed"]:
    """Returns what does not reach each receiver."""
    return jnp.einsum("sr,snd->rnd", 1 - edges, sent)
