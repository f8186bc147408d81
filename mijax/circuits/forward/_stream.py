"""The stream inside a block of a circuit run: every reader sees its own."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mijax.circuits.forward._graph import Graph
from mijax.core import AbstractStream


class Inputs(eqx.Module):
    """Inputs of the first block.

    Attributes:
        senders: what each input sender writes, `[input, rows, embed]`.
        rest: what belongs to no sender: position embeddings, unless they are split
            off as a sender of their own; of a `StreamModel` the example itself.
        length: number of tokens before padding, where a model is not causal.
    """

    senders: Float[Array, "input rows embed"]
    rest: Any
    length: Int[Array, ""] | None = None


class Gate(eqx.Module):
    """Fraction of each node's difference from its reference that passes.

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
    """Shifts at readers and writers, where gradients are taken.

    Attributes:
        receivers: added to what each receiver reads, `[receiver, rows, embed]`.
        senders: added to what each sender writes, `[sender, rows, embed]`.
    """

    receivers: Float[Array, "*layer receiver rows embed"] | None = None
    senders: Float[Array, "*layer sender rows embed"] | None = None


class Ran(eqx.Module):
    """Streams and node outputs of a run.

    Attributes:
        final: the stream that the logits read, `[rows, embed]`; of a `StreamModel` its
            output, and the example.
        senders: what each sender wrote, `[sender, rows, embed]`.
        before: the stream before each write of each block; the first is the stream
            that enters the block; empty of a `StreamModel`.
    """

    final: Any
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


class Tape:
    """Ports that a function has used so far, and what the senders wrote."""

    def __init__(self) -> None:
        self.used: list[str] = []
        self.written: dict[int, Float[Array, "k rows embed"]] = {}

    def layer(self, name: str) -> int:
        """Returns the layer of the next port of a name."""
        self.used.append(name)
        return self.used.count(name) - 1


class Stream(AbstractStream):
    """The stream inside one block; arrays hold this block's slice, `None` is unused.

    In a function of several streams, arrays are as large as the largest stream, and a
    tape finds the layer of a port.
    """

    x: Float[Array, "rows embed"]
    first: Int[Array, ""]
    graph: Graph = eqx.field(static=True)
    sent: Float[Array, "sender rows embed"] | None = None
    edges: Float[Array, "sender reader"] | None = None
    nodes: Float[Array, "writer _"] | None = None
    constant: Bool[Array, " writer"] | None = None
    reference: Float[Array, "writer _ _"] | None = None
    taps: Taps = Taps()
    elsewhere: Bool[Array, " reader"] | None = None
    other: Float[Array, "write rows embed"] | None = None
    tape: Tape | None = eqx.field(static=True, default=None)
    written: tuple[Array, ...] = ()
    before: tuple[Array, ...] = ()

    def read(
        self,
        *names: str,
        heads: int | None = None,
        norm: Callable[[Array], Array] | None = None,
    ) -> Any:
        """Return the input of each receiver."""
        start, each = self.offset(*names), 1 if heads is None else heads
        x = self.seen(start, start + len(names) * each)
        if heads is not None:
            x = jnp.moveaxis(x.reshape(len(names), heads, *x.shape[1:]), 1, 2)
        found = tuple(x if norm is None else norm(x) for x in x)
        return found if len(names) > 1 else found[0]

    def offset(self, *names: str) -> int:
        """Returns the place of the first of these ports in the arrays."""
        if self.tape is None:
            return self.graph.ports.offset(names[0])
        layers = [self.tape.layer(name) for name in names]
        return self.graph.place(names[0], 0, port_layer=layers[0])

    def fit(self, values: Float[Array, "port _ _"]) -> Float[Array, "port _ _"]:
        """Cuts values to the shape of this stream."""
        return values[:, : self.x.shape[0], : self.x.shape[1]]

    def seen(self, start: int, stop: int) -> Float[Array, "reader rows embed"]:
        """Return the streams seen by receivers `start` to `stop` of the block."""
        x = jnp.broadcast_to(self.x, (stop - start, *self.x.shape))
        if self.elsewhere is not None and self.other is not None:
            elsewhere = self.elsewhere[start:stop, None, None]
            x = jnp.where(elsewhere, self.other[len(self.before)], x)
        if self.taps.receivers is not None:
            x = x + self.fit(self.taps.receivers[start:stop])
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
        return point.send(now, self.offset(name))

    def add(self, name: str, value: Float[Array, "rows embed"]) -> "Stream":
        """Adds a value."""
        point = replace(self, before=(*self.before, self.x))
        return point.send(value[None], self.offset(name))

    def send(self, now: Float[Array, "k rows embed"], at: int) -> "Stream":
        """Adds what the block's senders from `at` on write."""
        here = slice(at, at + now.shape[0])
        if self.constant is not None:
            stopped = jax.lax.stop_gradient(now)
            now = jnp.where(self.constant[here, None, None], stopped, now)
        sent = self.sent
        if self.reference is not None:
            passing = now - self.fit(self.reference[here])
            if self.nodes is not None:
                stopped = (1 - self.fit(self.nodes[here, None])) * passing
                passing, now = passing - stopped, now - stopped
            if sent is not None:
                zero = jnp.zeros_like(self.first)
                start = (self.first + at, zero, zero)
                sent = jax.lax.dynamic_update_slice(sent, passing, start)
        if self.taps.senders is not None:
            now = now + self.fit(self.taps.senders[here])
        if self.tape is not None:
            self.tape.written[at] = now
        x, written = self.x + now.sum(0), (*self.written, now)
        return replace(self, x=x, sent=sent, written=written)


def missing(
    edges: Float[Array, "sender reader"], sent: Float[Array, "sender rows embed"]
) -> Float[Array, "reader rows embed"]:
    """Return the part of the stream that each receiver misses."""
    return jnp.einsum("sr,snd->rnd", 1 - edges, sent)
