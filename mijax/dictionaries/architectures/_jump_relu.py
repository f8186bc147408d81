"""Dictionaries whose latents jump over a threshold that is learned."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax._errors import ConfigError
from mijax.dictionaries._wiring import Weights
from mijax.dictionaries.architectures._architecture import (
    AbstractArchitecture,
    Given,
    Outcome,
)


class JumpReLU(AbstractArchitecture):
    r"""Latents above a learned threshold, with a penalty on their number.

    $f_i = z_i \mathbf 1[z_i > \theta_i]$ with $z = W x + b$, and the loss is $\lVert y
    - \hat y \rVert^2 + \lambda L_0$, where $L_0$ is the number of active latents per
    example. The derivative in $\theta$ is that of a step blurred by a rectangle of
    width $\epsilon$ (Rajamanoharan et al. 2024, arXiv:2407.14435). $\theta$ is learned
    directly and not as its logarithm, which Adam moves too slowly, and is kept at 0 or
    above.

    With a `target` the penalty is $\lambda n (L_0 / L_0^* - 1)^2$ with $L_0$ of the
    whole batch and $n$ the size of the output, the mean squared length of scaled
    activations.

    All three numbers are in the units of the scaled activations (`scale` of
    `Training`), whose entries have mean square 1: `sparsity` is the squared error that
    one more active latent has to save.

    Attributes:
        sparsity: $\lambda$.
        target: active latents per example to train for, $L_0^*$; `None` leaves their
            number to `sparsity`.
        threshold: initial $\theta$.
        bandwidth: $\epsilon$.

    Raises:
        ConfigError: a target, threshold or bandwidth that is not positive.

    Examples:
        >>> from mijax import dictionaries as d
        >>> x = jax.random.normal(jax.random.key(0), (256, 8))
        >>> source = mijax.data.Examples(x, batch=64)
        >>> few = d.JumpReLU(target=2.0)
        >>> training = d.Training(
        ...     few, d.SAE(8), latents=16, steps=300, learning_rate=1e-2
        ... )
        >>> sae = d.train(training, source)
        >>> bool(abs((sae.encode(x) > 0).sum(1).mean() - 2) < 0.5)
        True
    """

    sparsity: Any = 1.0
    target: Any = None
    threshold: float = eqx.field(static=True, default=0.1)
    bandwidth: float = eqx.field(static=True, default=0.5)

    def __check_init__(self):
        """Refuse a target, threshold or bandwidth that is not positive."""
        for name in ("target", "threshold", "bandwidth"):
            given = getattr(self, name)
            if isinstance(given, int | float) and not given > 0:
                raise ConfigError(f"JumpReLU takes a positive {name}, got {given}.")

    def check(self, latents: int) -> None:
        """Refuse a target of more latents than the dictionary has."""
        if isinstance(self.target, int | float) and self.target > latents:
            raise ConfigError(
                f"JumpReLU has a target of {self.target} active latents, the "
                f"dictionary has {latents}: give a smaller target."
            )

    def extra(self, latents: int) -> Float[Array, " latent"]:
        """Return the initial thresholds."""
        return jnp.full(latents, self.threshold, jnp.float32)

    def project(self, extra: Float[Array, " latent"]) -> Float[Array, " latent"]:
        """Keep thresholds at 0 or above."""
        return jnp.maximum(extra, 0)

    def activate(
        self,
        pre: Float[Array, "batch latent"],
        weights: Weights,
        extra: Any,
        running: Any,
    ) -> Float[Array, "batch latent"]:
        """Cut below the threshold."""
        return jnp.where(pre > extra, jax.nn.relu(pre), 0)

    def loss(self, given: Given) -> Outcome:
        """Return squared error and the penalty on the number of active latents."""
        pre = given.pre()
        threshold = jnp.broadcast_to(given.step.local(given.extra), pre.shape)
        latents = jump(pre, threshold, self.bandwidth)
        penalty = given.total(over(pre, threshold, self.bandwidth))
        if self.target is not None:
            size = given.weights.centre.shape[0]
            penalty = size * (penalty / self.target - 1) ** 2
        return Outcome(
            given.error(given.restored(latents)),
            self.sparsity * given.share * penalty,
            *given.activity(latents),
        )


@jax.custom_vjp
def over(z: Array, threshold: Array, width: Any) -> Array:
    """Return 1 above the threshold; the derivative there is that of a rectangle."""
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
    """Return `z` above the threshold, else 0."""
    return jnp.where(z > threshold, z, 0)


def _jump_forward(z: Array, threshold: Array, width: Any) -> Any:
    return jump(z, threshold, width), (z, threshold, width)


def _jump_backward(kept: Any, given: Array) -> Any:
    z, threshold, width = kept
    near = jnp.abs(z - threshold) < width / 2
    return given * (z > threshold), -given * threshold * near / width, None


jump.defvjp(_jump_forward, _jump_backward)
