"""Logistic regression, of two classes or more."""

from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from mijax.probes._probe import AbstractLinear, Data, Linear, Solved, grid
from mijax.probes._solve import lbfgs, losses, newton

# Newton's Hessian has at most so many rows; beyond, L-BFGS.
NEWTON_SIZE = 1200


class Logistic(AbstractLinear):
    r"""Logistic regression with an L2 penalty.

    $\frac1n \sum_n -\log \mathrm{softmax}(W^\top x_n + b)_{y_n}
    + \frac{\lambda}{2} \lVert W \rVert^2$ on standardised features; two classes have
    one weight vector, that of the log odds. The bias is not penalised. In
    scikit-learn's terms, $\lambda = 1 / (C n)$ (Cox 1958; as a probe, Alain and Bengio
    2016, arXiv:1610.01644).

    Solved by damped Newton where outputs times features are at most 1,200, else by
    L-BFGS in the coordinates in which Böhning's bound (1992) on the Hessian is the
    identity. The objective is convex: both find the same probe.

    Args:
        l2: strengths `λ` to choose from, or one.
        steps: iterations at most.

    Examples:
        >>> Logistic(l2=0.1).strengths
        (0.1,)
    """

    l2: tuple[float, ...] = eqx.field(
        static=True, converter=grid, default=(1e-3, 1e-2, 1e-1, 1.0)
    )
    steps: int = eqx.field(static=True, default=200, kw_only=True)
    targets: ClassVar[Literal["classes", "values"]] = "classes"
    ranks: ClassVar[int] = 1

    @property
    def strengths(self) -> tuple[float, ...]:
        """Strengths of the penalty."""
        return self.l2

    def solve(
        self, data: Data, strength: Float[Array, ""], key: PRNGKeyArray
    ) -> Solved:
        """Fits by Newton or L-BFGS."""
        n, d = data.x.shape
        x = jnp.concatenate([data.x, jnp.ones((n, 1))], axis=1)
        outputs = 1 if data.classes == 2 else data.classes
        y = jax.nn.one_hot(data.y, data.classes)
        y = y[:, 1:] if outputs == 1 else y
        penalty = jnp.full(d + 1, strength).at[d].set(0.0)
        if x.shape[1] * outputs <= NEWTON_SIZE:
            solved = newton(x, y, data.weight, penalty, steps=self.steps)
        else:
            solved = _whitened(x, y, data.weight, penalty, steps=self.steps)
        w = solved.params
        return Solved(Linear(w[:d], w[d]), solved.gradient, solved.steps)


def _whitened(
    x: Float[Array, "example feature"],
    y: Float[Array, "example output"],
    weight: Float[Array, " example"],
    penalty: Float[Array, " feature"],
    *,
    steps: int,
) -> Solved:
    """Runs L-BFGS where the bound on the Hessian is the identity."""
    d, k = x.shape[1], y.shape[1]
    curvature = 0.25 if k == 1 else 0.5 * (1 - 1 / k)
    bound = curvature * (x.T @ (weight[:, None] * x)) + jnp.diag(penalty)
    # Changes the coordinates only, not what is minimised.
    bound = bound + 1e-6 * jnp.trace(bound) / d * jnp.eye(d)
    factor = jnp.linalg.cholesky(bound)
    back = jax.scipy.linalg.solve_triangular(factor, jnp.eye(d), lower=True).T
    inside = x @ back

    def loss(v: Array) -> Array:
        w = back @ v
        fit = weight @ losses(inside @ v, y)
        return fit + 0.5 * (penalty[:, None] * w**2).sum()

    solved = lbfgs(loss, jnp.zeros((d, k)), steps=steps)
    return Solved(back @ solved.params, solved.gradient, solved.steps)
