"""A probe that chooses among the tokens of a sequence."""

from typing import ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from mijax.probes._frame import Sequences
from mijax.probes._probe import AbstractProbe, Data, Solved, grid
from mijax.probes._solve import losses, smooth


class _Pool(NamedTuple):
    """Parameters of `AttentionPooled`."""

    query: Float[Array, "*probe feature"]
    weight: Float[Array, "*probe feature label"]
    bias: Float[Array, "*probe label"]


class AttentionPooled(AbstractProbe):
    r"""Softmax regression on an attention-weighted mean of tokens.

    Logits $W^\top \sum_t \alpha_t x_t + b$ with $\alpha = \mathrm{softmax}_t(q^\top
    x_t)$ over the real tokens of a sequence (Lee et al. 2017, arXiv:1707.07045; as a
    probe, Tenney et al. 2019, arXiv:1905.06316), with $\frac{\lambda}{2}(\lVert q
    \rVert^2 + \lVert W \rVert^2)$, by L-BFGS from the plain mean. Inputs are
    `Sequences`, whose positions are not probes of their own.

    Args:
        l2: strengths `λ` to choose from, or one.
        steps: iterations at most.
        tolerance: norm of the gradient, relative to the start, at which they stop.

    Examples:
        >>> AttentionPooled(l2=0.1).strengths
        (0.1,)
    """

    l2: tuple[float, ...] = eqx.field(
        static=True, converter=grid, default=(1e-3, 1e-2, 1e-1)
    )
    steps: int = eqx.field(static=True, default=500, kw_only=True)
    tolerance: float = eqx.field(static=True, default=1e-5, kw_only=True)
    targets: ClassVar[Literal["classes", "values"]] = "classes"
    ranks: ClassVar[int] = 2

    @property
    def strengths(self) -> tuple[float, ...]:
        """Strengths of the penalty."""
        return self.l2

    def solve(
        self, data: Data, strength: Float[Array, ""], key: PRNGKeyArray
    ) -> Solved:
        """Runs L-BFGS from the plain mean."""
        d, k = data.x.x.shape[-1], data.classes
        start = _Pool(jnp.zeros(d), jnp.zeros((d, k)), jnp.zeros(k))
        y = jax.nn.one_hot(data.y, k)

        def loss(params: _Pool) -> Array:
            penalty = (params.query**2).sum() + (params.weight**2).sum()
            fit = data.weight @ losses(self.outputs(params, data.x), y)
            return fit + 0.5 * strength * penalty

        return smooth(loss, start, steps=self.steps, tolerance=self.tolerance)

    def outputs(self, params: _Pool, x: Sequences) -> Float[Array, "example label"]:
        """Returns logits."""
        pooled = jnp.einsum("et,etf->ef", self.attention(params, x), x.x)
        return pooled @ params.weight + params.bias

    def attention(self, params: _Pool, x: Sequences) -> Float[Array, "example seq"]:
        """Returns the share of every token, of standardised inputs."""
        # Finite, so that a sequence without tokens has gradients.
        scores = jnp.where(x.mask, x.x @ params.query, -1e30)
        return jax.nn.softmax(scores, axis=-1) * x.mask
