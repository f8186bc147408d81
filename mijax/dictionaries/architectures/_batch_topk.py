"""Dictionaries that keep the largest latents of a whole batch."""

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
from mijax.dictionaries.architectures._sparse import threshold_of
from mijax.dictionaries.architectures._topk import revived

# The threshold averages the last tenth of the updates, about, and a thousand at most.
MEMORY, SHARE = 0.999, 10


class AbstractThreshold(AbstractArchitecture):
    """Latents that are largest of a batch in training, and above a threshold in use."""

    def running(self, latents: int) -> Float[Array, ""]:
        """Returns the threshold; below 0 until there is one."""
        return jnp.float32(-1)

    def activate(
        self,
        pre: Float[Array, "batch latent"],
        weights: Weights,
        extra: Any,
        running: Any,
    ) -> Float[Array, "batch latent"]:
        """Cuts below the threshold."""
        return jnp.where(pre > running, jax.nn.relu(pre), 0)


class BatchTopK(AbstractThreshold):
    r"""The $k B$ largest latents of a batch of $B$ examples.

    After Bussmann et al. 2024 (arXiv:2412.06410): training keeps as many latents as `k`
    per example on average, wherever they are. In use an example stands alone: latents
    above a threshold are active, the running mean of the smallest that training kept
    (of about the last tenth of the updates, of a thousand at most).
    The loss is that of `TopK`.

    Attributes:
        k: how many per example.
        aux: weight of the error that dead latents are to explain.
        aux_k: how many of them; half the size of the output by default.
    """

    k: Any = 32
    aux: Any = 1 / 32
    aux_k: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        """Refuses to keep nothing."""
        if isinstance(self.k, int | float) and self.k <= 0:
            raise ConfigError(f"BatchTopK keeps some latents, got k={self.k}.")

    def check(self, latents: int) -> None:
        """Refuses to keep more latents than there are."""
        if isinstance(self.k, int | float) and self.k > latents:
            raise ConfigError(
                f"BatchTopK keeps {self.k} of {latents} latents: give a smaller k."
            )

    def loss(self, given: Given) -> Outcome:
        """Returns squared error and that of the dead latents."""
        pre = given.pre()
        latents, running = kept(given, pre, self.k)
        restored = given.restored(latents)
        auxiliary = self.aux * revived(given, pre, restored, self.aux_k)
        return Outcome(
            given.error(restored), auxiliary, *given.activity(latents), running
        )


def kept(
    given: Given, pre: Float[Array, "batch latent"], k: Any
) -> tuple[Float[Array, "batch latent"], Float[Array, ""]]:
    """Keeps the largest latents of all devices' batch, and moves the threshold."""
    still = jax.lax.stop_gradient(pre)
    size = given.step.total(jnp.float32(pre.shape[0]))
    least = threshold_of(still, jnp.round(k * size).astype(jnp.int32), given.step)
    latents = jnp.where((still >= least) & (still > 0), pre, 0)
    index = given.step.index.astype(jnp.float32)
    memory = jnp.minimum(MEMORY, index / (index + SHARE))
    moved = memory * given.running + (1 - memory) * least
    return latents, jnp.where(given.running < 0, least, moved)
