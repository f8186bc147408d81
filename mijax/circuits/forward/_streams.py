"""A model of several residual streams, as a function of them."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from mijax._errors import ShapeError, SiteError, quoted
from mijax.circuits.forward._ports import LOGITS, Ports, Recorder
from mijax.core import AbstractModel, AbstractStream, PlainStream

Open = Callable[..., AbstractStream]


class StreamModel(eqx.Module):
    """A model that opens its residual streams by name, such as an encoder-decoder.

    The function reads and writes streams as a block does. A stream may be read by
    anyone, also by the blocks of another tower. A name that occurs again is that of the
    next layer, and names carry the prefix of their tower: `"encoder.q"`, `"cross.k"`.
    Layers are Python loops, and the last read is that of `"logits"`.

    Args:
        fn: a function `(inputs, open)` of one example and of `open(stream, **terms)`,
            which opens a stream as the sum of terms. Each term is a sender of the graph
            and has its own name.
        example: one input: any tree of arrays, or of `jax.ShapeDtypeStruct`.

    Raises:
        ShapeError: an example without arrays.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from mijax import circuits
        >>> def fn(inputs, open):
        ...     memory = open("encoder", source=inputs["source"])
        ...     memory = memory.add("encoder.mlp_out", memory.read("encoder.mlp_in"))
        ...     stream = open("decoder", target=inputs["target"])
        ...     mixed = stream.read("cross.q") @ memory.read("cross.k").T
        ...     stream = stream.add("cross.attn_out", mixed @ memory.read("cross.v"))
        ...     return stream.read("logits")
        >>> example = {"source": jnp.ones((5, 8)), "target": jnp.ones((3, 8))}
        >>> model = circuits.StreamModel(fn, example)
        >>> model(example).shape
        (3, 8)
        >>> circuits.Circuit.full(circuits.Graph.of(model)).names()[:3]
        ('encoder.m0 <- source', 'cross.a0<k> <- source', 'cross.a0<v> <- source')
    """

    fn: Callable[[Any, Open], Any]
    structure: Any = eqx.field(static=True)
    specs: tuple[jax.ShapeDtypeStruct, ...] = eqx.field(static=True)

    def __init__(self, fn: Callable[[Any, Open], Any], example: Any):
        leaves, self.structure = jax.tree.flatten(example)
        if not leaves or not all(hasattr(leaf, "dtype") for leaf in leaves):
            raise ShapeError(
                f"A StreamModel takes an example of arrays, got {quoted(example)}."
            )
        self.fn = fn
        self.specs = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in leaves)

    def __call__(self, inputs: Any) -> Any:
        """Returns the output for one example."""
        return self.fn(inputs, lambda name, **terms: PlainStream(total(terms)))

    @property
    def example(self) -> Any:
        """Shapes of one input."""
        return jax.tree.unflatten(self.structure, self.specs)


Model = AbstractModel | StreamModel


def total(terms: dict[str, Array]) -> Array:
    """Returns the sum of the terms with which a stream is opened."""
    return functools.reduce(jnp.add, terms.values())


def record_streams(
    model: StreamModel,
) -> tuple[tuple[str, ...], int, Ports, tuple[str, ...]]:
    """Traces a function of streams, without running it.

    Returns:
        The fields of its graph: names of the terms, one layer, the ports in order, and
        the stream that each term enters.

    Raises:
        SiteError: the last read is not that of the logits, or a name has two uses.
    """
    log, inputs = [], []

    def start(name: str, **terms: Array) -> Recorder:
        inputs.extend((term, name) for term in terms)
        return Recorder(total(terms), log, name)

    def run(fn: Callable[[Any, Open], Any], inputs: Any) -> None:
        fn(inputs, start)

    eqx.filter_eval_shape(run, model.fn, model.example)
    names = [port.name for port in log]
    ends = [name for name, port in zip(names, log, strict=True) if not port.writes]
    if not inputs or ends.count(LOGITS) != 1 or ends[-1] != LOGITS:
        raise SiteError(
            "A StreamModel opens a stream, and its last read is that of 'logits'; it "
            f"reads, in this order: {', '.join(ends) or 'nothing'}."
        )
    uses: dict[str, Any] = {}
    for port in log:
        use = port.writes, port.heads, port.stream
        if uses.setdefault(port.name, use) != use:
            raise SiteError(
                f"The port {port.name!r} reads and writes, or is used with several "
                "streams or numbers of heads: give each use its own name."
            )
    terms = [term for term, _ in inputs]
    if len(set(terms)) < len(terms):
        raise SiteError(f"Several terms have one name: {', '.join(terms)}.")
    return tuple(terms), 1, Ports(tuple(log)), tuple(stream for _, stream in inputs)


def with_blocks(model: Model, what: str) -> AbstractModel:
    """Returns a model of stacked blocks, or refuses a function of streams.

    Raises:
        ShapeError: a `StreamModel`.
    """
    if isinstance(model, StreamModel):
        raise ShapeError(
            f"{what} needs a model of stacked blocks, got a StreamModel: attribution, "
            "learned masks, exact patching and run_circuits take it."
        )
    return model
