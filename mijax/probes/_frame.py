"""The mean and scale of inputs, and inputs that are sequences."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Sequences(eqx.Module):
    """Inputs of which every example is a sequence of tokens.

    Attributes:
        x: `[*probe, example, seq, feature]`.
        mask: which tokens are real, `[example, seq]` (`prompts.mask`).

    Examples:
        >>> inputs = Sequences(jnp.ones((6, 10, 4, 16)), jnp.ones((10, 4), bool))
        >>> inputs.x.shape
        (6, 10, 4, 16)
    """

    x: Float[Array, "*probe example seq feature"] = eqx.field(converter=jnp.asarray)
    mask: Bool[Array, "*lead examples tokens"] = eqx.field(converter=jnp.asarray)


class Frame(NamedTuple):
    """Inputs are fitted as `(x - mean) / scale`."""

    mean: Float[Array, "*probe feature"]
    scale: Float[Array, "*probe feature"]

    def enter(
        self, x: Float[Array, "... feature"] | Sequences
    ) -> Float[Array, "... feature"] | Sequences:
        """Returns standardised inputs."""
        if isinstance(x, Sequences):
            inside = (x.x - self.mean) / self.scale
            return Sequences(jnp.where(x.mask[..., None], inside, 0.0), x.mask)
        return (x - self.mean) / self.scale


def per_feature(
    x: Float[Array, "example feature"] | Sequences, weight: Float[Array, " example"]
) -> Frame:
    """Gives every feature mean 0 and standard deviation 1; constant ones become 0."""
    mean, variance = _moments(x, weight)
    return Frame(mean, jnp.sqrt(jnp.where(variance > _noise(mean), variance, 1.0)))


def one_scale(
    x: Float[Array, "example feature"] | Sequences, weight: Float[Array, " example"]
) -> Frame:
    """Gives every feature mean 0, and all of them one scale, which keeps angles."""
    mean, variance = _moments(x, weight)
    total = variance.mean()
    scale = jnp.sqrt(jnp.where(total > 0, total, 1.0))
    return Frame(mean, jnp.broadcast_to(scale, mean.shape))


def _moments(
    x: Float[Array, "example feature"] | Sequences, weight: Float[Array, " example"]
) -> tuple[Float[Array, " feature"], Float[Array, " feature"]]:
    """Mean and variance over examples, or over real tokens; two passes."""
    if isinstance(x, Sequences):
        tokens = weight[:, None] * x.mask
        tokens = tokens / tokens.sum()
        mean = jnp.einsum("et,etf->f", tokens, x.x)
        return mean, jnp.einsum("et,etf->f", tokens, (x.x - mean) ** 2)
    mean = weight @ x
    return mean, weight @ (x - mean) ** 2


def _noise(mean: Float[Array, " feature"]) -> Float[Array, " feature"]:
    """The variance that a constant feature seems to have, by rounding."""
    return (1e-6 * mean) ** 2
