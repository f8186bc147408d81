"""What a dictionary is compared with: random directions, principal components."""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from mijax.dictionaries._dictionary import Dictionary, untrained
from mijax.dictionaries.architectures._topk import TopK

# Wider outputs have too many covariances.
WIDEST = 4096


class Components(eqx.Module):
    """Principal components in the form of a dictionary; every latent is active.

    Attributes:
        mean: of the activations.
        rows: components, `[latent, out]`, orthonormal.
    """

    mean: Float[Array, "*shape"]
    rows: Float[Array, "latent out"]

    def encode(self, x: Float[Array, "batch *shape"]) -> Float[Array, "batch latent"]:
        """Projects."""
        return (x - self.mean).reshape(x.shape[0], -1) @ self.rows.T

    def decode(
        self, latents: Float[Array, "batch latent"], x: Float[Array, "batch *shape"]
    ) -> Float[Array, "batch *shape"]:
        """Adds components to the mean."""
        return (latents @ self.rows).reshape(x.shape) + self.mean


def principal(
    mean: np.ndarray, products: np.ndarray, l0: float, shape: tuple[int, ...]
) -> Components:
    """Returns as many principal components as latents are active.

    Args:
        mean: of activations, `[out]`.
        products: sums of products of what is left of them, `[out, out]`.
        l0: active latents per example; rounded, one at least.
        shape: of an activation.
    """
    k = min(max(round(l0), 1), len(mean))
    _, vectors = np.linalg.eigh(products)
    rows = vectors[:, ::-1][:, :k].T
    return Components(jnp.float32(mean).reshape(shape), jnp.float32(rows))


def random_like(
    dictionary: Dictionary, mean: np.ndarray, l0: float, key: PRNGKeyArray
) -> Dictionary:
    """Returns a dictionary of the same wiring and size, with weights as drawn.

    It keeps the largest latents, as many as are active in the dictionary on average,
    and its bias is the mean of the outputs.
    """
    k = min(max(round(l0), 1), dictionary.latents)
    wiring = dictionary.wiring
    reads, writes = wiring.widths(dictionary.latents)
    return untrained(
        *(TopK(k), wiring),
        latents=dictionary.latents,
        key=key,
        tied=reads == writes and math.prod(wiring.reads) == reads,
        centre=jnp.float32(mean).reshape(wiring.writes),
    )
