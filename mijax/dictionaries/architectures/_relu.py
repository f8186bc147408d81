"""Dictionaries with a rectifier and a penalty on what is active."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax._errors import ConfigError, nearest
from mijax.dictionaries._wiring import Weights
from mijax.dictionaries.architectures._architecture import (
    AbstractArchitecture,
    Given,
    Outcome,
)

PENALTIES = ("l1", "tanh", "sqrt")


class ReLU(AbstractArchitecture):
    r"""Rectified latents with a penalty on their size (Bricken et al. 2023).

    The loss is $\lVert y - \hat y \rVert^2 + \lambda \sum_i \phi(f_i \lVert d_i
    \rVert)$ with $f = \max(0, W x + b)$ and $d_i$ the rows of the decoder, so that
    scaling a latent changes nothing (Conerly et al. 2024). $\phi(a)$ is $a$ (`"l1"`),
    $\tanh(a)$ or $\sqrt{a + \epsilon} - \sqrt\epsilon$.

    Attributes:
        sparsity: $\lambda$.
        penalty: `"l1"`, `"tanh"` or `"sqrt"`.

    Raises:
        ConfigError: a penalty that does not exist.
    """

    sparsity: Any = 1e-2
    penalty: str = eqx.field(static=True, default="l1")

    def __check_init__(self):
        """Refuses a penalty that does not exist."""
        if self.penalty not in PENALTIES:
            close = nearest(self.penalty, PENALTIES)
            raise ConfigError(f"There is no penalty {self.penalty!r}.{close}")

    def activate(
        self,
        pre: Float[Array, "batch latent"],
        weights: Weights,
        extra: Any,
        running: Any,
    ) -> Float[Array, "batch latent"]:
        """Rectifies."""
        return jax.nn.relu(pre)

    def loss(self, given: Given) -> Outcome:
        """Returns squared error and penalty."""
        latents = jax.nn.relu(given.pre())
        if self.penalty == "l1":
            penalty = given.weighted(latents, given.norms())
        else:
            penalty = given.total(shaped(self.penalty, latents * given.norms()))
        return Outcome(
            given.error(given.restored(latents)),
            self.sparsity * given.share * penalty,
            *given.activity(latents),
        )


def shaped(penalty: str, sizes: Float[Array, "..."]) -> Float[Array, "..."]:
    """Applies a penalty to sizes of latents."""
    if penalty == "tanh":
        return jnp.tanh(sizes)
    # The derivative of a bare root is infinite at 0.
    return jnp.sqrt(sizes + 1e-4) - 1e-2
