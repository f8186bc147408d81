"""The graph of a transformer: who writes to the residual stream and who reads it."""

import dataclasses
import difflib
import functools
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mijax._errors import SiteError
from mijax.core import AbstractModel, AbstractStream, Place
from mijax.core.internal import (
    Sequence,
    check_attention,
    check_model,
    empty,
    site_shapes,
)

LETTERS = ("q", "k", "v")
EDGE = re.compile(r"\s*(\S+)\s*<-\s*(\S+)\s*")
NUMBER = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True)
class Graph:
    """Senders and receivers of a model, in the order of computation.

    Senders write to the residual stream: the input, every head, every MLP. Receivers
    read it: query, key and value of every query head, every MLP, the logits. An edge
    joins a sender to every receiver that comes after it. Names are the field's:
    `input`, `a9.h6`, `m11`; `a9.h6<q>`, `m11`, `logits`; an edge is
    `a9.h6<q> <- a7.h3`. Within a block the order is heads, then the MLP; of receivers,
    the queries of all heads, the keys, the values, then the MLP.

    Attributes:
        inputs: names of the senders that enter the first block.
        n_layers: number of blocks.
        n_heads: query heads of a block.
        mlp: whether blocks have an MLP.
        parallel: whether it reads the stream before the heads of its block write.

    Examples:
        >>> gpt2 = Graph(("input",), n_layers=12, n_heads=12, mlp=True, parallel=False)
        >>> len(gpt2.senders), gpt2.n_edges
        (157, 32491)
    """

    inputs: tuple[str, ...]
    n_layers: int
    n_heads: int
    mlp: bool
    parallel: bool

    @classmethod
    def of(cls, model: AbstractModel, *, split_input: bool = False) -> "Graph":
        """Reads the graph off a model.

        Args:
            model: any model whose blocks define `connect`.
            split_input: make the terms of the embedding senders of their own, `token`
                and `position`; else `input` is the token's, and the position's term
                is always there.

        Returns:
            The graph.

        Raises:
            SiteError: the model's blocks do not say how they read and write.

        Examples:
            >>> import mijax
            >>> Graph.of(mijax.testing.tiny_gpt2(jax.random.key(0))).n_edges
            262
        """
        check_model(model)
        shapes = site_shapes(model, 1)
        check_attention(shapes, "A graph of heads")
        heads = shapes.blocks.z.shape[2]
        recorder = record(model, heads)
        log, names = recorder.log, recorder.inputs
        return cls(
            inputs=tuple(names) if split_input else ("input",),
            n_layers=model.n_layers,
            n_heads=heads,
            mlp="write mlp" in log,
            parallel="write mlp" in log
            and log.index("read mlp") < log.index("write heads"),
        )

    @functools.cached_property
    def senders(self) -> tuple[str, ...]:
        """Names of the senders."""
        names = list(self.inputs)
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{head}" for head in range(self.n_heads)]
            names += [f"m{layer}"] * self.mlp
        return tuple(names)

    @functools.cached_property
    def receivers(self) -> tuple[str, ...]:
        """Names of the receivers."""
        heads = range(self.n_heads)
        names = []
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{head}<{x}>" for x in LETTERS for head in heads]
            names += [f"m{layer}"] * self.mlp
        return (*names, "logits")

    @functools.cached_property
    def edges(self) -> Bool[np.ndarray, "sender receiver"]:
        """Which pairs are edges."""
        found = np.zeros((len(self.senders), len(self.receivers)), bool)
        found[:, -1] = True
        for layer in range(self.n_layers):
            before = len(self.inputs) + layer * self.writers
            first = layer * self.readers
            found[:before, first : first + self.readers] = True
            if self.mlp and not self.parallel:
                found[before : before + self.n_heads, first + self.readers - 1] = True
        return found

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return int(self.edges.sum())

    @property
    def writers(self) -> int:
        """Senders of one block."""
        return self.n_heads + self.mlp

    @property
    def readers(self) -> int:
        """Receivers of one block."""
        return 3 * self.n_heads + self.mlp

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


class Recorder(AbstractStream):
    """Notes the order in which a block reads and writes, while it is traced."""

    x: Float[Array, "rows embed"]
    heads: int
    log: list[str]
    inputs: list[str]

    def read_heads(self) -> tuple[Float[Array, "rows heads embed"], ...]:
        """Returns the stream for every head."""
        self.log.append("read heads")
        return (self.x[:, None].repeat(self.heads, axis=1),) * 3

    def read_mlp(self) -> Float[Array, "rows embed"]:
        """Returns the stream."""
        self.log.append("read mlp")
        return self.x

    def write_heads(
        self,
        heads: Float[Array, "rows heads embed"],
        bias: Float[Array, " embed"] | None,
    ) -> "Recorder":
        """Notes that the heads wrote."""
        self.log.append("write heads")
        return self

    def write_mlp(self, out: Float[Array, "rows embed"]) -> "Recorder":
        """Notes that the MLP wrote."""
        self.log.append("write mlp")
        return self


def record(model: AbstractModel, heads: int) -> Recorder:
    """Traces the first block, without running it."""
    log: list[str] = []
    inputs: list[str] = []
    arrays, static = eqx.partition(model, eqx.is_array)

    def one(arrays: Any, tokens: Int[Array, " seq"]) -> Array:
        model: AbstractModel = eqx.combine(arrays, static)
        position = jnp.arange(1, dtype=jnp.int32)
        terms = model.embeddings(tokens, position)
        inputs.extend(terms)
        x = jnp.stack(list(terms.values())).sum(0)
        arrays, rest = eqx.partition(model.blocks, eqx.is_array)
        block = eqx.combine(jax.tree.map(lambda a: a[0], arrays), rest)
        place = Place(Sequence(position), jnp.int32(0))
        block.connect(Recorder(x, heads, log, inputs), empty().blocks, place)
        return x

    jax.eval_shape(one, arrays, jax.ShapeDtypeStruct((1,), jnp.int32))
    return Recorder(jnp.zeros((1, 1)), heads, log, inputs)
