"""Ridge regression."""

from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from mijax.probes._probe import AbstractLinear, Data, Linear, Solved, grid
from mijax.probes._solve import relative

# Steps of iterative refinement, which also undo the damping.
REFINEMENTS = 4


class Ridge(AbstractLinear):
    r"""Ridge regression of values (Hoerl and Kennard 1970).

    $\frac{1}{2n} \sum_n (y_n - w^\top x_n - b)^2 + \frac{\lambda}{2} \lVert w \rVert^2$
    on standardised features; the bias is not penalised. In scikit-learn's terms,
    $\lambda = \alpha / n$. Solved by Cholesky with iterative refinement.

    Args:
        l2: strengths `λ` to choose from, or one.

    Examples:
        >>> Ridge(l2=(0.1, 1.0)).strengths
        (0.1, 1.0)
    """

    l2: tuple[float, ...] = eqx.field(
        static=True, converter=grid, default=(1e-3, 1e-2, 1e-1, 1.0)
    )
    targets: ClassVar[Literal["classes", "values"]] = "values"
    ranks: ClassVar[int] = 1

    @property
    def strengths(self) -> tuple[float, ...]:
        """Strengths of the penalty."""
        return self.l2

    def solve(
        self, data: Data, strength: Float[Array, ""], key: PRNGKeyArray
    ) -> Solved:
        """Solves the normal equations."""
        a, centre = data.weight, data.weight @ data.x
        x, mean = data.x - centre, a @ data.y
        y = data.y - mean

        def gradient(w: Array) -> Array:
            return x.T @ (a * (x @ w - y)) + strength * w

        curvature = x.T @ (a[:, None] * x) + strength * jnp.eye(x.shape[1])
        damping = 1e-7 * jnp.trace(curvature) / x.shape[1]
        damped = curvature + damping * jnp.eye(x.shape[1])
        factor = jax.scipy.linalg.cho_factor(damped, lower=True)
        w = jnp.zeros(x.shape[1])
        start = jnp.linalg.norm(gradient(w))
        for _ in range(1 + REFINEMENTS):
            w = w - jax.scipy.linalg.cho_solve(factor, gradient(w))
        norm = relative(jnp.linalg.norm(gradient(w)), start)
        return Solved(Linear(w[:, None], (mean - centre @ w)[None]), norm, jnp.array(1))
