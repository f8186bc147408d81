"""Activations made of known features: what a dictionary is to find."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mijax._errors import ConfigError
from mijax.data import AbstractSource, Batch


class PlantedFeatures(AbstractSource):
    r"""Sums of a few known directions: $x = \sum_i c_i d_i + \mathrm{offset}$.

    Each coefficient is 0 but with probability `density`, and then uniform in
    `[low, 1)`. Batch after batch is drawn anew.

    Args:
        features: the directions, `[feature, embed]`.
        batch: examples of a batch.
        density: chance that a feature is there; one for all, or one each.
        low: least coefficient of a feature that is there.
        offset: added to every example, `[embed]`; 0 by default.
        seed: of the coefficients.

    Raises:
        ConfigError: a density that is no probability.

    Examples:
        >>> features = unit_directions(jax.random.key(0), 20, 8)
        >>> source = PlantedFeatures(features, batch=4, density=0.1)
        >>> state, batch = source.batch(source.start())
        >>> batch.x.shape
        (4, 8)
    """

    features: Float[Array, "feature embed"]
    density: Float[Array, " *feature"]
    offset: Float[Array, " embed"]
    rows: int = eqx.field(static=True)
    low: float = eqx.field(static=True)
    seed: int = eqx.field(static=True)

    def __init__(
        self,
        features: Any,
        *,
        batch: int,
        density: Any,
        low: float = 0.0,
        offset: Any = None,
        seed: int = 0,
    ):
        self.features = jnp.asarray(features)
        self.density = jnp.asarray(density, jnp.float32)
        zeros = jnp.zeros(self.features.shape[1])
        self.offset = zeros if offset is None else jnp.asarray(offset)
        self.rows, self.low, self.seed = batch, low, seed
        if not bool(jnp.all((self.density > 0) & (self.density <= 1))):
            raise ConfigError(
                f"A density is a probability above 0, got {density}: give one up to 1."
            )

    def start(self) -> Int[Array, ""]:
        """Returns how many batches have been given: none."""
        return jnp.int32(0)

    def batch(self, state: Int[Array, ""]) -> tuple[Int[Array, ""], Batch]:
        """Returns the next batch."""
        return state + 1, Batch(_draw(self, state)[0])

    def coefficients(self, state: Int[Array, ""]) -> Float[Array, "batch feature"]:
        """Returns what the batch at a state is made of."""
        return _draw(self, state)[1]


@eqx.filter_jit
def _draw(source: PlantedFeatures, state: Int[Array, ""]) -> Any:
    """Draws examples, and what they are made of."""
    key = jax.random.fold_in(jax.random.key(source.seed), state)
    one, other = jax.random.split(key)
    shape = (source.rows, source.features.shape[0])
    there = jax.random.uniform(one, shape) < source.density
    sizes = jax.random.uniform(other, shape, minval=source.low, maxval=1.0)
    found = jnp.where(there, sizes, 0)
    return found @ source.features + source.offset, found


def unit_directions(
    key: PRNGKeyArray, features: int, embed: int
) -> Float[Array, "feature embed"]:
    """Draws directions, uniform on the sphere.

    Args:
        key: random.
        features: how many.
        embed: size of each.

    Returns:
        Rows of length 1.

    Examples:
        >>> unit_directions(jax.random.key(0), 20, 8).shape
        (20, 8)
    """
    drawn = jax.random.normal(key, (features, embed))
    return drawn / jnp.linalg.norm(drawn, axis=1, keepdims=True)
