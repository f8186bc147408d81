"""Solvers: damped Newton for softmax regression, L-BFGS for the rest."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from mijax.probes._probe import Solved

# Solvers stop here, below what counts as converged: Newton's last step is quadratic.
AIM = 1e-6
# Shares of a Newton step that are tried at once; the first that does not harm is taken.
TRIES = (1.0, 0.5, 0.2, 0.05, 0.01)
# Damping of the Hessian relative to its mean curvature: the least, and the end.
LEAST_DAMPING, MOST_DAMPING = 1e-6, 1e3
# L-BFGS ends after so many steps that improve neither loss nor gradient.
PATIENCE = 10


def losses(
    z: Float[Array, "... output"], y: Float[Array, "... output"]
) -> Float[Array, "..."]:
    """Cross-entropy in nats: of log odds where there is one output, else of logits."""
    if z.shape[-1] == 1:
        return (jax.nn.softplus(z) - y * z)[..., 0]
    return jax.nn.logsumexp(z, axis=-1) - (y * z).sum(-1)


class _Newton(NamedTuple):
    """State of `newton`."""

    w: Float[Array, "feature output"]
    z: Float[Array, "example output"]
    gradient: Float[Array, "feature output"]
    norm: Float[Array, ""]
    damping: Float[Array, ""]
    steps: Int[Array, ""]
    done: Array


def newton(
    x: Float[Array, "example feature"],
    y: Float[Array, "example output"],
    weight: Float[Array, " example"],
    penalty: Float[Array, " feature"],
    *,
    steps: int,
) -> Solved:
    r"""Minimises the regularised cross-entropy of a linear model by Newton's method.

    $\sum_n a_n\,\ell(x_n W, y_n) + \tfrac12 \sum_{dk} \lambda_d W_{dk}^2$. The Hessian
    is damped (Levenberg 1944): ten times less after a step that helps, a hundred times
    more after one that does not.

    Args:
        x: inputs, a column of ones among them.
        y: one-hot labels, or 0 and 1 in one column.
        weight: of the examples, `a`.
        penalty: of each input, `λ`.
        steps: at most so many.

    Returns:
        `W` and how far from optimal it is.
    """

    def gradient(w: Array, z: Array) -> Array:
        error = _probabilities(z) - y
        return x.T @ (weight[:, None] * error) + penalty[:, None] * w

    def value(w: Array, z: Array) -> Array:
        return weight @ losses(z, y) + 0.5 * (penalty[:, None] * w**2).sum()

    tries = jnp.array(TRIES)
    w = jnp.zeros((x.shape[1], y.shape[1]))
    z = jnp.zeros(y.shape)
    first = gradient(w, z)
    start = jnp.linalg.norm(first)

    def step(now: _Newton) -> _Newton:
        hessian = _hessian(x, weight, penalty, now.z)
        dw = -_damped_solve(hessian, now.damping, now.gradient)
        dz = x @ dw
        before = value(now.w, now.z)
        after = jax.vmap(lambda t: value(now.w + t * dw, now.z + t * dz))(tries)
        good = after <= before + 1e-6 * jnp.abs(before)
        t = tries[jnp.argmax(good)]
        w = jnp.where(good.any(), now.w + t * dw, now.w)
        z = jnp.where(good.any(), now.z + t * dz, now.z)
        g = gradient(w, z)
        norm = jnp.linalg.norm(g)
        damping = jnp.where(good.any(), now.damping / 10, now.damping * 100)
        rounding = (norm <= AIM * 100 * start) & (norm > 0.5 * now.norm)
        done = (norm <= AIM * start) | rounding | (damping > MOST_DAMPING)
        damping = jnp.maximum(damping, LEAST_DAMPING)
        return _Newton(w, z, g, norm, damping, now.steps + 1, done)

    begin = _Newton(
        *(w, z, first, start, jnp.array(LEAST_DAMPING), jnp.array(0)), start == 0
    )
    end = jax.lax.while_loop(lambda s: ~s.done & (s.steps < steps), step, begin)
    return Solved(end.w, relative(end.norm, start), end.steps)


def _probabilities(z: Float[Array, "example output"]) -> Array:
    return jax.nn.sigmoid(z) if z.shape[-1] == 1 else jax.nn.softmax(z, axis=-1)


def _hessian(
    x: Float[Array, "example feature"],
    weight: Float[Array, " example"],
    penalty: Float[Array, " feature"],
    z: Float[Array, "example output"],
) -> Float[Array, "size size"]:
    """Second derivatives, features before outputs on both axes."""
    p = _probabilities(z)
    d, k = x.shape[1], z.shape[1]
    if k == 1:
        return x.T @ (weight[:, None] * p * (1 - p) * x) + jnp.diag(penalty)
    same = jnp.einsum("ef,ek,eg->kfg", x, weight[:, None] * p, x)
    same = same + jnp.diag(penalty)
    scaled = (jnp.sqrt(weight)[:, None, None] * x[:, :, None] * p[:, None]).reshape(
        len(x), d * k
    )
    blocks = jnp.einsum("kde,kj->dkej", same, jnp.eye(k)).reshape(d * k, d * k)
    return blocks - scaled.T @ scaled


def _damped_solve(
    hessian: Float[Array, "size size"],
    damping: Float[Array, ""],
    gradient: Float[Array, "feature output"],
) -> Float[Array, "feature output"]:
    size = len(hessian)
    extra = damping * jnp.trace(hessian) / size
    factor = jax.scipy.linalg.cho_factor(hessian + extra * jnp.eye(size), lower=True)
    return jax.scipy.linalg.cho_solve(factor, gradient.reshape(-1)).reshape(
        gradient.shape
    )


def lbfgs(loss: Callable[[Any], Array], start: Any, *, steps: int) -> Solved:
    """Minimises a smooth function by L-BFGS (Liu and Nocedal 1989).

    Args:
        loss: of a tree of arrays.
        start: where it begins.
        steps: at most so many.

    Returns:
        The parameters and how far from optimal they are.
    """
    search = optax.scale_by_zoom_linesearch(
        max_linesearch_steps=15, initial_guess_strategy="one"
    )
    optimiser = optax.lbfgs(memory_size=10, linesearch=search)
    value_and_gradient = optax.value_and_grad_from_state(loss)
    first = _norm(jax.grad(loss)(start))

    def step(now: tuple[Any, ...]) -> tuple[Any, ...]:
        params, state, _, best, idle, i = now
        value, gradient = value_and_gradient(params, state=state)
        updates, state = optimiser.update(
            gradient, state, params, value=value, grad=gradient, value_fn=loss
        )
        params = optax.apply_updates(params, updates)
        norm = _norm(optax.tree.get(state, "grad"))
        change = value - optax.tree.get(state, "value")
        better = (change > 1e-6 * jnp.abs(value)) | (norm < 0.9 * best)
        idle = jnp.where(better, 0, idle + 1)
        return params, state, norm, jnp.minimum(best, norm), idle, i + 1

    def going(now: tuple[Any, ...]) -> Array:
        _, _, norm, _, idle, i = now
        return (norm > 10 * AIM * first) & (idle < PATIENCE) & (i < steps)

    begin = (start, optimiser.init(start), first, first, jnp.array(0), jnp.array(0))
    params, _, norm, _, _, taken = jax.lax.while_loop(going, step, begin)
    return Solved(params, relative(norm, first), taken)


def _norm(tree: Any) -> Array:
    return jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree)))


def relative(norm: Float[Array, ""], start: Float[Array, ""]) -> Float[Array, ""]:
    """A norm relative to another; 0 where both are."""
    return jnp.where(start > 0, norm / jnp.where(start > 0, start, 1.0), 0.0)
