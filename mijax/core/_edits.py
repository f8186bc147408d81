"""Edits: values that change an activation, and the places where they do it."""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax._errors import ShapeError, SiteError
from mijax.core._integers import integers
from mijax.core._operands import Span, check_per_prompt, coefficient_of, value_of
from mijax.core._place import AbstractPlace
from mijax.core._shown import line, shown
from mijax.core._sites import (
    END,
    PerPrompt,
    Site,
    Sites,
    empty,
    filled,
    get,
    known,
    put,
)

Edits = Sites[Any] | Sequence[Sites[Any]] | None


class AbstractEdit(eqx.Module):
    """A change of an activation, `x -> x`, the same for every row.

    To write one's own, subclass it and define `__call__`; where the edit needs to know
    which layer, prompt or position a row stands for, `place` tells.
    """

    __repr__ = line

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "rows ..."], place: Any) -> Array:
        """Returns the changed rows."""

    def at(
        self,
        site: str | Site,
        *,
        layer: Any = None,
        position: Any = None,
        head: Any = None,
        feature: Any = None,
        where: Any = None,
        **axes: Any,
    ) -> Sites[Any]:
        """Places this edit.

        Args:
            site: name of a site, or a `Site` (then give no indices).
            layer: index of the block; `None` for every block. Like the other indices
                an integer or a traced integer: it is data, not structure. A list of
                layers, heads or features places the edit at each of them; for one per
                prompt give `PerPrompt`.
            position: token index, one per prompt (`[batch]`), or a slice of those.
            head: query head.
            feature: index on the last axis, whatever its name. At `scores` and
                `pattern` it is the position of the key.
            where: boolean mask of the part that is edited, broadcast against the value
                of one example and layer: a region of an image, or positions times
                features of a decoder.
            **axes: index on any other axis of the site, by the name that
                `mijax.sites` shows (`embed`, `mlp`, `key_position`); an integer, a
                list, a slice, or one per example (`PerPrompt`).

        Returns:
            Edits with this one in them, for `run`, `capture`, `sweep` and the model.

        Raises:
            SiteError: unknown site, an index that it does not have, or a list that
                names one index twice.

        Examples:
            >>> edits = Zero().at("z", layer=9, head=6)
            >>> edits.blocks.z.edit
            Zero()
        """
        if not isinstance(site, Site):
            site = Site(site, layer, position, head, feature, **axes)
        for axis in ("layer", "head"):
            index = _listed(site, axis)
            if index is not None:
                bound = self.bind(site)
                each = [site.replace(**{axis: one}) for one in index]
                return compose(*(bound.at(one, where=where) for one in each))
        start, stop = site.position, None
        if isinstance(start, slice):
            start, stop = start.start, start.stop
            start = 0 if start is None else start
            stop = END if stop is None else stop
        features = _listed(site, "feature")
        others = {axis: _as_place(axis, i) for axis, i in (site.axes or {}).items()}
        placed = Placed(
            self.bind(site),
            layer=_per_lane(site.layer),
            start=_per_lane(start),
            stop=_per_lane(stop),
            head=_per_lane(site.head),
            feature=_per_lane(site.feature) if features is None else None,
            site=site.name,
            features=None if features is None else jnp.asarray(features, jnp.int32),
            axes=others or None,
            mask=None if where is None else _as_mask(where),
        )
        return put(empty(), site.name, placed)

    def bind(self, site: Site) -> "AbstractEdit":
        """Return this edit with its operand for one site; most need nothing."""
        return self

    def check_operand(self, spec: Any, rows: range, batch: tuple[int, ...]) -> None:
        """Refuses an operand that does not fit what is run; most have none.

        Args:
            spec: shape of the whole site in one prompt, `[*layer, seq, ...]`.
            rows: how many tokens an operand with tokens may have.
            batch: `(prompts,)`, or `()` for a single prompt.
        """


def _listed(site: Site, axis: str) -> Any:
    """Return a list of indices on one axis, or `None` where there is at most one.

    Raises:
        SiteError: a list that names an index twice.
    """
    index = getattr(site, axis)
    if index is None or isinstance(index, PerPrompt) or not jnp.ndim(index):
        return None
    values = known(index)
    if values is not None and len(set(values.tolist())) < len(values):
        raise SiteError(
            f"A list of {axis}s names each one once, got {values.tolist()}: for "
            "one per prompt give mijax.PerPrompt."
        )
    return index


def _as_place(axis: str, index: Any) -> Any:
    """Return an index on a named axis as data; a slice as its `Span`."""
    if not isinstance(index, slice):
        return index if isinstance(index, PerPrompt) else jnp.asarray(index, jnp.int32)
    if index.step not in (None, 1):
        raise SiteError(f"A slice on axis {axis!r} has no step, got {index}.")
    stop = END if index.stop is None else index.stop
    ends = (0 if index.start is None else index.start, stop)
    return Span(
        *(jnp.asarray(integers(end, f"Axis {axis!r}"), jnp.int32) for end in ends)
    )


def _as_mask(where: Any) -> Array:
    """Return a mask as a boolean array.

    Raises:
        ShapeError: something else.
    """
    mask = where if isinstance(where, jax.Array) else np.asarray(where)
    if mask.dtype != bool:
        raise ShapeError(f"`where` is a boolean mask, got {mask.dtype}{mask.shape}.")
    return jnp.asarray(mask)


def _per_lane(index: Any) -> Array | None:
    """Return an index as data: one for all lanes, or one per lane."""
    if index is None:
        return None
    index = index.values if isinstance(index, PerPrompt) else index
    return jnp.asarray(index, jnp.int32)


class Placed(AbstractEdit):
    """An edit and its place. Indices are scalars, or hold one entry per lane.

    Attributes:
        features: indices on the last axis that are all edited.
        axes: indices on other axes, by name: integers, a list, a `Span`, `PerPrompt`.
        mask: part of the value that is edited.
    """

    edit: AbstractEdit
    layer: Array | None
    start: Array | None
    stop: Array | None
    head: Array | None
    feature: Array | None
    site: str = eqx.field(static=True)
    features: Array | None = None
    axes: dict[str, Any] | None = None
    mask: Array | None = None

    def __repr__(self) -> str:
        position = self.start
        if self.stop is not None:
            start, stop = np.asarray(self.start), np.asarray(self.stop)
            end = None if (stop == END).all() else stop
            position = slice(start if start.any() else None, end)
        feature = self.features if self.feature is None else self.feature
        at = {"layer": self.layer, "position": position, "head": self.head}
        at |= {"feature": feature} | (self.axes or {}) | {"where": self.mask}
        given = [f"{name}={shown(i)}" for name, i in at.items() if i is not None]
        return " at ".join([repr(self.edit), *([", ".join(given)] if given else [])])

    def __call__(self, x: Float[Array, "rows ..."], place: Any) -> Array:
        """Return the edited rows at the place, and `x` elsewhere.

        Raises:
            ShapeError: an edit that returns another shape, or complex numbers.
        """
        new = self.edit(x, place)
        if getattr(new, "shape", None) != x.shape or new.dtype.kind == "c":
            found = getattr(new, "shape", type(new).__name__)
            raise ShapeError(
                f"An edit keeps the shape of its rows: {type(self.edit).__name__} was "
                f"given {x.dtype}{x.shape} at {self.site!r} and returned {found}."
            )
        new = new.astype(x.dtype)
        where = place.where(self, x)
        return new if where is None else jnp.where(where, new, x)


class Compose(AbstractEdit):
    """Several edits at one site, applied in order."""

    edits: tuple[AbstractEdit, ...]

    def check_operand(self, spec: Any, rows: range, batch: tuple[int, ...]) -> None:
        """Refuses what any of them refuses."""
        for one in self.edits:
            one.check_operand(spec, rows, batch)

    def __call__(self, x: Float[Array, "rows ..."], place: Any) -> Array:
        """Applies the first edit first."""
        for one in self.edits:
            x = one(x, place)
        return x


class Zero(AbstractEdit):
    """Zero ablation: `x -> 0`."""

    def __call__(self, x: Float[Array, "rows ..."], place: Any) -> Array:
        """Returns zeros."""
        return jnp.zeros_like(x)


class Set(AbstractEdit):
    """Replaces the activation: `x -> value`.

    Args:
        value: broadcast against one row of the site, e.g. `[embed]` at `resid_pre`,
            `[head_dim]` or `[heads, head_dim]` at `z`; or one for each prompt,
            `PerPrompt(values)` with an axis of prompts first.
    """

    value: Any = eqx.field(converter=value_of)

    def check_operand(self, spec: Any, rows: range, batch: tuple[int, ...]) -> None:
        """Refuses values of other prompts."""
        if isinstance(self.value, PerPrompt):
            check_per_prompt(self.value, "value", batch)

    def __call__(self, x: Float[Array, "rows ..."], place: Any) -> Array:
        """Returns the value in every row."""
        return jnp.broadcast_to(place.fit(self.value, x), x.shape).astype(x.dtype)


class Add(AbstractEdit):
    r"""Steering: $x \mapsto x + c \cdot v$.

    Args:
        value: the direction `v`, broadcast against one row of the site, or one for
            each prompt, `PerPrompt(values)`.
        coefficient: `c`, a number or `PerPrompt`; a sweep can run over it.
    """

    value: Any = eqx.field(converter=value_of)
    coefficient: Any = eqx.field(default=1.0, converter=coefficient_of)

    def check_operand(self, spec: Any, rows: range, batch: tuple[int, ...]) -> None:
        """Refuses values and coefficients of other prompts."""
        if isinstance(self.value, PerPrompt):
            check_per_prompt(self.value, "value", batch)
        check_per_prompt(self.coefficient, "coefficient", batch)

    def __call__(self, x: Float[Array, "rows ..."], place: Any) -> Array:
        """Adds the scaled direction to every row."""
        step = place.each(self.coefficient, x) * place.fit(self.value, x)
        return x + step.astype(x.dtype)


class Scale(AbstractEdit):
    r"""Scales the activation: $x \mapsto c \cdot x$.

    Args:
        coefficient: `c`, a number or `PerPrompt`; a sweep can run over it. 0 ablates,
            1 is the identity.
    """

    coefficient: Any = eqx.field(converter=coefficient_of)

    def check_operand(self, spec: Any, rows: range, batch: tuple[int, ...]) -> None:
        """Refuses coefficients of other prompts."""
        check_per_prompt(self.coefficient, "coefficient", batch)

    def __call__(self, x: Float[Array, "rows ..."], place: Any) -> Array:
        """Returns the scaled rows."""
        return x * place.each(self.coefficient, x).astype(x.dtype)


class Apply(AbstractEdit):
    r"""Applies a function: $x \mapsto f(x)$.

    Args:
        function: from the value to a new one of the same shape. A decoder's value is
            `[rows, ...]`, and each row depends on itself only.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> edit = mijax.Apply(jax.numpy.abs).at("mlp_post", layer=1)
        >>> mijax.run(model, jax.numpy.array([5, 6, 7]), edit).shape
        (3, 64)
    """

    function: Callable[[Array], Array]

    def __call__(self, x: Float[Array, "rows ..."], place: Any) -> Array:
        """Return the function's value."""
        return jnp.asarray(self.function(x))


def compose(*edits: Edits) -> Sites[Any]:
    """Joins edits into one record; at a common site the earlier one applies first.

    Args:
        *edits: records from `.at(...)`, sequences of them, or `None`.

    Returns:
        One record that holds them all.

    Examples:
        >>> both = compose(Scale(2.0).at("z", layer=0), Zero().at("mlp_out"))
        >>> both.blocks.z is not None and both.blocks.mlp_out is not None
        True
    """
    if len(edits) == 1 and isinstance(edits[0], Sites):
        return edits[0]
    joined = empty()
    for given in edits:
        if given is None:
            continue
        if not isinstance(given, Sites | Sequence) or isinstance(given, str | bytes):
            raise SiteError(
                f"Edits must be placed, got {type(given).__name__}: write "
                "edit.at(site, ...)."
            )
        record = given if isinstance(given, Sites) else compose(*given)
        for name in filled(record):
            new, old = get(record, name), get(joined, name)
            both = new if old is None else Compose((old, new))
            joined = put(joined, name, both)
    return joined


def edit(edits: AbstractEdit | None, x: Array, place: AbstractPlace) -> Array:
    """Applies what is placed at a site; blocks call it once per site.

    Args:
        edits: what the record of edits holds there; `None` is no edit.
        x: the activation, rows first.
        place: which layer and rows it is.

    Returns:
        The activation that the model goes on with.
    """
    return x if edits is None else edits(x, place)
