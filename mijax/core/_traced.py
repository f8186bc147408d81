"""Checks of traced indices at run time, with the environment variable MIJAX_CHECKS=1.

Under `jax.jit` an index has no value when a verb checks its arguments. With the checks
on, the compiled program raises where such an index is out of range; without them, the
program is the same as if this module did not exist.
"""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax.numpy as jnp
from jax.core import Tracer

from mijax.core._decoder_sites import own_names
from mijax.core._operands import Span
from mijax.core._sites import END, PerPrompt, Site, Sites, get, span_ends
from mijax.core._source_place import source_axes
from mijax.core._sources import Patch

T = TypeVar("T")


class Bound(NamedTuple):
    """A traced index and the size of its axis."""

    at: Any
    size: int
    name: str


def checks() -> bool:
    """Return True if traced indices are checked; read when a program is traced."""
    return os.environ.get("MIJAX_CHECKS", "0") not in ("", "0")


def guarded(tree: T, bounds: Iterator[Bound]) -> T:
    """Return a tree whose use raises if an index is out of range.

    Args:
        tree: any tree with an array.
        bounds: the indices; those that are not traced were checked before.

    Returns:
        The same tree, unchanged where checks are off or nothing is traced.
    """
    if not checks():
        return tree
    for index, size, name in bounds:
        if isinstance(index, Tracer):
            wrong = ((index < 0) | (index >= size)).any()
            message = f"{name} is out of range: it has to be from 0 to {size - 1}."
            tree = eqx.error_if(tree, wrong, message)
    return tree


def bounds_of_index(axis: str, index: Any, size: int, site: str) -> Iterator[Bound]:
    """Yield an index of one axis, or the ends of a span."""
    if isinstance(index, slice | Span):
        name = f"The end of a span of {axis} at site {site!r}"
        yield Bound(index.start, size, name)
        # A span ends before its stop, which may be the size of the axis.
        stop = index.stop
        stop = jnp.where(stop == END, size, stop) if isinstance(stop, Tracer) else stop
        yield Bound(stop, size + 1, name)
        return
    each = index.values if isinstance(index, PerPrompt) else index
    yield Bound(each, size, f"The {axis} at site {site!r}")


def bounds_of_site(site: Site, shapes: Sites[Any], seq: int) -> Iterator[Bound]:
    """Yield the indices of a site."""
    shape = get(shapes, site.name).shape
    sizes = {"layer": shape[0], "head": shape[-2], "feature": shape[-1]}
    given = {axis: getattr(site, axis) for axis in sizes} | dict(site.axes or {})
    sizes |= {name: sizes[axis] for name, axis in own_names(site.name).items()}
    for axis, index in given.items():
        if index is not None:
            yield from bounds_of_index(axis, index, sizes[axis], site.name)
    for end in span_ends(site.position):
        stop = isinstance(site.position, slice) and end is site.position.stop
        yield Bound(end, seq + stop, f"The position at site {site.name!r}")


def bounds_of_edit(placed: Any, shapes: Sites[Any], seq: int) -> Iterator[Bound]:
    """Yield the indices of a placed edit."""
    places = placed.layer, placed.start, placed.head, placed.feature
    spans = {
        axis: slice(index.start, index.stop) if isinstance(index, Span) else index
        for axis, index in (placed.axes or {}).items()
    }
    site = Site(placed.site, *places, **spans)
    yield from bounds_of_site(site, shapes, seq)
    if placed.features is not None:
        size = get(shapes, placed.site).shape[-1]
        yield Bound(placed.features, size, f"A feature at site {placed.site!r}")
    patch = placed.edit
    if isinstance(patch, Patch):
        axes = source_axes(placed.site, patch.place)
        for axis, index in patch.place.items():
            each = index.values if isinstance(index, PerPrompt) else index
            size = patch.source.shape[axes.index(axis) - len(axes)]
            yield Bound(each, size, f"The source {axis} at site {placed.site!r}")
    if placed.stop is not None:
        ends = jnp.where(placed.stop == END, seq, placed.stop)
        yield Bound(ends, seq + 1, f"The end of a span at site {placed.site!r}")


def bounds_of_metric(metric: Any, seq: int, vocab: int) -> Iterator[Bound]:
    """Yield the positions and the token ids of a metric."""
    metric = getattr(metric, "metric", metric)
    if getattr(metric, "position", None) is not None:
        yield Bound(metric.position, seq, "The position of the metric")
    for name in getattr(metric, "token_ids", ()):
        ids = getattr(metric, name)
        # In a set -1 stands for no token; other values have been checked.
        in_set = isinstance(ids, Tracer) and ids.ndim > 1
        ids = jnp.maximum(ids, 0) if in_set else ids
        yield Bound(ids, vocab, f"The metric's {name}")
