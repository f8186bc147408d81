"""Representation finetuning: small trained edits at one layer."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from mijax._errors import ConfigError, ShapeError
from mijax.core import AbstractEdit, Add
from mijax.steering._directions import Directions


class AbstractTrained(AbstractEdit):
    """An edit with trained arrays that changes each token independently."""

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """Width of the site that it fits."""

    def check_operand(self, spec: Any, rows: range, batch: tuple[int, ...]) -> None:
        """Raise if the site's width differs from the edit's."""
        if spec.shape[-1] != self.width:
            raise ShapeError(
                f"{type(self).__name__} has width {self.width}, and the site "
                f"{spec.shape[-1]}: it was trained for another model or site."
            )


class LoReFT(AbstractTrained):
    r"""Low-rank representation finetuning: $h + R^\top (W h + b - R h)$.

    `R` has orthonormal rows, from the QR decomposition of `free` with signs that make
    the diagonal of the triangular factor positive. With $W = 0$, the projection of `h`
    on the rows of `R` is set to `b`; with $W = R$ and $b = 0$, nothing changes.

    Attributes:
        free: free parameters of `R`.
        weight: `W`.
        bias: `b`.

    Examples:
        >>> edit = LoReFT.start(jax.random.key(0), width=32, rank=4)
        >>> rows = edit.rotation()
        >>> bool(jnp.allclose(rows @ rows.T, jnp.eye(4), atol=1e-5))
        True

    Source: Wu et al. 2024, arXiv:2404.03592.
    """

    free: Float[Array, "rank embed"]
    weight: Float[Array, "rank embed"]
    bias: Float[Array, " rank"]

    @classmethod
    def start(cls, key: PRNGKeyArray, *, width: int, rank: int) -> "LoReFT":
        """Draw the parameters before training.

        Raises:
            ConfigError: a rank below 1 or above the width.
        """
        first, second = _two(key, width, rank)
        return cls(first, second / jnp.sqrt(width), jnp.zeros(rank))

    @property
    def width(self) -> int:
        """Width of the site that it fits."""
        return self.free.shape[-1]

    def rotation(self) -> Float[Array, "rank embed"]:
        """Return `R`."""
        q, r = jnp.linalg.qr(self.free.T)
        sign = jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0)
        return (q * sign).T

    def __call__(self, x: Float[Array, "rows embed"], place: Any) -> Array:
        """Return the edited rows."""
        rotation, wide = self.rotation(), x.astype(jnp.float32)
        target = wide @ self.weight.T + self.bias
        step = (target - wide @ rotation.T) @ rotation
        return (wide + step).astype(x.dtype)


class DiReFT(AbstractTrained):
    r"""Representation finetuning without a projection: $h + W_2^\top (W_1 h + b)$.

    Attributes:
        down: `W_1`.
        up: `W_2`, initialized to zero, so the untrained edit changes nothing.
        bias: `b`.

    Examples:
        >>> edit = DiReFT.start(jax.random.key(0), width=32, rank=4)
        >>> edit.up.shape
        (4, 32)

    Source: Wu et al. 2024, arXiv:2404.03592.
    """

    down: Float[Array, "rank embed"]
    up: Float[Array, "rank embed"]
    bias: Float[Array, " rank"]

    @classmethod
    def start(cls, key: PRNGKeyArray, *, width: int, rank: int) -> "DiReFT":
        """Draw the parameters before training.

        Raises:
            ConfigError: a rank below 1 or above the width.
        """
        first, second = _two(key, width, rank)
        return cls(first / jnp.sqrt(width), 0 * second, jnp.zeros(rank))

    @property
    def width(self) -> int:
        """Width of the site that it fits."""
        return self.down.shape[-1]

    def __call__(self, x: Float[Array, "rows embed"], place: Any) -> Array:
        """Return the edited rows."""
        wide = x.astype(jnp.float32)
        step = (wide @ self.down.T + self.bias) @ self.up
        return (wide + step).astype(x.dtype)


def _two(key: PRNGKeyArray, width: int, rank: int) -> tuple[Array, Array]:
    if not 1 <= rank <= width:
        raise ConfigError(f"The rank must be 1 to {width}, the width, got {rank}.")
    one, other = jax.random.split(key)
    shape = (rank, width)
    return jax.random.normal(one, shape), jax.random.normal(other, shape)


def top_latents(
    latents: Float[Array, "*prompt seq"], k: int
) -> tuple[Float[Array, "*prompt"], Float[Array, "*prompt seq"]]:
    """Return the mean of the `k` largest latents in each prompt, and the others.

    Args:
        latents: latents of the tokens, 0 where a token does not count.
        k: number of latents in the mean.

    Returns:
        The means, and the latents with the `k` largest set to 0.
    """
    k = min(k, latents.shape[-1])
    values, index = jax.lax.top_k(latents, k)
    chosen = jax.nn.one_hot(index, latents.shape[-1]).sum(-2)
    return values.mean(-1), jnp.where(chosen > 0, 0, latents)


class ReFTr1(eqx.Module):
    r"""One direction that both detects and steers a concept.

    The latent of a token is $z_t = \mathrm{ReLU}(h_t^\top v)$; the score of a text is
    $\max_t z_t$ over all tokens but the first.

    Attributes:
        vector: `v`, with norm 1.
        layer: index of the block.
        site: name of the site.
        largest: largest latent in the concept's training texts.

    Source: AxBench, Wu et al. 2025, arXiv:2501.17148.
    """

    vector: Float[Array, " embed"]
    layer: int = eqx.field(static=True)
    site: str = eqx.field(static=True)
    largest: Float[Array, ""]

    def at(self, site: str, *, layer: int, position: Any = None) -> Any:
        """Return a placed edit that adds `largest` times the vector."""
        return Add(self.largest * self.vector).at(site, layer=layer, position=position)

    def directions(self) -> Directions:
        """Return the vector times the largest latent, so strengths match AxBench's.

        AxBench tries 14 factors from 0.2 to 5 on one half of the instructions and
        scores the best factor on the other half.
        """
        return Directions(
            (self.largest * self.vector)[None],
            layers=[self.layer],
            site=self.site,
            method="ReFT-r1",
        )
