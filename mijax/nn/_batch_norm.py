"""Batch normalization in inference form."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class BatchNorm(eqx.Module):
    r"""$\gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$ for each channel.

    The inference form of Ioffe and Szegedy 2015, arXiv:1502.03167: a fixed affine map
    by running statistics, without state. Training needs another module.

    Attributes:
        weight: $\gamma$, one number per channel.
        bias: $\beta$.
        mean: $\mu$, the running mean.
        variance: $\sigma^2$, the running variance.
        eps: $\epsilon$.

    Examples:
        >>> norm = BatchNorm.identity(2)
        >>> norm(jnp.ones((2, 3, 3))).shape
        (2, 3, 3)
    """

    weight: Float[Array, " channel"]
    bias: Float[Array, " channel"]
    mean: Float[Array, " channel"]
    variance: Float[Array, " channel"]
    eps: float = eqx.field(static=True, default=1e-5)

    @classmethod
    def identity(cls, channels: int, dtype: DTypeLike = jnp.float32) -> "BatchNorm":
        """Return a norm of mean 0, variance 1, weight 1 and bias 0."""
        zeros, ones = jnp.zeros(channels, dtype), jnp.ones(channels, dtype)
        return cls(ones, zeros, zeros, ones)

    def __call__(
        self, x: Float[Array, "channel *space"]
    ) -> Float[Array, "channel *space"]:
        """Normalize each channel of one example."""
        scale = self.weight * jax.lax.rsqrt(self.variance + self.eps)
        shift = self.bias - self.mean * scale
        column = (-1, *(1,) * (x.ndim - 1))
        return x * scale.reshape(column) + shift.reshape(column)
