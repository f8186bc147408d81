"""Ports: the names under which a block reads and writes its stream, in order."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax._errors import SiteError
from mijax.core import AbstractModel, AbstractStream
from mijax.core.internal import Sequence, unedited

LETTERS = ("q", "k", "v")
LOGITS = "logits"
PARTS = {"attn": "a", "mlp": "m"}


class Port(NamedTuple):
    """A name under which a block reads or writes its stream.

    Attributes:
        name: the name that the block gives it.
        writes: whether it writes.
        heads: number of heads that read or write under it, each a node; else `None`.
        stream: the stream that it reads or writes, where a model has several.
        layer: number of ports of this name before it, where layers are not stacked.
    """

    name: str
    writes: bool
    heads: int | None = None
    stream: str = ""
    layer: int = 0

    @property
    def size(self) -> int:
        """Number of readers or writers."""
        return 1 if self.heads is None else self.heads

    @property
    def part(self) -> str:
        """The part of the block: `a` for attention, `m` for an MLP, else its name."""
        tower, dot, own = self.name.rpartition(".")
        part = "attn" if own in LETTERS else own.partition("_")[0]
        return f"{tower}{dot}{PARTS.get(part, part)}"

    def names(self, layer: int) -> list[str]:
        """Names of the readers or writers in one layer."""
        if self.name == LOGITS:
            return [LOGITS]
        own = self.name.rpartition(".")[2]
        letter = f"<{own}>" if own in LETTERS else ""
        node = f"{self.part}{layer + self.layer}"
        if self.heads is None:
            return [f"{node}{letter}"]
        return [f"{node}.h{head}{letter}" for head in range(self.heads)]


class Stage(NamedTuple):
    """Ports that a block reads together, such as queries, keys and values."""

    names: tuple[str, ...]
    heads: int | None

    @property
    def size(self) -> int:
        """Number of readers."""
        return len(self.names) * (1 if self.heads is None else self.heads)


@dataclasses.dataclass(frozen=True)
class Ports:
    """Ports of one block, or of all blocks that are not stacked, in order."""

    order: tuple[Port, ...]

    @property
    def reads(self) -> tuple[Port, ...]:
        """Ports of one block that read."""
        return tuple(port for port in self.order if not port.writes)

    @property
    def writes(self) -> tuple[Port, ...]:
        """Ports of one block that write."""
        return tuple(port for port in self.order if port.writes)

    @property
    def writers(self) -> int:
        """Senders of one block."""
        return sum(port.size for port in self.writes)

    @property
    def readers(self) -> int:
        """Receivers of one block."""
        return sum(port.size for port in self.reads)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Ports of one block that read together."""
        found: list[Stage] = []
        # The writes in between keep reads apart.
        alike = lambda port: (port.writes, port.heads, port.part)  # noqa: E731
        for (writes, heads, _), group in itertools.groupby(self.order, alike):
            names = tuple(port.name for port in group)
            if not writes:
                each = [names] if heads is not None else [(name,) for name in names]
                found += [Stage(names, heads) for names in each]
        return tuple(found)

    def port(self, name: str, layer: int = 0) -> Port:
        """Returns a port by its name, of several the one in a layer."""
        return next(p for p in self.order if (p.name, p.layer) == (name, layer))

    def offset(self, name: str, layer: int = 0) -> int:
        """Returns a port's first place among the receivers or senders of a block."""
        port = self.port(name, layer)
        alike = self.writes if port.writes else self.reads
        return sum(port.size for port in alike[: alike.index(port)])

    def earlier(self, name: str) -> int:
        """Returns the number of senders of a block that write before a port."""
        at = self.order.index(self.port(name))
        return sum(port.size for port in self.order[:at] if port.writes)

    def point(self, name: str) -> int:
        """Return the number of ports that write before a port."""
        at = self.order.index(self.port(name))
        return sum(port.writes for port in self.order[:at])

    def writer(self, name: str) -> Port | None:
        """Returns the port that writes for the part of the block that reads here."""
        part = self.port(name).part
        return next((port for port in self.writes if port.part == part), None)


class Recorder(AbstractStream):
    """Notes the order in which a block reads and writes, while it is traced."""

    x: Float[Array, "rows embed"]
    log: list[Port]
    stream: str = ""

    def note(self, name: str, writes: bool, heads: int | None) -> None:
        """Notes a port; ports of one name are numbered."""
        layer = sum((port.name, port.writes) == (name, writes) for port in self.log)
        self.log.append(Port(name, writes, heads, self.stream, layer))

    def read(
        self,
        *names: str,
        heads: int | None = None,
        norm: Callable[[Array], Array] | None = None,
    ) -> Any:
        """Notes who reads."""
        for name in names:
            self.note(name, False, heads)
        x = self.x if heads is None else self.x[:, None].repeat(heads, axis=1)
        x = x if norm is None else norm(x)
        return (x,) * len(names) if len(names) > 1 else x

    def write(
        self,
        name: str,
        z: Float[Array, "rows ..."],
        weight: Float[Array, "... embed"],
        bias: Float[Array, " embed"] | None = None,
    ) -> "Recorder":
        """Notes who writes."""
        self.note(name, True, z.shape[1] if z.ndim == 3 else None)
        return self

    def add(self, name: str, value: Float[Array, "rows embed"]) -> "Recorder":
        """Notes who writes."""
        self.note(name, True, None)
        return self


def record(model: AbstractModel) -> tuple[tuple[str, ...], Ports]:
    """Traces the first block, without running it.

    Returns:
        The terms of the embedding, and the ports of the block.

    Raises:
        SiteError: a block that does not read and write, or uses a name twice.
    """
    log: list[Port] = []
    inputs: list[str] = []
    arrays, static = eqx.partition(unedited(model), eqx.is_array)

    def one(arrays: Any, tokens: Int[Array, " seq"]) -> Array:
        model: AbstractModel = eqx.combine(arrays, static)
        position = jnp.arange(1, dtype=jnp.int32)
        terms = model.embeddings(tokens, position)
        inputs.extend(terms)
        x = jnp.stack(list(terms.values())).sum(0)
        arrays, rest = eqx.partition(model.blocks, eqx.is_array)
        block = eqx.combine(jax.tree.map(lambda a: a[0], arrays), rest)
        block(Recorder(x, log), Sequence(position))
        return x

    jax.eval_shape(one, arrays, jax.ShapeDtypeStruct((1,), jnp.int32))
    check_ports(type(unedited(model).blocks).__name__, log)
    return tuple(inputs), Ports(tuple(log))


def check_ports(block: str, log: list[Port]) -> None:
    """Refuses a block whose reads and writes make no graph.

    Raises:
        SiteError: it does not read, does not write last, or uses a name twice.
    """
    names = [port.name for port in log]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SiteError(
            f"{block} reads or writes twice as {twice[0]!r}: give each reader and "
            "writer of a block its own name."
        )
    if not log or not log[-1].writes or log[0].writes:
        order = ", ".join(names) or "nothing"
        raise SiteError(
            f"{block} must read the stream before it writes, and write last; it reads "
            f"and writes, in this order: {order}. See mijax.nn.Block."
        )
