"""Dead latents, given new work."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PRNGKeyArray

from mijax.dictionaries._wiring import product

ENCODER_SHARE = 0.2


def resampled(
    training: Any,
    params: Any,
    optimiser: Any,
    dead: Bool[Array, " latent"],
    batch: Any,
    key: PRNGKeyArray,
) -> tuple[Any, Any]:
    """Points dead latents at examples that are restored badly (Bricken et al. 2023).

    Examples are drawn in proportion to the square of their squared error. A dead
    latent's decoder becomes the direction of its example from the centre, its encoder
    the same at a fifth of the mean length of the others, its bias 0, and its moments
    in the optimiser 0.

    Args:
        training: how the dictionary is trained.
        params: what is learned.
        optimiser: its state.
        dead: which latents are replaced.
        batch: examples.
        key: random.

    Returns:
        Parameters and optimiser state.
    """
    weights, wiring = params.weights, training.wiring
    x, y = batch.x * training.scale, batch.y * training.scale
    pre = wiring.pre(weights, x)
    latents = jax.nn.relu(pre)
    out = product(latents, wiring.rows(weights).T) + weights.centre
    error = ((wiring.flat(y) - out) ** 2).sum(1)
    drawn = jax.random.categorical(key, 2 * jnp.log(error + 1e-12), shape=dead.shape)
    away = wiring.flat(y)[drawn] - weights.centre
    away = away / jnp.maximum(jnp.linalg.norm(away, axis=1, keepdims=True), 1e-12)
    alive = jnp.linalg.norm(weights.encoder, axis=1)
    length = jnp.where(dead, 0, alive).sum() / jnp.maximum((~dead).sum(), 1)
    size = weights.encoder.shape[1]
    reads = away[:, :size] * ENCODER_SHARE * length
    new = eqx.tree_at(
        lambda p: (p.weights.encoder, p.weights.bias, p.weights.decoder),
        params,
        (
            jnp.where(dead[:, None], reads, weights.encoder),
            jnp.where(dead, 0, weights.bias),
            jnp.where(dead[:, None], away * training.norm, weights.decoder),
        ),
    )
    of_latents = (weights.encoder, weights.bias, weights.decoder)

    def clear(moment: Any, param: Any) -> Any:
        if not any(param is array for array in of_latents):
            return moment
        return jnp.where(dead.reshape(-1, *[1] * (moment.ndim - 1)), 0, moment)

    optimiser = optax.tree_utils.tree_map_params(
        training.optimiser(), clear, optimiser, params
    )
    return new, optimiser
