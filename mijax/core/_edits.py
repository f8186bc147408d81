"""Edits: values that change an activation, and the places where they do it."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from mijax._errors import ShapeError, SiteError, quoted
from mijax.core._integers import reals
from mijax.core._operands import check_per_prompt, fits, per_row
from mijax.core._rows import Place
from mijax.core._shown import line, shown
from mijax.core._sites import (
    END,
    SITES,
    PerPrompt,
    Site,
    Sites,
    empty,
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
    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Returns the changed rows."""

    def at(
        self,
        site: str | Site,
        *,
        layer: Any = None,
        position: Any = None,
        head: Any = None,
        feature: Any = None,
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
            feature: index on the last axis. At `scores` and `pattern` it is the
                position of the key.

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
            site = Site(site, layer, position, head, feature)
        for axis in ("layer", "head"):
            index = _listed(site, axis)
            if index is not None:
                bound = self.bind(site)
                each = [dataclasses.replace(site, **{axis: one}) for one in index]
                return compose(*(bound.at(one) for one in each))
        start, stop = site.position, None
        if isinstance(start, slice):
            start, stop = start.start, start.stop
            start = 0 if start is None else start
            stop = END if stop is None else stop
        features = _listed(site, "feature")
        placed = Placed(
            self.bind(site),
            layer=_per_lane(site.layer),
            start=_per_lane(start),
            stop=_per_lane(stop),
            head=_per_lane(site.head),
            feature=_per_lane(site.feature) if features is None else None,
            site=site.name,
            features=None if features is None else jnp.asarray(features, jnp.int32),
        )
        return put(empty(), site.name, placed)

    def bind(self, site: Site) -> "AbstractEdit":
        """Returns this edit with its operand for one site; most need nothing."""
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
    """

    edit: AbstractEdit
    layer: Array | None
    start: Array | None
    stop: Array | None
    head: Array | None
    feature: Array | None
    site: str = eqx.field(static=True)
    features: Array | None = None

    def __repr__(self) -> str:
        position = self.start
        if self.stop is not None:
            start, stop = np.asarray(self.start), np.asarray(self.stop)
            end = None if (stop == END).all() else stop
            position = slice(start if start.any() else None, end)
        feature = self.features if self.feature is None else self.feature
        at = {"layer": self.layer, "position": position, "head": self.head}
        at |= {"feature": feature}
        given = [f"{name}={shown(i)}" for name, i in at.items() if i is not None]
        return " at ".join([repr(self.edit), *([", ".join(given)] if given else [])])

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
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
        where = self.where(x, place)
        return new if where is None else jnp.where(where, new, x)

    def where(
        self, x: Float[Array, "rows ..."], place: Place
    ) -> Bool[Array, "..."] | None:
        """Returns the mask of what is edited, broadcastable to `x`; `None` is all."""
        masks = []
        if self.layer is not None:
            masks.append(per_row(self.layer, place, x) == place.layer)
        if self.start is not None:
            position = place.rows.position.reshape((-1,) + (1,) * (x.ndim - 1))
            start = per_row(self.start, place, x)
            stop = start + 1 if self.stop is None else per_row(self.stop, place, x)
            masks.append((position >= start) & (position < stop))
        if self.head is not None:
            heads = jnp.arange(x.shape[1])[:, None]
            masks.append(per_row(self.head, place, x) == heads)
        if self.feature is not None:
            masks.append(per_row(self.feature, place, x) == jnp.arange(x.shape[-1]))
        if self.features is not None:
            masks.append(jnp.isin(jnp.arange(x.shape[-1]), self.features))
        return None if not masks else jax.tree.reduce(jnp.logical_and, masks)


class Compose(AbstractEdit):
    """Several edits at one site, applied in order."""

    edits: tuple[AbstractEdit, ...]

    def check_operand(self, spec: Any, rows: range, batch: tuple[int, ...]) -> None:
        """Refuses what any of them refuses."""
        for one in self.edits:
            one.check_operand(spec, rows, batch)

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Applies the first edit first."""
        for one in self.edits:
            x = one(x, place)
        return x


class Zero(AbstractEdit):
    """Zero ablation: `x -> 0`."""

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Returns zeros."""
        return jnp.zeros_like(x)


class Set(AbstractEdit):
    """Replaces the activation: `x -> value`.

    Args:
        value: broadcast against one row of the site, e.g. `[embed]` at `resid_pre`,
            `[head_dim]` or `[heads, head_dim]` at `z`.
    """

    value: Any = eqx.field(converter=reals)

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Returns the value in every row."""
        return jnp.broadcast_to(fits(self.value, x), x.shape).astype(x.dtype)


class Add(AbstractEdit):
    r"""Steering: $x \mapsto x + c \cdot v$.

    Args:
        value: the direction `v`, broadcast against one row of the site.
        coefficient: `c`; a sweep can run over it.
    """

    value: Any = eqx.field(converter=reals)
    coefficient: Any = eqx.field(default=1.0, converter=reals)

    def check_operand(self, spec: Any, rows: range, batch: tuple[int, ...]) -> None:
        """Refuses coefficients of other prompts."""
        check_per_prompt(self.coefficient, "coefficient", batch)

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Adds the scaled direction to every row."""
        step = per_row(self.coefficient, place, x) * fits(self.value, x)
        return x + step.astype(x.dtype)


class Scale(AbstractEdit):
    r"""Scales the activation: $x \mapsto c \cdot x$.

    Args:
        coefficient: `c`; a sweep can run over it. 0 ablates, 1 is the identity.
    """

    coefficient: Any = eqx.field(converter=reals)

    def check_operand(self, spec: Any, rows: range, batch: tuple[int, ...]) -> None:
        """Refuses coefficients of other prompts."""
        check_per_prompt(self.coefficient, "coefficient", batch)

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Returns the scaled rows."""
        return x * per_row(self.coefficient.astype(x.dtype), place, x)


class Noise(AbstractEdit):
    r"""Adds Gaussian noise: $x \mapsto x + c \cdot \epsilon$.

    The noise of a row depends on the key and on the row's prompt, layer and position
    only, so it is the same in a batch, alone, padded or in a sweep.

    Args:
        key: a `jax.random.key`.
        coefficient: standard deviation, in units of the activation.
    """

    key: PRNGKeyArray
    coefficient: Any = eqx.field(default=1.0, converter=reals)

    def __check_init__(self):
        """Refuse what is not one key."""
        key = self.key
        typed = isinstance(key, jax.Array) and jnp.issubdtype(
            key.dtype, jax.dtypes.prng_key
        )
        old = isinstance(key, jax.Array | np.ndarray) and key.dtype == np.uint32
        if not (typed and key.ndim == 0) and not (old and key.ndim == 1):
            raise ShapeError(f"Noise takes a jax.random.key, got {quoted(key)}.")

    def check_operand(self, spec: Any, rows: range, batch: tuple[int, ...]) -> None:
        """Refuses coefficients of other prompts."""
        check_per_prompt(self.coefficient, "coefficient", batch)

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Adds each row's own noise."""
        rows = place.rows
        key = jax.random.fold_in(self.key, 0 if place.layer is None else place.layer)
        prompt = jnp.zeros((), jnp.int32) if rows.prompt is None else rows.prompt
        prompt = jnp.broadcast_to(prompt, rows.position.shape)

        def draw(prompt: Array, position: Array) -> Array:
            own = jax.random.fold_in(jax.random.fold_in(key, prompt), position)
            return jax.random.normal(own, x.shape[1:])

        noise = jax.vmap(draw)(prompt, rows.position)
        step = per_row(self.coefficient, place, x) * noise
        return x + step.astype(x.dtype)


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
        for name in SITES:
            new, old = get(record, name), get(joined, name)
            if new is not None:
                both = new if old is None else Compose((old, new))
                joined = put(joined, name, both)
    return joined


def edit(edits: AbstractEdit | None, x: Array, place: Place) -> Array:
    """Applies what is placed at a site; blocks call it once per site.

    Args:
        edits: what the record of edits holds there; `None` is no edit.
        x: the activation, rows first.
        place: which layer and rows it is.

    Returns:
        The activation that the model goes on with.
    """
    return x if edits is None else edits(x, place)
