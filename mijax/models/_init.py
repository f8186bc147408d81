"""Random weights and fresh norms, shared by the families."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from mijax._errors import ConfigError
from mijax.nn import LayerNorm, RMSNorm


class Normal:
    """Normal draws; each call takes the next key.

    Args:
        key: seed of all draws.
        dtype: precision of the arrays.
    """

    def __init__(self, key: PRNGKeyArray, dtype: DTypeLike) -> None:
        self.keys = iter(jax.random.split(key, 32))
        self.dtype = dtype

    def __call__(self, *shape: int, scale: float = 0.02) -> Float[Array, "..."]:
        """Draws one array of a standard deviation."""
        return scale * jax.random.normal(next(self.keys), shape, self.dtype)


def check_dtype(dtype: DTypeLike) -> None:
    """Refuses what is no dtype of floating-point numbers."""
    try:
        known = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    except TypeError:
        known = False
    if not known:
        raise ConfigError(
            f"dtype={dtype!r} is no precision of weights: give 'float32', 'bfloat16' "
            "or 'float16'."
        )


def layer_norm(
    embed: int, dtype: DTypeLike, eps: float, *, layers: int | None = None
) -> LayerNorm:
    """A LayerNorm that only normalises yet, one or one per layer."""
    shape = (embed,) if layers is None else (layers, embed)
    return LayerNorm(jnp.ones(shape, dtype), jnp.zeros(shape, dtype), eps)


def rms_norm(
    embed: int, dtype: DTypeLike, eps: float, *, layers: int | None = None
) -> RMSNorm:
    """An RMSNorm that only normalises yet, one or one per layer."""
    shape = (embed,) if layers is None else (layers, embed)
    return RMSNorm(jnp.ones(shape, dtype), eps)
