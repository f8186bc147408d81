"""The part of an activation that a site asks for."""

import jax.numpy as jnp
from jaxtyping import Array

from mijax.core._sites import Site


def part(value: Array, site: Site, prompt: Array | None) -> Array:
    """Selects a site's position, head and feature from one layer's activation."""
    if site.feature is not None:
        value = jnp.take(value, site.feature, axis=-1)
    if site.head is not None:
        value = jnp.take(value, site.head, axis=1)
    if site.position is not None:
        position = site.position
        if position.ndim:
            span = position.ndim == 2
            position = position[0] if span or prompt is None else position[prompt]
        return jnp.take(value, position, axis=0)
    return value
