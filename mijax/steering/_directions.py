"""`Directions`: steering vectors for several layers, with their origin."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from mijax._errors import ConfigError, ShapeError, SiteError
from mijax.core.internal import cut, integers, reals
from mijax.steering._steer import AbstractLimit, AbstractScale, Raw, Steer


class Directions(eqx.Module):
    """One steering vector per layer, at one site.

    Layers count from 0, and layer `l` of `resid_post` is the output of block `l`, which
    is also the input of block `l + 1`.

    Attributes:
        vectors: one row per layer.
        layers: index of the block of each row.
        site: name of the site where the vectors were read and are added.
        method: name of the method that produced them.
        norm: convention for their norms: `"raw"` as returned by the method, `"unit"`,
            or `"shared"` after `share_norms`.

    Raises:
        ShapeError: vectors that are not `[layer, embed]`, or not finite.
        SiteError: the number of layers and rows differs, or a layer occurs twice.

    Examples:
        >>> made = Directions(jnp.ones((2, 32)), layers=[1, 2])
        >>> made.vector(2).shape, made.site
        ((32,), 'resid_post')
    """

    vectors: Float[Array, "layer embed"]
    layers: tuple[int, ...] = eqx.field(static=True)
    site: str = eqx.field(static=True)
    method: str = eqx.field(static=True)
    norm: str = eqx.field(static=True)

    def __init__(
        self,
        vectors: Any,
        *,
        layers: Sequence[int],
        site: str = "resid_post",
        method: str = "given",
        norm: str = "raw",
    ):
        self.vectors = reals(vectors, "Steering vectors")
        found = np.asarray(integers(layers, "A layer")).reshape(-1)
        self.layers = tuple(int(layer) for layer in found)
        self.site, self.method, self.norm = site, method, norm

    def __check_init__(self):
        """Raise if vectors and layers do not match."""
        if self.vectors.ndim != 2:
            raise ShapeError(
                f"Expected steering vectors [layer, embed], got {self.vectors.shape}."
            )
        rows = self.vectors.shape[0]
        distinct = len(set(self.layers)) == rows == len(self.layers)
        if not distinct or not rows or min(self.layers) < 0:
            raise SiteError(
                f"{rows} vectors need {rows} different layers, counted from 0, got "
                f"{list(self.layers)}."
            )
        known = not isinstance(self.vectors, Tracer)
        if known and not np.isfinite(np.asarray(self.vectors, np.float32)).all():
            raise ShapeError("Steering vectors must be finite, got NaN or infinity.")

    def __repr__(self) -> str:
        rows, size = self.vectors.shape
        name = f"layer {self.layers[0]}" if rows == 1 else f"{rows} layers"
        made = f"{self.method}, norm {self.norm}"
        return cut(f"Directions({name} of {self.site}, width {size}, {made})")

    def vector(self, layer: int) -> Float[Array, " embed"]:
        """Return the vector of one layer.

        Raises:
            SiteError: a layer without a vector.
        """
        return self.vectors[self._row(layer)]

    def at_layers(self, layers: Sequence[int]) -> "Directions":
        """Return the vectors of some layers only.

        Raises:
            SiteError: a layer without a vector.
        """
        rows = np.array([self._row(layer) for layer in layers], int)
        return self._with(self.vectors[rows], layers=tuple(layers))

    def _row(self, layer: int) -> int:
        if layer not in self.layers:
            raise SiteError(
                f"Layer {layer} has no vector; layers with one are {list(self.layers)}."
            )
        return self.layers.index(layer)

    def norms(self) -> Float[Array, " layer"]:
        """Return the Euclidean norm of each vector."""
        return jnp.linalg.norm(self.vectors, axis=-1)

    def unit(self) -> "Directions":
        """Return the vectors divided by their norms; a zero vector stays zero."""
        norms = self.norms()[:, None]
        unit = self.vectors / jnp.where(norms == 0, 1, norms)
        return self._with(unit, norm="unit")

    def scaled(self, factor: Any) -> "Directions":
        """Return the vectors times a number, or times one number per layer.

        Raises:
            ShapeError: other numbers of factors.
        """
        factor = reals(factor, "A factor")
        if factor.shape not in ((), (len(self.layers),)):
            raise ShapeError(
                f"A factor is one number, or one for each of {len(self.layers)} layers,"
                f" got shape {factor.shape}."
            )
        factor = factor[:, None] if factor.ndim else factor
        return self._with(self.vectors * factor, norm="raw")

    def random(self, key: PRNGKeyArray) -> "Directions":
        """Return random directions with the same norms, as a control.

        Args:
            key: random key.

        Returns:
            Vectors with directions drawn uniformly from the sphere.
        """
        draw = jax.random.normal(key, self.vectors.shape, self.vectors.dtype)
        draw = draw / jnp.linalg.norm(draw, axis=-1, keepdims=True)
        made = self._with(draw * self.norms()[:, None])
        return Directions(
            made.vectors,
            layers=self.layers,
            site=self.site,
            method="random",
            norm=self.norm,
        )

    def _with(
        self, vectors: Any, *, layers: Sequence[int] | None = None, norm: str = ""
    ) -> "Directions":
        return Directions(
            vectors,
            layers=self.layers if layers is None else layers,
            site=self.site,
            method=self.method,
            norm=norm or self.norm,
        )

    def steer(
        self,
        coefficient: Any = 1.0,
        *,
        scale: AbstractScale = Raw(),  # noqa: B008 - a frozen value
        limit: AbstractLimit | None = None,
    ) -> Steer:
        """Return the edit that adds these vectors; place it with `.at`.

        Args:
            coefficient: strength, a number or `PerPrompt`.
            scale: unit of the strength.
            limit: limit of the norm after the addition.

        Returns:
            The edit.
        """
        layers = jnp.asarray(self.layers, jnp.int32)
        return Steer(self.vectors, layers, coefficient, scale=scale, limit=limit)

    def add(self, coefficient: Any = 1.0, *, position: Any = None, **how: Any) -> Any:
        """Return edits that add the vectors at their site, in all their layers.

        Args:
            coefficient: strength, a number or `PerPrompt`.
            position: token index, one index per prompt, or a slice, such as
                `after_prompt(prompts)`; every token by default.
            **how: `scale` and `limit`, as in `steer`.

        Returns:
            Placed edits, for `run`, `capture` and `generate`.

        Examples:
            >>> import mijax
            >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
            >>> made = Directions(jnp.ones((2, 32)), layers=[1, 2])
            >>> tokens = jnp.array([[5, 6, 7], [8, 9, 10]])
            >>> strengths = mijax.PerPrompt([0.0, 2.0])  # the first is not steered
            >>> steered = mijax.run(model, tokens, made.add(strengths))
            >>> (steered != mijax.run(model, tokens)).any((1, 2)).tolist()
            [False, True]
        """
        return self.steer(coefficient, **how).at(self.site, position=position)


def share_norms(several: Sequence[Directions]) -> list[Directions]:
    """Rescale the vectors of several behaviors to their mean norm in each layer.

    This is CAA's convention: a strength then means the same for every behavior.

    Args:
        several: directions with the same site, layers and width.

    Returns:
        The rescaled directions, in order.

    Raises:
        ConfigError: directions from different sites or layers, or none.

    Examples:
        >>> one = Directions(jnp.array([[3.0, 0.0]]), layers=[0])
        >>> two = Directions(jnp.array([[0.0, 1.0]]), layers=[0])
        >>> [d.vectors.tolist() for d in share_norms([one, two])]
        [[[2.0, 0.0]], [[0.0, 2.0]]]

    Source: Rimsky et al. 2024, arXiv:2312.06681, `normalize_vectors.py`.
    """
    kinds = {(d.site, d.layers, d.vectors.shape) for d in several}
    if len(kinds) != 1:
        raise ConfigError(
            "share_norms takes directions with the same site, layers and width, got "
            f"{len(kinds)} different combinations."
        )
    mean = jnp.stack([d.norms() for d in several]).mean(0)
    return [d._with(d.unit().vectors * mean[:, None], norm="shared") for d in several]
