"""Logistic regression of two classes, small enough for Newton's method."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

STEPS = 40
# Shares of a step that are tried; the best is taken, and none if all do harm.
TRIES = (1.0, 0.5, 0.2, 0.05, 0.0)


def balanced(positive: Bool[Array, " example"]) -> Float[Array, " example"]:
    """Returns weights of mean 1 under which both classes count the same."""
    share = positive.mean()
    return jnp.where(positive, 0.5 / share, 0.5 / (1 - share))


def logistic(
    x: Float[Array, "example feature"],
    positive: Bool[Array, " example"],
    weight: Float[Array, " example"],
    l2: Float[Array, ""],
) -> tuple[Float[Array, " feature"], Float[Array, ""]]:
    r"""Minimises $\sum_n a_n \ell_n + \tfrac{l_2}{2} \lVert w \rVert^2$.

    The penalty is that of features of variance 1; a feature without variance has no
    weight.

    Args:
        x: features.
        positive: which examples are of the class.
        weight: of examples.
        l2: penalty.

    Returns:
        Weights of the features as given, and the bias.
    """
    total = weight.sum()
    mean = weight @ x / total
    std = jnp.sqrt(weight @ (x - mean) ** 2 / total)
    scale = jnp.where(std > 0, 1 / jnp.where(std > 0, std, 1), 0)
    w, b = _newton((x - mean) * scale, positive.astype(x.dtype), weight, l2)
    w = w * scale
    return w, b - mean @ w


def _newton(
    x: Float[Array, "example feature"],
    target: Float[Array, " example"],
    weight: Float[Array, " example"],
    l2: Float[Array, ""],
) -> tuple[Float[Array, " feature"], Float[Array, ""]]:
    x = jnp.concatenate([x, jnp.ones((len(x), 1))], axis=1)
    # The bias is not penalised, but for what keeps its curvature above 0.
    penalty = jnp.full(x.shape[1], l2).at[-1].set(1e-6)

    def loss(w: Array) -> Array:
        z = x @ w
        return weight @ (jax.nn.softplus(z) - target * z) + 0.5 * penalty @ w**2

    def step(w: Array, _: None) -> tuple[Array, None]:
        p = jax.nn.sigmoid(x @ w)
        gradient = x.T @ (weight * (p - target)) + penalty * w
        hessian = x.T @ ((weight * p * (1 - p))[:, None] * x)
        ridge = penalty + 1e-6 * jnp.trace(hessian) / len(w)
        move = jnp.linalg.solve(hessian + jnp.diag(ridge), gradient)
        tries = jnp.array(TRIES)
        losses = jax.vmap(lambda t: loss(w - t * move))(tries)
        return w - tries[jnp.argmin(losses)] * move, None

    w, _ = jax.lax.scan(step, jnp.zeros(x.shape[1]), None, length=STEPS)
    return w[:-1], w[-1]
