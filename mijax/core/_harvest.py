"""`harvest`: a transformation that changes and returns what a function marks."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mijax.core._activations import Activations
from mijax.core._evaluate import At, Job, Kept, Start, evaluate
from mijax.core._mark import editing
from mijax.core._site_table import LAYER, Mark, check_names, table
from mijax.core._trace import rebuild, trace


def harvest(
    fn: Callable[..., Any],
    *,
    want: Iterable[str] | None = None,
    edits: Mapping[str, Callable[[Any, At], Any]] | None = None,
) -> Callable[..., tuple[Any, Activations]]:
    """Return `fn` with edits at its sites, and with activations returned.

    A transformation like `grad`: `harvest(f)(x) == (f(x), activations)`. It composes
    with `jit`, `vmap`, `grad` and meshes. Under `jit`, activations that are not used
    cost nothing.

    Args:
        fn: any JAX function, or callable Equinox module.
        want: names of the sites to return; all by default.
        edits: for each site name a function `(value, at) -> value`, applied to every
            occurrence; `at` is an `At`. Shape and dtype stay.

    Returns:
        A function from the arguments of `fn` to its output and the activations. Those
        of a site have a leading axis `layer` if it has layers, then one for every
        other loop around the mark, then its own axes; a tuple by layer where shapes of
        layers differ. In a `while` loop the last iteration is kept, in a branch of a
        `cond` that is not taken zeros are.

    Raises:
        SiteError: a name that the function does not mark, an edit at a mark whose
            result the function does not use.
        ShapeError: an edit that changes shape or dtype.

    Examples:
        >>> import jax, mijax
        >>> def mlp(x, w_in, w_out):
        ...     h = mijax.site("hidden", jax.nn.relu(x @ w_in), "neuron")
        ...     return h @ w_out
        >>> one = jax.numpy.ones
        >>> half = {"hidden": lambda h, at: h / 2}
        >>> run = mijax.harvest(mlp, edits=half)
        >>> out, acts = run(one(4), one((4, 8)), one((8, 2)))
        >>> out.tolist(), acts.hidden.shape
        ([16.0, 16.0], (8,))
    """
    return harvest_parts(fn, want, edits or {}, {})


def harvest_parts(
    fn: Callable[..., Any],
    want: Iterable[str] | None,
    edits: Mapping[str, Callable[[Any, At], Any]],
    parts: Mapping[str, Callable[[Any, At], Any]],
    start: Start | None = None,
) -> Callable[..., tuple[Any, Activations]]:
    """Do the same as `harvest`, keeping only parts of activations.

    Args:
        fn: any JAX function.
        want: names of the sites to return.
        edits: a function for each edited site.
        parts: for some sites a function `(value, at) -> tree` that selects the part to
            keep; inside a loop only that part is kept of each iteration.
        start: the scan over layers around this site runs from a given layer on.
    """
    want = None if want is None else tuple(want)

    @functools.wraps(fn, updated=())
    def harvested(*args: Any, **kwargs: Any) -> tuple[Any, Activations]:
        with editing(edits):
            traced, arrays = trace(fn, args, kwargs)
        known = table(traced.marks)
        names = tuple(known) if want is None else want
        check_names((*names, *edits), known)
        job = Job(edits, frozenset(names), traced.marks, parts, start)
        outputs, kept = evaluate(job, traced.closed, arrays, (), ())
        acts = {name: _assemble(name, traced.marks, kept) for name in names}
        in_order = {name: acts[name] for name in known if name in acts}
        return rebuild(traced, outputs), Activations(in_order)

    return harvested


def _assemble(name: str, marks: tuple[Mark, ...], kept: Kept) -> Any:
    """Join the occurrences of a site: layers first, stacked where shapes agree."""
    own = {mark.first: mark for mark in marks if mark.name == name}
    found = []
    for first, mark in own.items():
        value = kept[name, first]
        if mark.scanned:
            at = [n for n, _ in mark.stacked].index(LAYER)
            value = jax.tree.map(lambda a, at=at: jnp.moveaxis(a, at, 0), value)
        elif len(own) > 1:
            value = jax.tree.map(lambda a: a[None], value)
        found.append(value)
    return jax.tree.map(_joined, *found)


def _joined(*parts: Any) -> Any:
    """Concatenate the layers of a site, or list them where their shapes differ."""
    if len(parts) == 1:
        return parts[0]
    if len({part.shape[1:] for part in parts}) == 1:
        return jnp.concatenate(parts)
    return tuple(layer for part in parts for layer in part)
