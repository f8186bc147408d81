"""Dead latents, given new work."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from mijax.dictionaries._wiring import over_embed

ENCODER_SHARE = 0.2


def resampled(
    training: Any,
    params: Any,
    optimiser: Any,
    memory: Any,
    dead: Bool[Array, " latent"],
    batch: Any,
    key: PRNGKeyArray,
) -> tuple[Any, Any]:
    """Points dead latents at examples that are restored badly (Bricken et al. 2023).

    Examples are drawn in proportion to the square of their squared error. A dead
    latent's decoder becomes the direction of its example's output from the centre, its
    encoder that of the input at a fifth of the mean length of the others (of 1 if there
    are none), its bias 0, and its moments in the optimiser 0.

    Args:
        training: how the dictionary is trained.
        params: what is learned.
        optimiser: its state.
        memory: what is carried along.
        dead: which latents are replaced.
        batch: examples.
        key: random.

    Returns:
        Parameters and optimiser state.
    """
    weights, wiring = params.weights, training.wiring
    x, y = training.scaled(batch)
    out = training.dictionary(params, memory)(batch.x) * over_embed(training.scale)
    error = (wiring.flat(y - out) ** 2).sum(1)
    drawn = jax.random.categorical(key, 2 * jnp.log(error + 1e-12), shape=dead.shape)
    away = directions(wiring.flat(y)[drawn] - weights.centre)
    lengths = jnp.linalg.norm(weights.encoder, axis=1)
    alive = jnp.where(dead, 0, lengths).sum() / jnp.maximum((~dead).sum(), 1)
    length = jnp.where(dead.all(), 1, alive)
    reads = directions(wiring.read(weights, x[drawn])) * ENCODER_SHARE * length
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


def directions(rows: Float[Array, "latent size"]) -> Float[Array, "latent size"]:
    """Gives each row the length 1; a row of 0 stays."""
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
