"""Activations of a gated MLP whose factors are clamped (gpt-oss)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class ClampedSwish(eqx.Module):
    r"""$y \sigma(\alpha y)$ with $y = \min(x, c)$.

    Attributes:
        limit: $c$.
        slope: $\alpha$, the factor inside the sigmoid.

    Examples:
        >>> round(float(ClampedSwish(limit=7.0, slope=1.702)(jnp.array(9.0))), 4)
        7.0
    """

    limit: float = eqx.field(static=True)
    slope: float = eqx.field(static=True)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Applies the activation."""
        x = jnp.minimum(x, self.limit)
        return x * jax.nn.sigmoid(self.slope * x)


class ClampedShift(eqx.Module):
    r"""$\min(\max(x, -c), c) + 1$.

    Attributes:
        limit: $c$.

    Examples:
        >>> float(ClampedShift(limit=7.0)(jnp.array(-9.0)))
        -6.0
    """

    limit: float = eqx.field(static=True)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Clamps and shifts."""
        return jnp.clip(x, -self.limit, self.limit) + 1
