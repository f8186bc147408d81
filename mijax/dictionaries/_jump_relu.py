"""Dictionaries whose latents jump over a threshold that is learned."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax.dictionaries._architecture import AbstractArchitecture, Given, Outcome
from mijax.dictionaries._wiring import Weights


class JumpReLU(AbstractArchitecture):
    r"""Latents above a learned threshold, with a penalty on their number.

    $f_i = z_i \mathbf 1[z_i > \theta_i]$ with $z = W x + b$, and the loss is $\lVert y
    - \hat y \rVert^2 + \lambda \sum_i \mathbf 1[z_i > \theta_i]$. The derivative in
    $\theta$ is that of a step blurred by a rectangle of width $\epsilon$
    (Rajamanoharan et al. 2024, arXiv:2407.14435).

    Attributes:
        sparsity: $\lambda$.
        threshold: where $\theta$ starts.
        bandwidth: $\epsilon$.
    """

    sparsity: Any = 1e-2
    threshold: float = eqx.field(static=True, default=1e-3)
    bandwidth: float = eqx.field(static=True, default=1e-3)

    def extra(self, latents: int) -> Float[Array, " latent"]:
        """Returns the logs of the thresholds."""
        return jnp.full(latents, math.log(self.threshold))

    def activate(
        self,
        pre: Float[Array, "batch latent"],
        weights: Weights,
        extra: Any,
        running: Any,
    ) -> Float[Array, "batch latent"]:
        """Cuts below the threshold."""
        return jnp.where(pre > jnp.exp(extra), jax.nn.relu(pre), 0)

    def loss(self, given: Given) -> Outcome:
        """Returns squared error and the number of active latents."""
        pre = jax.nn.relu(given.pre())
        threshold = given.step.local(jnp.exp(given.extra))
        threshold = jnp.broadcast_to(threshold, pre.shape)
        latents = jump(pre, threshold, self.bandwidth)
        count = given.total(over(pre, threshold, self.bandwidth))
        return Outcome(
            given.error(given.restored(latents)),
            self.sparsity * given.share * count,
            *given.activity(latents),
        )


@jax.custom_vjp
def over(z: Array, threshold: Array, width: Any) -> Array:
    """Returns 1 above the threshold; its derivative there is a rectangle's."""
    return (z > threshold).astype(z.dtype)


def _over_forward(z: Array, threshold: Array, width: Any) -> Any:
    return over(z, threshold, width), (z, threshold, width)


def _over_backward(kept: Any, given: Array) -> Any:
    z, threshold, width = kept
    near = jnp.abs(z - threshold) < width / 2
    return jnp.zeros_like(z), -given * near / width, None


over.defvjp(_over_forward, _over_backward)


@jax.custom_vjp
def jump(z: Array, threshold: Array, width: Any) -> Array:
    """Returns `z` above the threshold, else 0."""
    return jnp.where(z > threshold, z, 0)


def _jump_forward(z: Array, threshold: Array, width: Any) -> Any:
    return jump(z, threshold, width), (z, threshold, width)


def _jump_backward(kept: Any, given: Array) -> Any:
    z, threshold, width = kept
    near = jnp.abs(z - threshold) < width / 2
    return given * (z > threshold), -given * threshold * near / width, None


jump.defvjp(_jump_forward, _jump_backward)
