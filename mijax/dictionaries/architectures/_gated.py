"""Gated dictionaries: one path decides which latents are active, another how much."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax.dictionaries._wiring import Weights
from mijax.dictionaries.architectures._architecture import (
    AbstractArchitecture,
    Given,
    Outcome,
)


class Magnitudes(eqx.Module):
    """How a latent's size follows from the gate's input.

    Attributes:
        scale: log of the ratio of the two encoders' rows, `[latent]`.
        bias: of the sizes, `[latent]`.
    """

    scale: Float[Array, "*lane latent"]
    bias: Float[Array, "*lane latent"]


class Gated(AbstractArchitecture):
    r"""Latents behind gates (Rajamanoharan et al. 2024, arXiv:2404.16014).

    $f = \mathbf 1[\pi > 0] \odot \max(0, e^{r} \odot (\pi - b) + b_{\mathrm{mag}})$
    with $\pi = W x + b$. The loss is $\lVert y - \hat y(f) \rVert^2 + \lambda \sum_i
    \max(0, \pi_i) \lVert d_i \rVert + \lVert y - \hat y_{\mathrm{frozen}}(\max(0,
    \pi)) \rVert^2$; the last term trains the gates through a decoder without gradient.

    Attributes:
        sparsity: $\lambda$.
    """

    sparsity: Any = 1e-2

    def extra(self, latents: int) -> Magnitudes:
        """Returns sizes that start as the gates' inputs."""
        return Magnitudes(jnp.zeros(latents), jnp.zeros(latents))

    def activate(
        self,
        pre: Float[Array, "batch latent"],
        weights: Weights,
        extra: Any,
        running: Any,
    ) -> Float[Array, "batch latent"]:
        """Gates."""
        sizes = jnp.exp(extra.scale) * (pre - weights.bias) + extra.bias
        return jnp.where(pre > 0, jax.nn.relu(sizes), 0)

    def loss(self, given: Given) -> Outcome:
        """Returns squared error, penalty and the gates' own error."""
        pre = given.pre()
        latents = self.activate(pre, given.weights, given.extra, None)
        gates = jax.nn.relu(pre)
        frozen = jax.lax.stop_gradient(given.weights)
        still = eqx.tree_at(lambda g: g.weights, given, frozen)
        auxiliary = still.error(still.restored(gates))
        norms = jax.lax.stop_gradient(given.norms())
        penalty = self.sparsity * given.share * given.weighted(gates, norms)
        return Outcome(
            given.error(given.restored(latents)),
            penalty + auxiliary,
            *given.activity(latents),
        )
