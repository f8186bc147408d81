"""Places in a `FunctionModel`: edits at any axis of a site, by name."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from mijax._errors import PositionError, ShapeError, SiteError
from mijax.core._edits import AbstractEdit
from mijax.core._operands import Span
from mijax.core._place import AbstractPlace
from mijax.core._site_table import SiteInfo, SiteTable
from mijax.core._sites import PerPrompt


class Spot(AbstractPlace):
    """The value of one example and layer that an edit is given.

    Attributes:
        layer: its layer, `None` for a site without layers; static outside of loops.
        prompt: which example of the batch, `None` for one without a batch.
        axes: names of the axes of the value.
        loops: iteration of each loop within a layer, by name.
    """

    layer: Any
    prompt: Any
    axes: tuple[str, ...] = eqx.field(static=True)
    loops: dict[str, Any]

    def each(self, index: Any, x: Array) -> Array:
        """Return a scalar, or this example's entry."""
        if isinstance(index, PerPrompt):
            index = jnp.asarray(index.values)
        if index.ndim == 0:
            return index
        if self.prompt is None or index.ndim > 1:
            raise PositionError(
                f"An index of shape {index.shape} needs a batch of as many examples."
            )
        return index[self.prompt]

    def fit(self, value: Any, x: Array) -> Array:
        """Return an operand that broadcasts to the value, or refuse it."""
        if isinstance(value, PerPrompt):
            if self.prompt is None:
                raise PositionError("A value per example needs a batch of examples.")
            value = jnp.asarray(value.values)[self.prompt]
        try:
            fine = jnp.broadcast_shapes(value.shape, x.shape) == x.shape
        except ValueError:
            fine = False
        if not fine:
            raise ShapeError(
                f"A value of shape {value.shape} does not broadcast to a value of "
                f"shape {x.shape} ({' '.join(self.axes)})."
            )
        return value

    def take(self, source: Any, x: Array, at: Mapping[str, Any]) -> Array:
        """Return the source's value of the same example and layer, or at a place."""
        place = {axis: self.each(index, x) for axis, index in at.items()}
        value = self.part(source, x.ndim, place)
        for axis, index in place.items():
            if axis in self.axes:
                i = self.axes.index(axis)
                one = jnp.take(value, index[None], axis=i)
                value = jnp.repeat(one, x.shape[i], axis=i)
        if value.shape != x.shape:
            raise ShapeError(
                f"The source has a value of shape {value.shape}, but the site's is "
                f"{x.shape}: capture the whole site from inputs of the same shape."
            )
        return value.astype(x.dtype)

    def part(
        self, source: Any, rank: int, at: Mapping[str, Any] = MappingProxyType({})
    ) -> Array:
        """Index a whole site's activations by example, layer and loops."""
        index = tuple(at.get(name, i) for name, i in self.loops.items())
        layer = at.get("layer", self.layer)
        if isinstance(source, tuple):
            source = source[layer]
        elif layer is not None:
            index = (layer, *index)
        if source.ndim > rank + len(index):
            if self.prompt is None:
                raise ShapeError(
                    f"The source holds {source.shape[0]} examples, but a single one is "
                    "run: index the source, or run the whole batch."
                )
            index = (self.prompt, *index)
        return source[index]

    def mean(self, mean: Any, x: Array) -> Array:
        """Refuse: the verbs compute means before a run."""
        raise SiteError("A Mean of a FunctionModel is computed by the verbs.")

    def noise(self, key: Any, x: Array) -> Array:
        """Draw the noise of this example, layer and iteration."""
        for index in (self.layer, self.prompt, *self.loops.values()):
            key = jax.random.fold_in(key, 0 if index is None else index)
        return jax.random.normal(key, x.shape)

    def where(self, placed: Any, x: Array) -> Array | None:
        """Return the mask of what is edited; `None` is all."""
        masks = [] if placed.mask is None else [placed.mask]
        if placed.layer is not None:
            masks.append(self.within(placed.layer, self.layer))
        for axis, index in placed.axes.items():
            if "," in axis:
                masks.append(self.joint(axis.split(","), index, x))
                continue
            if axis in self.loops:
                masks.append(self.within(index, self.loops[axis]))
                continue
            i = self.axes.index(axis)
            at = jnp.arange(x.shape[i])
            inside = self.within(index, at)
            masks.append(inside.reshape((-1,) + (1,) * (x.ndim - 1 - i)))
        return None if not masks else jax.tree.reduce(jnp.logical_and, masks)

    def joint(self, names: list[str], mask: Array, x: Array) -> Array:
        """Return the mask of a set of indices on several axes."""
        index: list[Any] = []
        for name in names:
            at = self.layer if name == "layer" else self.loops.get(name)
            if at is None:
                i = self.axes.index(name)
                at = jnp.arange(x.shape[i]).reshape((-1,) + (1,) * (x.ndim - 1 - i))
            index.append(at)
        return mask[tuple(index)]

    def within(self, index: Any, at: Any) -> Array:
        """Return a mask of the coordinates that an index covers."""
        if isinstance(index, Span):
            start, stop = (
                self.each(jnp.asarray(end), at) for end in (index.start, index.stop)
            )
            return (at >= start) & (at < stop)
        if isinstance(index, PerPrompt):
            return at == self.each(jnp.asarray(index.values), at)
        index = jnp.asarray(index)
        if index.dtype == bool:
            return index[at]
        return (at == index) if index.ndim == 0 else jnp.isin(at, index)


class Whole(AbstractEdit):
    """Replaces the activation by a value that broadcasts to it, by layer."""

    value: Any

    def __call__(self, x: Array, place: Any) -> Array:
        """Return the value of the layer."""
        return jnp.broadcast_to(place.part(self.value, x.ndim), x.shape).astype(x.dtype)


class StaticLayer(eqx.Module):
    """A layer that is fixed when the program is compiled: of a model without a scan."""

    value: int = eqx.field(static=True)


class OneOf(eqx.Module):
    """A layer among some that are fixed when the program is compiled."""

    layers: tuple[int, ...] = eqx.field(static=True)
    layer: Any


class Spots(AbstractEdit):
    """An edit with a place that is known to exist in a `FunctionModel`.

    Attributes:
        edit: the edit.
        layer: its layer: traced, a `StaticLayer`, or `None` for every layer.
        axes: indices by axis of the site.
        mask: part of the value.
        site: name of the site.
    """

    edit: AbstractEdit
    layer: Any
    axes: dict[str, Any]
    mask: Array | None
    site: str = eqx.field(static=True)

    def __call__(self, x: Array, place: Spot) -> Array:
        """Return the edited value where the place is, and `x` elsewhere."""
        layer = self.layer
        if isinstance(layer, OneOf):
            # Other layers have no trace of the edit, so what is before runs once.
            if isinstance(place.layer, int) and place.layer not in layer.layers:
                return x
            layer = layer.layer
        if isinstance(layer, StaticLayer):
            if isinstance(place.layer, int) and place.layer != layer.value:
                return x
            layer = None if isinstance(place.layer, int) else layer.value
        new = self.edit(x, place)
        if getattr(new, "shape", None) != x.shape or new.dtype.kind == "c":
            found = getattr(new, "shape", type(new).__name__)
            raise ShapeError(
                f"An edit keeps the shape of its value: {type(self.edit).__name__} was "
                f"given {x.dtype}{x.shape} at {self.site!r} and returned {found}."
            )
        where = place.where(Spots(self.edit, layer, self.axes, self.mask, self.site), x)
        new = new.astype(x.dtype)
        return new if where is None else jnp.where(where, new, x)


def applied(
    edits: Mapping[str, AbstractEdit], sites: SiteTable, prompt: Any
) -> dict[str, Any]:
    """Return the functions that `harvest` applies at each site.

    Args:
        edits: resolved edits by site.
        sites: the sites of the model.
        prompt: which example of the batch is run, `None` without a batch.
    """

    def at_site(name: str, edit: AbstractEdit) -> Any:
        return lambda value, at: edit(value, spot_of(at, sites[name], prompt))

    return {name: at_site(name, edit) for name, edit in edits.items()}


def spot_of(at: Any, info: SiteInfo, prompt: Any) -> Spot:
    """Return the place of a value that `harvest` hands over."""
    loops = {name: i for name, i in at.index.items() if name in info.axes}
    return Spot(at.layer if info.layers else None, prompt, at.axes, loops)
