"""Linear discriminant analysis."""

from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from mijax._errors import ConfigError
from mijax.probes._frame import Frame, one_scale
from mijax.probes._means import class_means, log_odds
from mijax.probes._probe import AbstractLinear, Data, Linear, Solved, grid

# Steps of iterative refinement.
REFINEMENTS = 3


class LDA(AbstractLinear):
    r"""Linear discriminant analysis with shrinkage.

    Logits $\mu_k^\top \Sigma^{-1} x - \tfrac12 \mu_k^\top \Sigma^{-1} \mu_k +
    \log \pi_k$, where $\pi_k$ are shares of the classes and $\Sigma = (1 - s)\,S +
    s\,\frac{\mathrm{tr} S}{d} I$ shrinks the covariance $S$ within classes (Fisher
    1936; Ledoit and Wolf 2004). This is scikit-learn's convention (`solver="lsqr"`).
    Angles are kept: `s` acts on the features as they are.

    Args:
        shrinkage: strengths `s` in [0, 1] to choose from, or one. At 0 there must be
            more examples than features and classes together.

    Examples:
        >>> LDA(shrinkage=0.1).strengths
        (0.1,)
    """

    shrinkage: tuple[float, ...] = eqx.field(
        static=True, converter=grid, default=(1e-3, 1e-2, 1e-1, 0.5)
    )
    targets: ClassVar[Literal["classes", "values"]] = "classes"
    ranks: ClassVar[int] = 1

    def __check_init__(self):
        if max(self.shrinkage) > 1:
            raise ConfigError(f"Shrinkage is from 0 to 1, got {self.shrinkage}.")

    @property
    def strengths(self) -> tuple[float, ...]:
        """Strengths of the shrinkage."""
        return self.shrinkage

    def frame(
        self, x: Float[Array, "example feature"], weight: Float[Array, " example"]
    ) -> Frame:
        """Keeps angles."""
        return one_scale(x, weight)

    def solve(
        self, data: Data, strength: Float[Array, ""], key: PRNGKeyArray
    ) -> Solved:
        """Solves for the weights of all classes at once."""
        d = data.x.shape[1]
        means, share = class_means(data)
        spread = data.x - means[data.y]
        within = spread.T @ (data.weight[:, None] * spread)
        size = jnp.trace(within) / d
        shrunk = (1 - strength) * within + strength * size * jnp.eye(d)
        damped = shrunk + 1e-7 * size * jnp.eye(d)
        factor = jax.scipy.linalg.cho_factor(damped, lower=True)
        weight = jnp.zeros((d, data.classes))
        for _ in range(1 + REFINEMENTS):
            rest = means.T - shrunk @ weight
            weight = weight + jax.scipy.linalg.cho_solve(factor, rest)
        rest = jnp.linalg.norm(means.T - shrunk @ weight)
        # A class without examples, as in a fold, is unlikely but not impossible.
        prior = jnp.log(jnp.where(share > 0, share, 0.5 / len(data.y)))
        bias = prior - 0.5 * (means.T * weight).sum(0)
        gradient = rest / jnp.linalg.norm(means)
        return Solved(log_odds(Linear(weight, bias)), gradient, jnp.array(1))
