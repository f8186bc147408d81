"""The nodes of a circuit: places on chosen axes of chosen sites."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mijax._errors import ShapeError, SiteError, nearest, quoted
from mijax.core import SiteInfo
from mijax.core.internal import Spot, check_axis, check_names


class NodeSite(NamedTuple):
    """The nodes at one site.

    Attributes:
        site: name of the site.
        axes: the axes that tell nodes apart: `layer` first, then in the site's order.
        shapes: number of nodes on the axes after `layer`, for each layer (one entry
            where layers are not told apart).
        start: index of the first node.
    """

    site: str
    axes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    start: int

    @property
    def layered(self) -> bool:
        """True if each layer has nodes of its own."""
        return self.axes[:1] == ("layer",)

    @property
    def ragged(self) -> bool:
        """True if layers have different numbers of nodes."""
        return len(set(self.shapes)) > 1

    @property
    def starts(self) -> tuple[int, ...]:
        """Index of the first node of each layer."""
        sizes = [math.prod(shape) for shape in self.shapes]
        return tuple(itertools.accumulate(sizes[:-1], initial=self.start))

    @property
    def stop(self) -> int:
        """Index after that of the last node."""
        return self.start + sum(math.prod(shape) for shape in self.shapes)

    def indices(self) -> list[tuple[int, ...]]:
        """Return the index of every node on the axes, in order."""
        found = []
        for layer, shape in enumerate(self.shapes):
            first = (layer,) if self.layered else ()
            found += [(*first, *rest) for rest in np.ndindex(*shape)]
        return found

    def gate(self, gates: Array, spot: Spot, shape: tuple[int, ...]) -> Array:
        """Return the gates of one value, with the rank of the value.

        Args:
            gates: of all nodes, `[node]`.
            spot: the place of the value.
            shape: its shape.
        """
        layer = spot.layer if self.layered else 0
        own = self.axes[self.layered :]
        traced = not isinstance(layer, int)
        sizes = self.shapes[0 if traced else layer]
        if traced and self.ragged:
            raise SiteError(
                f"Site {self.site!r} has layers of different sizes in a loop: choose "
                "its nodes by layer only."
            )
        start = jnp.asarray(self.starts)[layer] if traced else self.starts[layer]
        found = jax.lax.dynamic_slice_in_dim(gates, start, math.prod(sizes))
        found = found.reshape(sizes)
        for axis in own:
            if axis in spot.loops:
                found = found[spot.loops[axis]]
        pairs = zip(spot.axes, shape, strict=True)
        return found.reshape([size if axis in own else 1 for axis, size in pairs])


@dataclasses.dataclass(frozen=True)
class Nodes:
    """The nodes of a task: an ordered list of places, by site.

    A node is written as its site with an index on each axis, `relu[1, 7]`; the layer
    comes first, the other axes in the order of the site. A site without axes is one
    node, written as its name.

    Attributes:
        sites: the nodes at each site.
    """

    sites: tuple[NodeSite, ...]

    def __repr__(self) -> str:
        each = [
            f"{s.stop - s.start} {s.site} ({', '.join(s.axes)})" for s in self.sites
        ]
        return f"Nodes({'; '.join(each)})"

    def __len__(self) -> int:
        return self.sites[-1].stop

    def names(self) -> tuple[str, ...]:
        """Return the name of every node, in order."""
        return tuple(_name(s.site, index) for s in self.sites for index in s.indices())

    def indices(self, names: Iterable[str]) -> list[int]:
        """Return the indices of nodes given by name.

        Args:
            names: for instance `["relu[1, 7]"]`.

        Raises:
            SiteError: no such node.
        """
        known = {name: i for i, name in enumerate(self.names())}
        found = []
        for name in names:
            compact = name.replace(" ", "").replace(",", ", ")
            if compact not in known:
                close = nearest(name, known)
                raise SiteError(f"The task has no node {name!r}.{close}")
            found.append(known[compact])
        return found

    def split(self, values: Any) -> dict[str, Any]:
        """Split `[..., node]` by site.

        Returns:
            For each site `[..., *axes]`; a tuple by layer where their sizes differ.
        """
        lead = values.shape[:-1]

        def one(start: int, shape: tuple[int, ...]) -> Any:
            stop = start + math.prod(shape)
            return values[..., start:stop].reshape((*lead, *shape))

        found = {}
        for s in self.sites:
            if s.ragged:
                pairs = zip(s.starts, s.shapes, strict=True)
                found[s.site] = tuple(one(start, shape) for start, shape in pairs)
            else:
                layers = (len(s.shapes),) if s.layered else ()
                found[s.site] = one(s.start, (*layers, *s.shapes[0]))
        return found


def _name(site: str, index: tuple[int, ...]) -> str:
    return f"{site}[{', '.join(map(str, index))}]" if index else site


def nodes_of(axes: Any, sites: Mapping[str, SiteInfo]) -> Nodes:
    """Lay out the nodes of a task.

    Args:
        axes: for each site, the axes that tell its nodes apart.
        sites: the sites of the model.

    Raises:
        SiteError: a site or axis that the model does not have, or a site that is not
            of floating-point numbers.
        ShapeError: no nodes, or layers of different sizes that share nodes.
    """
    if not isinstance(axes, Mapping) or not axes:
        raise ShapeError(
            "nodes gives the axes of each site, for instance "
            f"{{'relu': ('layer', 'channel')}}, got {quoted(axes)}."
        )
    check_names(axes, sites)
    found, start = [], 0
    for name, own in axes.items():
        found.append(_node_site(sites[name], own, start))
        start = found[-1].stop
    return Nodes(tuple(found))


def _node_site(info: SiteInfo, axes: Any, start: int) -> NodeSite:
    given = (axes,) if isinstance(axes, str) else tuple(axes)
    for axis in given:
        check_axis(axis, info)
    if len(set(given)) < len(given):
        raise SiteError(f"The nodes of {info.name!r} name an axis twice: {given}.")
    if not jnp.issubdtype(info.dtype, jnp.floating):
        raise SiteError(
            f"Site {info.name!r} holds {info.dtype}: nodes are floating-point values."
        )
    names = tuple(axis for axis in info.axes if axis in given)
    at = [info.axes.index(axis) for axis in names]
    layers = info.layers or 1
    whole = info.shapes if len(info.shapes) == layers else info.shapes * layers
    shapes = tuple(tuple(shape[i] for i in at) for shape in whole)
    if "layer" in given:
        return NodeSite(info.name, ("layer", *names), shapes, start)
    if len(set(shapes)) > 1:
        raise ShapeError(
            f"Layers of site {info.name!r} have different sizes of {names}: tell them "
            f"apart with {('layer', *names)}."
        )
    return NodeSite(info.name, names, shapes[:1], start)
