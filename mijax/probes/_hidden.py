"""A probe with one hidden layer."""

from typing import ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from mijax.probes._probe import AbstractProbe, Data, Solved, grid
from mijax.probes._solve import losses, smooth


class _Layers(NamedTuple):
    """Parameters of `Hidden`."""

    into: Float[Array, "*probe feature hidden"]
    shift: Float[Array, "*probe hidden"]
    out: Float[Array, "*probe hidden label"]
    bias: Float[Array, "*probe label"]


class Hidden(AbstractProbe):
    r"""One hidden layer: logits $W_2\,\mathrm{gelu}(W_1 x + b_1) + b_2$.

    Cross-entropy plus $\frac{\lambda}{2}(\lVert W_1 \rVert^2 + \lVert W_2 \rVert^2)$ on
    standardised features, by L-BFGS from random weights; all probes start from the same
    ones. Such a probe can find what no linear one can, and can learn more by itself:
    compare it to its control (Hewitt and Liang 2019, arXiv:1909.03368).

    Args:
        width: units of the hidden layer.
        l2: strengths `λ` to choose from, or one.
        steps: iterations at most.
        tolerance: norm of the gradient, relative to the start, at which they stop.

    Examples:
        >>> Hidden(width=8, l2=0.1).strengths
        (0.1,)
    """

    width: int = eqx.field(static=True, default=64)
    l2: tuple[float, ...] = eqx.field(
        static=True, converter=grid, default=(1e-3, 1e-2), kw_only=True
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
        """Runs L-BFGS from random weights."""
        d, k = data.x.shape[1], data.classes
        one, two = jax.random.split(key)
        start = _Layers(
            jax.random.normal(one, (d, self.width)) / d**0.5,
            jnp.zeros(self.width),
            jax.random.normal(two, (self.width, k)) / self.width**0.5,
            jnp.zeros(k),
        )
        y = jax.nn.one_hot(data.y, k)

        def loss(params: _Layers) -> Array:
            penalty = (params.into**2).sum() + (params.out**2).sum()
            fit = data.weight @ losses(self.outputs(params, data.x), y)
            return fit + 0.5 * strength * penalty

        return smooth(loss, start, steps=self.steps, tolerance=self.tolerance)

    def outputs(
        self, params: _Layers, x: Float[Array, "example feature"]
    ) -> Float[Array, "example label"]:
        """Returns logits."""
        hidden = jax.nn.gelu(x @ params.into + params.shift)
        return hidden @ params.out + params.bias
