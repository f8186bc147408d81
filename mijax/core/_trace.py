"""`sites`: the sites of a model, found by tracing it; nothing is run."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax

from mijax._errors import SiteError
from mijax.core._mark import ClosedJaxpr
from mijax.core._site_table import Mark, SiteTable, marks_of, table


class Traced(NamedTuple):
    """A traced function.

    Attributes:
        closed: its jaxpr.
        output: structure of what it returns, with shapes.
        marks: every mark, in the order of computation.
    """

    closed: ClosedJaxpr
    output: Any
    marks: tuple[Mark, ...]


def sites(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> SiteTable:
    """List the sites of a model; nothing is run.

    Args:
        fn: any JAX function or callable Equinox module.
        *args: one example of its inputs, arrays or `jax.ShapeDtypeStruct`s.
        **kwargs: more inputs.

    Returns:
        The sites, in the order of computation.

    Raises:
        SiteError: one name is used with different axes, or a mark is where it cannot
            be reached.

    Examples:
        >>> import jax, mijax
        >>> def mlp(x, w_in, w_out):
        ...     h = mijax.site("hidden", jax.nn.relu(x @ w_in), "neuron")
        ...     return h @ w_out
        >>> one = jax.numpy.ones
        >>> mijax.sites(mlp, one(4), one((4, 8)), one((8, 2)))
        name    layers  axes    shape  dtype
        hidden          neuron  (8,)   float32
    """
    return table(trace(fn, args, kwargs)[0].marks)


def trace(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Traced, list[Any]]:
    """Trace a function, once for each function and shapes.

    Returns:
        The traced function, and the arrays that its jaxpr takes.
    """
    leaves, structure = jax.tree.flatten((fn, args, dict(kwargs)))
    is_array = lambda x: eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct)  # noqa: E731
    arrays = [leaf for leaf in leaves if is_array(leaf)]
    fixed = tuple(None if is_array(leaf) else leaf for leaf in leaves)
    traced = _call.trace((structure, fixed), arrays)
    closed = traced.jaxpr
    if len(closed.jaxpr.invars) > len(arrays):
        raise SiteError(
            "The function holds traced values of a jax transformation around it: pass "
            "them as inputs, or as arrays of an Equinox module."
        )
    return Traced(closed, traced.out_info, marks_of(closed)), arrays


@functools.partial(jax.jit, static_argnums=0)
def _call(function: tuple[Any, tuple[Any, ...]], arrays: list[Any]) -> Any:
    """Call a flattened function; JAX caches its trace."""
    structure, fixed = function
    rest = iter(arrays)
    # A leaf that is None is not a leaf, so None marks the arrays.
    leaves = [next(rest) if leaf is None else leaf for leaf in fixed]
    fn, args, kwargs = jax.tree.unflatten(structure, leaves)
    leaves, structure = jax.tree.flatten(fn(*args, **kwargs))
    fixed = tuple(None if eqx.is_array(leaf) else leaf for leaf in leaves)
    return [leaf for leaf in leaves if eqx.is_array(leaf)], Output(structure, fixed)


class Output(eqx.Module):
    """The part of an output that is not an array: its structure and other leaves."""

    structure: Any = eqx.field(static=True)
    fixed: tuple[Any, ...] = eqx.field(static=True)


def rebuild(traced: Traced, outputs: list[Any]) -> Any:
    """Return the output of a traced function from the outputs of its jaxpr."""
    output = traced.output[1]
    rest = iter(outputs)
    leaves = [next(rest) if leaf is None else leaf for leaf in output.fixed]
    return jax.tree.unflatten(output.structure, leaves)
