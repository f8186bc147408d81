"""Features that are mostly absent, for many models at once."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import ConfigError
from mijax.data import AbstractSource, Batch


class SparseFeatures(AbstractSource):
    r"""Features that are 0 but with probability $p$, and then uniform in $[0, 1)$.

    Batch after batch is drawn anew. Random numbers cost more than a small model, so
    instances turn the same uniform numbers $u$, each by random angles $s$ of its own,
    $t = (u + s) \bmod 1$, and a feature is $t / p$ where $t < p$. Features and examples
    of one instance are independent, with exactly the distribution above; so are any
    two numbers of different instances, though not more than two.

    Args:
        density: $p$, `[instance, feature]`.
        batch: examples of a batch.
        seed: of the features; may be traced.

    Raises:
        ConfigError: a density that is no probability above 0.

    Examples:
        >>> source = SparseFeatures(jnp.full((3, 5), 0.1), batch=8)
        >>> state, batch = source.batch(source.start())
        >>> batch.x.shape
        (8, 3, 5)
    """

    density: Float[Array, "instance feature"]
    seed: Int[Array, ""]
    rows: int = eqx.field(static=True)

    def __init__(self, density: Any, *, batch: int, seed: Any = 0):
        p = np.asarray(density, np.float32)
        self.density = jnp.asarray(p)
        self.seed = jnp.asarray(seed, jnp.int32)
        self.rows = batch
        if not ((p > 0) & (p <= 1)).all():
            raise ConfigError(
                f"A density is a probability above 0, got some from {p.min():g} to "
                f"{p.max():g}."
            )

    def start(self) -> Int[Array, ""]:
        """Returns how many batches have been given: none."""
        return jnp.int32(0)

    def batch(self, state: Int[Array, ""]) -> tuple[Int[Array, ""], Batch]:
        """Returns the next batch, `x` of `[batch, instance, feature]`."""
        return _draw(self, state)


@eqx.filter_jit
def _draw(
    source: SparseFeatures, state: Int[Array, ""]
) -> tuple[Int[Array, ""], Batch]:
    key = jax.random.fold_in(jax.random.key(source.seed), state)
    one, other = jax.random.split(key)
    features = source.density.shape[1]
    # Examples last: models of many instances want them there.
    shared = jax.random.uniform(one, (features, source.rows))
    turned = shared + jax.random.uniform(other, source.density.shape)[..., None]
    turned = jnp.where(turned >= 1, turned - 1, turned)
    p = source.density[..., None]
    x = jnp.where(turned < p, turned / p, 0)
    return state + 1, Batch(jnp.moveaxis(x, -1, 0))
