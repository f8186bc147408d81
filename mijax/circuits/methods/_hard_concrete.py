r"""Gates that are exactly 0 or 1 most of the time, and differentiable (Louizos 2018).

A hard concrete gate (arXiv:1712.01312) stretches a relaxed coin and clips it:

    s = sigmoid((log u - log(1 - u) + log_alpha) / beta),   u uniform in (0, 1)
    z = clip(s (zeta - gamma) + gamma, 0, 1)

with the paper's `beta = 2/3`, `gamma = -0.1`, `zeta = 1.1`. Gradients flow to
`log_alpha` where `z` is neither 0 nor 1.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
# The chance that a gate is not 0 is sigmoid(log_alpha + SHIFT).
SHIFT = -BETA * math.log(-GAMMA / ZETA)


def sample(
    log_alpha: Float[Array, "*gate"], key: PRNGKeyArray
) -> Float[Array, "*gate"]:
    """Draws every gate once."""
    noise = jax.random.logistic(key, log_alpha.shape, log_alpha.dtype)
    return stretched(jax.nn.sigmoid((noise + log_alpha) / BETA))


def value(log_alpha: Float[Array, "*gate"]) -> Float[Array, "*gate"]:
    """Returns the gates that are used once learning is over."""
    return stretched(jax.nn.sigmoid(log_alpha))


def stretched(s: Float[Array, "*gate"]) -> Float[Array, "*gate"]:
    """Stretches from (0, 1) to (gamma, zeta) and clips to [0, 1]."""
    return jnp.clip(s * (ZETA - GAMMA) + GAMMA, 0, 1)


def expected_l0(log_alpha: Float[Array, "*gate"]) -> Float[Array, "*gate"]:
    """Returns the chance that each gate is not 0; the sum is the expected L0 norm."""
    return jax.nn.sigmoid(log_alpha + SHIFT)


def log_alpha_of(gate: float) -> float:
    """Returns the parameter whose gate `value` is a number between 0 and 1."""
    p = (gate - GAMMA) / (ZETA - GAMMA)
    return math.log(p / (1 - p))
