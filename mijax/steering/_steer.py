"""`Steer`: add steering vectors at their layers, with a unit for the strength."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax._errors import ShapeError, SiteError
from mijax.core import AbstractEdit, PerPrompt
from mijax.core.internal import check_per_prompt, known, reals


class AbstractScale(eqx.Module):
    """Unit of the strength: the distance that strength 1 moves an activation."""

    @abc.abstractmethod
    def step(
        self,
        x: Float[Array, "rows embed"],
        vector: Float[Array, "*rows embed"],
        layer: Any,
    ) -> Float[Array, "..."]:
        """Return the step at strength 1, broadcastable to `x`."""


class Raw(AbstractScale):
    r"""Strength 1 adds the vector as it is: $h + c\,v$."""

    def step(
        self,
        x: Float[Array, "rows embed"],
        vector: Float[Array, "*rows embed"],
        layer: Any,
    ) -> Float[Array, "..."]:
        """Return the vector."""
        return vector


class TokenNorm(AbstractScale):
    r"""Strength 1 adds the norm of the token: $h + c\,\|h\|\,v / \|v\|$."""

    def step(
        self,
        x: Float[Array, "rows embed"],
        vector: Float[Array, "*rows embed"],
        layer: Any,
    ) -> Float[Array, "..."]:
        """Return the unit vector times the norm of each token."""
        return _norm(x) * _unit(vector)


class LayerNumber(AbstractScale):
    r"""Strength 1 adds a number per layer: $h + c\,s_l\,v / \|v\|$.

    With the model's `median_norms`, the strength is a fraction of the typical
    activation norm, which makes layers comparable. With the largest activation of a
    feature, it is a multiple of that.

    Attributes:
        numbers: one number for each layer of the model.

    Examples:
        >>> LayerNumber([1.0, 2.0]).numbers.tolist()
        [1.0, 2.0]
    """

    numbers: Float[Array, " layer"] = eqx.field(converter=reals)

    def step(
        self,
        x: Float[Array, "rows embed"],
        vector: Float[Array, "*rows embed"],
        layer: Any,
    ) -> Float[Array, "..."]:
        """Return the unit vector times the layer's number."""
        return self.numbers[layer] * _unit(vector)


class AbstractLimit(eqx.Module):
    """Limit on the norm of a steered activation."""

    @abc.abstractmethod
    def __call__(
        self, before: Float[Array, "rows embed"], after: Float[Array, "rows embed"]
    ) -> Float[Array, "rows embed"]:
        """Return the activation that the model continues with."""


class SameNorm(AbstractLimit):
    r"""Every token keeps its norm: $h' \|h\| / \|h'\|$, like repeng's `normalize`."""

    def __call__(
        self, before: Float[Array, "rows embed"], after: Float[Array, "rows embed"]
    ) -> Float[Array, "rows embed"]:
        """Return the steered activation with its original norm."""
        return after * (_norm(before) / jnp.maximum(_norm(after), _least(after)))


class NoGrowth(AbstractLimit):
    r"""Tokens whose norm would grow keep it, as in CAST.

    Each token is treated separately here; the reference rescales a whole prompt if the
    norm of any of its tokens grows.
    """

    def __call__(
        self, before: Float[Array, "rows embed"], after: Float[Array, "rows embed"]
    ) -> Float[Array, "rows embed"]:
        """Return the steered activation, rescaled where its norm has grown."""
        ratio = _norm(before) / jnp.maximum(_norm(after), _least(after))
        return after * jnp.minimum(ratio, 1)


class Steer(AbstractEdit):
    r"""Adds steering vectors, each at its layer: $h_l \mapsto h_l + c\,s(h_l)\,v_l$.

    Activations in layers without a vector, and at tokens with strength 0, are bitwise
    unchanged. `Directions.steer` returns this edit; a sweep can vary `layer` and
    `coefficient`.

    Attributes:
        vectors: `[layer, embed]`, or `PerPrompt` of `[prompt, layer, embed]`.
        layers: index of the block of each vector.
        coefficient: strength `c`, a number or one per prompt, `PerPrompt`.
        scale: unit of the strength, the factor `s`.
        limit: limit on the norm after the addition, or `None`.

    Raises:
        ShapeError: the vectors' width differs from the site's, or a coefficient is not
            a number.
        SiteError: a layer that the model does not have, not one layer per vector, or a
            site outside blocks.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> edit = Steer(jnp.ones((1, 32)), [2], 0.5, scale=TokenNorm())
        >>> mijax.run(model, jnp.array([5, 6, 7]), edit.at("resid_post")).shape
        (3, 64)
    """

    vectors: Any
    layers: Int[Array, " layer"]
    coefficient: Any
    scale: AbstractScale
    limit: AbstractLimit | None

    def __init__(
        self,
        vectors: Any,
        layers: Any,
        coefficient: Any = 1.0,
        *,
        scale: AbstractScale = Raw(),  # noqa: B008 - a frozen value
        limit: AbstractLimit | None = None,
    ):
        each = isinstance(vectors, PerPrompt)
        self.vectors = vectors if each else reals(vectors, "Steering vectors")
        self.layers = jnp.asarray(layers, jnp.int32)
        each = isinstance(coefficient, PerPrompt)
        self.coefficient = coefficient if each else reals(coefficient, "A strength")
        self.scale, self.limit = scale, limit
        rank = self.coefficient.values.ndim - 1 if each else self.coefficient.ndim
        if rank:
            raise ShapeError(
                "A strength is a single number; for one per prompt, give "
                "mijax.PerPrompt([...])."
            )

    def check_operand(self, spec: Any, rows: range, batch: tuple[int, ...]) -> None:
        """Raise if the vectors or per-prompt operands do not fit the model or batch."""
        each = isinstance(self.vectors, PerPrompt)
        shape = self.vectors.values.shape[1:] if each else self.vectors.shape
        if len(spec.shape) != 3:
            raise SiteError(
                "Steering vectors have a layer: place them at a site in the blocks "
                "without a head axis, such as resid_post, or use mijax.Add."
            )
        layers = spec.shape[0]
        _check_width(shape, spec.shape[-1])
        used = known(self.layers)
        if used is not None:
            _check_layers(used, shape[0], layers)
        if each:
            check_per_prompt(self.vectors, "vector", batch)
        check_per_prompt(self.coefficient, "strength", batch)
        numbers = getattr(self.scale, "numbers", None)
        if numbers is not None and numbers.shape != (layers,):
            raise ShapeError(
                f"LayerNumber takes one number for each of {layers} layers, got shape "
                f"{numbers.shape}."
            )

    def __call__(self, x: Float[Array, "rows embed"], place: Any) -> Array:
        """Return the steered rows."""
        here = self.layers == place.layer
        row = jnp.argmax(here)
        if isinstance(self.vectors, PerPrompt):
            vector = place.fit(PerPrompt(jnp.asarray(self.vectors.values)[:, row]), x)
        else:
            # The verbs do not check operands of function models.
            _check_width(self.vectors.shape, x.shape[-1])
            vector = self.vectors[row]
        strength = place.each(self.coefficient, x)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        new = wide + strength * self.scale.step(wide, vector, place.layer)
        if self.limit is not None:
            new = self.limit(wide, new)
        # Adding 0 would still turn -0.0 into 0.0.
        return jnp.where(here.any() & (strength != 0), new.astype(x.dtype), x)


def _check_layers(used: Any, rows: int, layers: int) -> None:
    if used.shape != (rows,) or len(set(used.tolist())) < rows:
        raise SiteError(
            f"{rows} steering vectors need {rows} different layers, got "
            f"{used.tolist()}."
        )
    outside = [layer for layer in used.tolist() if not 0 <= layer < layers]
    if outside:
        raise SiteError(
            f"There is a steering vector for layer {outside[0]}, and the model has "
            f"layers 0 to {layers - 1}: count from 0, in the model it was made for."
        )


def _check_width(shape: tuple[int, ...], size: int) -> None:
    if len(shape) != 2 or shape[-1] != size:
        raise ShapeError(
            f"The steering vectors have shape {shape}, and the site width {size}: "
            "they were made for another model or site."
        )


def _norm(x: Array) -> Array:
    return jnp.linalg.norm(x, axis=-1, keepdims=True)


def _least(x: Array) -> float:
    return float(jnp.finfo(x.dtype).tiny)


def _unit(vector: Array) -> Array:
    norm = _norm(vector)
    return vector / jnp.where(norm == 0, 1, norm)
