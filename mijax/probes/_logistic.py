"""Logistic regression, of two classes or more."""

from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from mijax.probes._probe import AbstractLinear, Data, Linear, Solved, grid
from mijax.probes._solve import Problem, minimise


class Logistic(AbstractLinear):
    r"""Logistic regression with an L2 penalty.

    $\frac1n \sum_n -\log \mathrm{softmax}(W^\top x_n + b)_{y_n}
    + \frac{\lambda}{2} \lVert W \rVert^2$ on standardised features; two classes have
    one weight vector, that of the log odds. The bias is not penalised. In
    scikit-learn's terms, $\lambda = 1 / (C n)$ (Cox 1958; as a probe, Alain and Bengio
    2016, arXiv:1610.01644).

    Solved by L-BFGS, which searches along a line without new products of inputs and
    weights: logits change in proportion there.

    Args:
        l2: strengths `λ` to choose from, or one.
        steps: iterations at most.
        tolerance: norm of the gradient, relative to that of no weights, at which
            iterations stop.

    Examples:
        >>> Logistic(l2=0.1).strengths
        (0.1,)
    """

    l2: tuple[float, ...] = eqx.field(
        static=True, converter=grid, default=(1e-3, 1e-2, 1e-1, 1.0)
    )
    steps: int = eqx.field(static=True, default=500, kw_only=True)
    tolerance: float = eqx.field(static=True, default=1e-5, kw_only=True)
    targets: ClassVar[Literal["classes", "values"]] = "classes"
    ranks: ClassVar[int] = 1

    @property
    def strengths(self) -> tuple[float, ...]:
        """Strengths of the penalty."""
        return self.l2

    def solve(
        self, data: Data, strength: Float[Array, ""], key: PRNGKeyArray
    ) -> Solved:
        """Runs L-BFGS from no weights."""
        features, outputs = data.x.shape[1], max(1, data.classes - (data.classes == 2))
        y = jax.nn.one_hot(data.y, data.classes)[:, data.classes - outputs :]
        penalty = jnp.full(features + 1, strength).at[-1].set(0.0)
        problem = _problem(data.x, y, data.weight, penalty)
        w, norm, taken = minimise(
            *(problem, jnp.zeros((outputs, features + 1)), jnp.zeros_like(y)),
            steps=self.steps,
            tolerance=self.tolerance,
        )
        return Solved(Linear(w[:, :-1].T, w[:, -1]), norm, taken)


def _problem(
    x: Float[Array, "example feature"],
    y: Float[Array, "example output"],
    weight: Float[Array, " example"],
    penalty: Float[Array, " inputs"],
) -> Problem:
    """Poses cross-entropy with a penalty, over weights and biases `[output, inputs]`.

    The cache are logits `z`: along a line they change by a multiple of `dz`. Which axis
    comes first is what products with few columns are fastest with on processors.
    """
    a = weight[:, None]

    def line(p: Array) -> Array:
        return x @ p[:, :-1].T + p[:, -1]

    def along(w: Array, z: Array, p: Array, dz: Array, t: Array) -> Any:
        z, w = z + t * dz, w + t * p
        probabilities, normaliser = _softmax(z)
        value = weight @ (normaliser - (y * z).sum(-1))
        error = a * (probabilities - y)
        slope = (error * dz).sum() + (penalty * w * p).sum()
        return value + 0.5 * (penalty * w**2).sum(), slope, error

    def arrive(w: Array, z: Array, dz: Array, t: Array, error: Array) -> Any:
        gradient = jnp.concatenate([error.T @ x, error.sum(0)[:, None]], axis=1)
        return gradient + penalty * w, z + t * dz

    return Problem(line, along, arrive)


def _softmax(
    z: Float[Array, "example output"],
) -> tuple[Float[Array, "example output"], Float[Array, " example"]]:
    """Probabilities and the logarithm of their normaliser; one output is log odds."""
    one = z.shape[1] == 1
    most = jnp.maximum(z.max(1, keepdims=True), 0.0 if one else -jnp.inf)
    shares = jnp.exp(z - most)
    total = shares.sum(1, keepdims=True) + (jnp.exp(-most) if one else 0.0)
    return shares / total, (most + jnp.log(total))[:, 0]
