"""The graph of a transformer: who writes to the residual stream and who reads it."""

import dataclasses
import difflib
import functools
import itertools
import re
from typing import Any

import numpy as np
from jaxtyping import Bool

from mijax._errors import SiteError
from mijax.circuits.forward._ports import LETTERS, LOGITS, Port, Ports, record
from mijax.circuits.forward._streams import Model, StreamModel, record_streams
from mijax.core.internal import check_model

EDGE = re.compile(r"\s*(\S+)\s*<-\s*(\S+)\s*")
NUMBER = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True)
class Graph:
    """Senders and receivers of a model, in the order of computation.

    Senders write to the residual stream: the input, every head, every MLP. Receivers
    read it: query, key and value of every query head, every MLP, the logits. An edge
    joins a sender to every receiver that comes after it. Names are the field's:
    `input`, `a9.h6`, `m11`; `a9.h6<q>`, `m11`, `logits`; an edge is
    `a9.h6<q> <- a7.h3`. Within a block the order is that in which the block reads and
    writes: queries of all heads, keys, values, then the MLP. Attention that writes as a
    whole, for instance through a norm, is one sender, `a9`.

    A model of several streams, such as an encoder and a decoder, has edges along each
    stream: whoever reads the memory of the encoder is joined to the senders of the
    encoder. It is one block here, in which ports carry their stream and layer.

    Attributes:
        inputs: names of the senders that enter the first block.
        n_layers: number of stacked blocks.
        ports: what one block reads and writes, in order.
        opened: stream that each input enters, where there are several.

    Examples:
        >>> gpt2 = Graph.decoder(12, heads=12)
        >>> len(gpt2.senders), gpt2.n_edges
        (157, 32491)
    """

    inputs: tuple[str, ...]
    n_layers: int
    ports: Ports
    opened: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: Model, *, split_input: bool = False) -> "Graph":
        """Reads the graph off a model.

        Args:
            model: any model whose blocks read and write a stream, or a `StreamModel`.
            split_input: make the terms of the embedding senders of their own, `token`
                and `position`; else `input` is the token's, and the position's term
                is always there.

        Returns:
            The graph.

        Raises:
            SiteError: the model's blocks do not read and write the stream, or use a
                name twice.

        Examples:
            >>> import jax, mijax
            >>> Graph.of(mijax.testing.tiny_gpt2(jax.random.key(0))).n_edges
            262
        """
        if isinstance(model, StreamModel):
            return cls(*record_streams(model))
        check_model(model)
        inputs, ports = record(model)
        return cls(inputs if split_input else ("input",), model.n_layers, ports)

    @classmethod
    def decoder(
        cls,
        n_layers: int,
        *,
        heads: int,
        mlp: bool = True,
        parallel: bool = False,
        inputs: tuple[str, ...] = ("input",),
    ) -> "Graph":
        """Returns the graph of a decoder without a model.

        Args:
            n_layers: number of blocks.
            heads: query heads of a block.
            mlp: whether blocks have an MLP.
            parallel: whether it reads the stream before the heads of its block write.
            inputs: names of the senders that enter the first block.

        Returns:
            The graph.

        Examples:
            >>> Graph.decoder(1, heads=2, mlp=False).senders
            ('input', 'a0.h0', 'a0.h1')
        """
        reads = [Port(letter, False, heads) for letter in LETTERS]
        write = Port("attn_out", True, heads)
        into, out = Port("mlp_in", False), Port("mlp_out", True)
        ports = [*reads, write]
        if mlp:
            ports = [*reads, *((into, write) if parallel else (write, into)), out]
        return cls(inputs, n_layers, Ports(tuple(ports)))

    @functools.cached_property
    def senders(self) -> tuple[str, ...]:
        """Names of the senders."""
        names = list(self.inputs)
        for layer in range(self.n_layers):
            names += [name for port in self.ports.writes for name in port.names(layer)]
        return tuple(names)

    @functools.cached_property
    def receivers(self) -> tuple[str, ...]:
        """Names of the receivers."""
        names = []
        for layer in range(self.n_layers):
            names += [name for port in self.ports.reads for name in port.names(layer)]
        return tuple(names) if LOGITS in names else (*names, LOGITS)

    @functools.cached_property
    def edges(self) -> Bool[np.ndarray, "sender receiver"]:
        """Which pairs are edges: along one stream, and one after the other."""
        order = self.ports.order
        senders = [(name, -1) for name in self.opened or ("",) * len(self.inputs)]
        receivers = []
        for layer, (at, port) in itertools.product(
            range(self.n_layers), enumerate(order)
        ):
            places = senders if port.writes else receivers
            places += [(port.stream, layer * len(order) + at)] * port.size
        if len(receivers) < len(self.receivers):
            receivers.append(("", self.n_layers * len(order)))
        (wrote, sent), (reads, seen) = (
            (np.array([place[0] for place in places]), np.array([p[1] for p in places]))
            for places in (senders, receivers)
        )
        return (wrote[:, None] == reads) & (sent[:, None] < seen)

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return int(self.edges.sum())

    def place(self, name: str, layer: int, *, port_layer: int = 0) -> int:
        """Returns the index of a port's first receiver or sender in a layer."""
        ports, offset = self.ports, self.ports.offset(name, port_layer)
        if ports.port(name, port_layer).writes:
            return len(self.inputs) + layer * ports.writers + offset
        return layer * ports.readers + offset

    def owner(self, receiver: str) -> str | None:
        """Returns the sender that a receiver is part of, `None` for the logits."""
        name = node(receiver)
        if name not in self.senders and "." in name:
            name = name.rpartition(".")[0]
        return name if name in self.senders else None

    def sender(self, name: str) -> int:
        """Returns the index of a sender.

        Raises:
            SiteError: there is no such sender.
        """
        return find(name, self.senders, "sender")

    def receiver(self, name: str) -> int:
        """Returns the index of a receiver.

        Raises:
            SiteError: there is no such receiver.
        """
        return find(name, self.receivers, "receiver")

    def edge(self, name: str | tuple[str, str]) -> tuple[int, int]:
        """Returns the indices of an edge's sender and receiver.

        Args:
            name: like `"a9.h9<k> <- a5.h5"`, or the pair `("a5.h5", "a9.h9<k>")`.

        Raises:
            SiteError: there is no such edge.
        """
        if isinstance(name, str):
            match = EDGE.fullmatch(name)
            if match is None:
                raise SiteError(
                    f"{name!r} is not an edge: write 'receiver <- sender', for "
                    "instance 'a9.h9<k> <- a5.h5'."
                )
            name = match[2], match[1]
        sender, receiver = self.sender(name[0]), self.receiver(name[1])
        if not self.edges[sender, receiver]:
            raise SiteError(f"{name[0]} does not come before {name[1]}: no edge.")
        return sender, receiver

    def name(self, sender: int, receiver: int) -> str:
        """Returns the name of an edge."""
        return f"{self.receivers[receiver]} <- {self.senders[sender]}"


def node(receiver: str) -> str:
    """Returns the node that a receiver belongs to: `a9.h6<q>` is part of `a9.h6`."""
    return receiver.split("<", maxsplit=1)[0]


def find(name: Any, names: tuple[str, ...], kind: str) -> int:
    """Returns the index of a name, or refuses it."""
    if isinstance(name, str) and name in names:
        return names.index(name)
    numbers = NUMBER.findall(str(name))
    close = [other for other in names if numbers and NUMBER.findall(other) == numbers]
    close = close or difflib.get_close_matches(str(name), names)
    # The last name of each form.
    forms = {NUMBER.sub("", other): repr(other) for other in names}
    raise SiteError(
        f"There is no {kind} {name!r}; names are of the form "
        f"{', '.join(forms.values())}.{hint(close)}"
    )


def hint(names: list[str]) -> str:
    """Asks whether one of the first few names was meant, if there are any."""
    meant = " or ".join(map(repr, names[:3]))
    return f" Did you mean {meant}?" if meant else ""
