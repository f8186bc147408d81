"""`model`: any JAX function as a model that the verbs take."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from mijax._errors import ShapeError, SiteError, quoted
from mijax.core._shown import cut
from mijax.core._site_table import SiteTable, table
from mijax.core._tokens import PromptsLike
from mijax.core._trace import trace


class FunctionModel(eqx.Module):
    """A function of one example that marks its sites, and the shapes of an example.

    Made by `mijax.model`. `run`, `capture`, `gradients` and `sweep` take it.

    Attributes:
        fn: the function; arrays in it are its parameters.
        ranks: rank and dtype of each array of an example.
        structure: structure of an example.
        shapes: shapes of the example that was given.
        readout: how outputs read the residual stream, if it is stated.
    """

    fn: Any
    ranks: tuple[tuple[int, Any], ...] = eqx.field(static=True)
    structure: Any = eqx.field(static=True)
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    readout: Any = None

    def __call__(self, inputs: Any) -> Any:
        """Return the output for one example, without edits."""
        return self.fn(inputs)

    def __repr__(self) -> str:
        spec = jax.tree.unflatten(self.structure, self._specs(self.shapes))
        named = getattr(self.fn, "__name__", type(self.fn).__name__)
        return cut(f"FunctionModel({named}, {eqx.tree_pformat(spec)})")

    @property
    def sites(self) -> SiteTable:
        """The sites of the example that was given."""
        return self.sites_of(
            jax.tree.unflatten(self.structure, self._specs(self.shapes))
        )

    def sites_of(self, example: Any) -> SiteTable:
        """List the sites for one example, an array or `ShapeDtypeStruct` per leaf."""
        return table(trace(self.fn, (example,), {})[0].marks)

    def _specs(self, shapes: tuple[tuple[int, ...], ...]) -> list[Any]:
        kinds = [kind for _, kind in self.ranks]
        pairs = zip(shapes, kinds, strict=True)
        return [jax.ShapeDtypeStruct(shape, kind) for shape, kind in pairs]


def model(
    fn: Callable[[Any], Any], example: Any, *, readout: Any = None
) -> FunctionModel:
    """Turn a JAX function into a model that the verbs take.

    The example states what one input looks like. The verbs take one input, or a batch:
    the same tree with one more axis in front of every array. Sizes may differ from
    those of the example; ranks and dtypes may not.

    Args:
        fn: a pure function of one example, or a callable Equinox module. It marks its
            sites with `mijax.site`; `mijax.interop` marks models of other libraries.
        example: one input: an array, or any tree of arrays (or of
            `jax.ShapeDtypeStruct`).
        readout: an `nn.Readout`, how outputs read the residual stream, for lenses and
            direct attribution.

    Returns:
        The model.

    Raises:
        ShapeError: an example without arrays, or one that the function refuses.
        SiteError: a function that holds traced values.

    Examples:
        >>> import equinox as eqx, jax, mijax
        >>> mlp = eqx.nn.MLP(4, 3, 8, depth=2, key=jax.random.key(0))
        >>> mlp = mijax.interop.mark(mlp, {"linear": eqx.nn.Linear})
        >>> model = mijax.model(mlp, jax.numpy.ones(4))
        >>> batch = jax.numpy.ones((5, 4))
        >>> mijax.run(model, batch, mijax.Zero().at("linear", layer=0, feature=2)).shape
        (5, 3)
    """
    if not callable(fn):
        raise ShapeError(f"mijax.model takes a function, got {quoted(fn)}.")
    leaves, structure = jax.tree.flatten(example)
    if not leaves or not all(map(_is_array, leaves)):
        raise ShapeError(
            "mijax.model takes an example of arrays, got "
            f"{quoted(example)}: give one input, such as jnp.ones((3, 32, 32))."
        )
    specs = [jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype) for leaf in leaves]
    ranks = tuple((len(spec.shape), spec.dtype) for spec in specs)
    shapes = tuple(spec.shape for spec in specs)
    made = FunctionModel(fn, ranks, structure, shapes, readout)
    traced_of(made, jax.tree.unflatten(structure, specs))
    return made


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def traced_of(model: FunctionModel, example: Any) -> Any:
    """Trace the function for one example.

    Raises:
        ShapeError: the function refuses inputs of this shape.
    """
    try:
        return trace(model.fn, (example,), {})[0]
    except (TypeError, ValueError) as error:
        if isinstance(error, SiteError | ShapeError):
            raise
        shapes = ", ".join(str(np.shape(leaf)) for leaf in jax.tree.leaves(example))
        reason = " ".join(str(error).split())
        raise ShapeError(
            f"The model does not take an example of shape {shapes}: {reason:.200}"
        ) from error


def examples(
    model: FunctionModel, inputs: Any, *, host: bool = False
) -> tuple[Any, int | None, Any]:
    """Return inputs as arrays, the size of their batch, and the shapes of one example.

    Args:
        model: the model.
        inputs: one example, or a batch.
        host: whether arrays stay on the host, as they are.

    Returns:
        The arrays, the number of examples (`None` for one example without an axis for
        the batch), and one example as `jax.ShapeDtypeStruct`.

    Raises:
        ShapeError: another structure, rank or dtype than the model's example, or
            arrays with different numbers of examples.
    """
    leaves, structure = jax.tree.flatten(inputs)
    if structure != model.structure and isinstance(inputs, PromptsLike):
        raise ShapeError(
            "A function of tokens does not know the lengths of prompts: give their "
            "tokens, or a dict of tokens and length to a function of both."
        )
    if structure != model.structure:
        raise ShapeError(
            f"The model takes inputs of the structure {model.structure}, got "
            f"{structure}."
        )
    arrays = [_on_host(leaf) if host else jnp.asarray(leaf) for leaf in leaves]
    more = {a.ndim - rank for a, (rank, _) in zip(arrays, model.ranks, strict=True)}
    if len(more) != 1 or not more <= {0, 1}:
        wants = ", ".join(str(list(shape)) for shape in model.shapes)
        raise ShapeError(
            f"One example has shape {wants}, and a batch has one more axis; got "
            f"{', '.join(str(list(a.shape)) for a in arrays)}."
        )
    for array, (_, kind) in zip(arrays, model.ranks, strict=True):
        if jnp.issubdtype(array.dtype, jnp.floating) != jnp.issubdtype(
            kind, jnp.floating
        ):
            raise ShapeError(f"The model takes inputs of {kind}, got {array.dtype}.")
    if not host:
        arrays = [a.astype(k) for a, (_, k) in zip(arrays, model.ranks, strict=True)]
    batched = more == {1}
    sizes = {a.shape[0] for a in arrays} if batched else set()
    if len(sizes) > 1:
        raise ShapeError(
            f"The arrays of a batch hold {sorted(sizes)} examples: give each the same "
            "number."
        )
    specs = [
        jax.ShapeDtypeStruct(a.shape[batched:], k if host else a.dtype)
        for a, (_, k) in zip(arrays, model.ranks, strict=True)
    ]
    tree = jax.tree.unflatten(structure, arrays)
    return tree, sizes.pop() if batched else None, jax.tree.unflatten(structure, specs)


def _on_host(leaf: Any) -> Any:
    """Return an array as NumPy's, without a copy of a memory map."""
    if isinstance(leaf, Tracer):
        raise ShapeError("batch= fills arrays on the host: call this outside jax.jit.")
    keys = isinstance(leaf, jax.Array) and jnp.issubdtype(
        leaf.dtype, jax.dtypes.extended
    )
    return leaf if keys else np.asarray(leaf)
