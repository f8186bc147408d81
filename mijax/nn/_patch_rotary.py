"""Rotary positions of patches in two dimensions."""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class PatchRotary(eqx.Module):
    """Rotary positions of a grid of patches (DINOv3, arXiv:2508.10104).

    The center of patch row `r` out of `rows` has the coordinate
    `y = 2 (r + 1/2) / rows - 1`, and its column the coordinate `x`. Pair `i` of the
    `head_dim / 2` pairs is features `i` and `i + head_dim / 2`; it rotates by
    `2 pi y theta ** (-4 i / head_dim)` in the first half of the pairs, and the second
    half repeats these frequencies with `x`. Tokens before the patches do not rotate.

    Attributes:
        theta: base of the frequencies.
        prefix: number of tokens before the patches.
        rows: rows of the grid.
        columns: columns of the grid.

    Examples:
        >>> import jax.numpy as jnp, mijax
        >>> rotary = mijax.nn.PatchRotary(theta=100.0, prefix=1, rows=1, columns=2)
        >>> x = jnp.ones((3, 1, 4))
        >>> rotary(x, jnp.arange(3))[:, 0].round(3).tolist()[0]  # the class token
        [1.0, 1.0, 1.0, 1.0]
    """

    theta: float = eqx.field(static=True)
    prefix: int = eqx.field(static=True)
    rows: int = eqx.field(static=True)
    columns: int = eqx.field(static=True)

    def __call__(
        self,
        x: Float[Array, "*lane rows heads head_dim"],
        position: Int[Array, " rows"],
    ) -> Float[Array, "*lane rows heads head_dim"]:
        """Rotate each row by the place of its patch."""
        half = x.shape[-1] // 2
        frequency = self.theta ** -(jnp.arange(half // 2) / (half // 2))
        patch = position - self.prefix
        places = (
            (patch // self.columns, self.rows),
            (patch % self.columns, self.columns),
        )
        angle = jnp.concatenate(
            [
                2 * math.pi * ((2 * at + 1) / count - 1)[:, None] * frequency
                for at, count in places
            ],
            axis=-1,
        )
        angle = jnp.where((patch >= 0)[:, None], angle, 0.0)
        cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
        first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        rotated = (first * cos - second * sin, second * cos + first * sin)
        return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
