"""Dictionaries that keep the k largest latents of each example."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mijax._errors import ConfigError
from mijax.dictionaries._wiring import Weights, product
from mijax.dictionaries.architectures._architecture import (
    AbstractArchitecture,
    Given,
    Outcome,
)
from mijax.dictionaries.architectures._sparse import known, largest, mix


class TopK(AbstractArchitecture):
    r"""The k largest latents of each example (Gao et al. 2024, arXiv:2406.04093).

    $f = \mathrm{TopK}(\max(0, W x + b))$, and the loss is $\lVert y - \hat y \rVert^2$
    plus `aux` times the squared error of what the `aux_k` largest dead latents make of
    the error that is left (AuxK); it counts in proportion where fewer are dead. Decoder
    and gradients touch active latents only.

    Attributes:
        k: how many.
        most: room for them, where `k` differs between lanes; `k` by default.
        aux: weight of the error that dead latents are to explain.
        aux_k: how many of them; half the size of the output by default.

    Raises:
        ConfigError: no latents to keep, or less room than `k`.
    """

    k: Any = 32
    most: int = eqx.field(static=True, default=0)
    aux: Any = 1 / 32
    aux_k: int | None = eqx.field(static=True, default=None)

    def __init__(
        self, k: int = 32, *, most: int = 0, aux: Any = 1 / 32, aux_k: int | None = None
    ):
        self.k, self.most, self.aux, self.aux_k = k, most or k, aux, aux_k
        if k < 1 or k > self.most:
            raise ConfigError(
                f"TopK keeps at least 1 latent and at most {self.most}, got k={k}."
            )

    def check(self, latents: int) -> None:
        """Refuses to keep more latents than there are."""
        if self.most > latents:
            raise ConfigError(
                f"TopK keeps {self.most} of {latents} latents: give a smaller k."
            )

    def activate(
        self,
        pre: Float[Array, "batch latent"],
        weights: Weights,
        extra: Any,
        running: Any,
    ) -> Float[Array, "batch latent"]:
        """Keeps the largest."""
        values, index = jax.lax.top_k(jax.nn.relu(pre), self.most)
        values = jnp.where(jnp.arange(self.most) < self.k, values, 0)
        zeros = jnp.zeros(pre.shape, pre.dtype)
        return jax.vmap(lambda z, i, v: z.at[i].set(v))(zeros, index, values)

    def loss(self, given: Given) -> Outcome:
        """Returns squared error and that of the dead latents."""
        pre = given.pre()
        restored, active, count = sparse(given, pre, self.k, self.most)
        auxiliary = self.aux * revived(given, pre, restored, self.aux_k)
        return Outcome(given.error(restored), auxiliary, count, active)


def sparse(
    given: Given, pre: Float[Array, "batch latent"], k: Any, most: int
) -> tuple[Float[Array, "batch out"], Bool[Array, " latent"], Float[Array, ""]]:
    """Restores from the largest latents: what is written, which they are, how many."""
    part, values, index = written(given, pre, k, most)
    hits = (values > 0).astype(jnp.int32)
    counts = jnp.zeros(pre.shape[1], jnp.int32)
    counts = counts.at[index.reshape(-1)].add(hits.reshape(-1))
    count = given.step.mean(given.step.over_model(hits.sum()) / pre.shape[0])
    return given.base() + part, given.step.total(counts) > 0, count


def revived(
    given: Given,
    pre: Float[Array, "batch latent"],
    restored: Float[Array, "batch out"],
    aux_k: int | None,
) -> Float[Array, ""]:
    """Returns the squared error of what dead latents make of the error."""
    room = restored.shape[1] // 2 if aux_k is None else aux_k
    dead = given.step.over_model(given.dead.sum())
    missed = jax.lax.stop_gradient(given.wiring.flat(given.y) - restored)

    def error() -> Float[Array, ""]:
        part, _, _ = written(given, jnp.where(given.dead, pre, -jnp.inf), room, room)
        return given.step.mean(((missed - part) ** 2).sum(1).mean())

    share = jnp.minimum(dead / room, 1.0)
    return jax.lax.cond(dead > 0, lambda: share * error(), lambda: jnp.float32(0))


def written(
    given: Given, pre: Float[Array, "batch latent"], k: Any, most: int
) -> tuple[
    Float[Array, "batch out"], Float[Array, "batch most"], Int[Array, "batch most"]
]:
    """Returns what the largest latents write, and this device's candidates."""
    step, wiring = given.step, given.wiring
    values, index, rank = largest(jax.lax.stop_gradient(pre), most, step)
    weights = step.local(given.weights)
    if not wiring.whole:
        # Latents read different inputs: the dense products have the gradients.
        zeros = jnp.zeros(pre.shape, bool)
        kept = jax.vmap(lambda z, i, r: z.at[i].set(r))(zeros, index, rank < k)
        latents = jnp.where(kept, jax.nn.relu(pre), 0)
        part = product(latents, wiring.rows(weights).T, given.dtype)
        return step.over_model(part), jnp.where(rank < k, values, 0), index
    values = known(values, wiring.read(weights, given.x), index, weights.encoder)
    # The gradient of the offset: of the bias, and of the centre that it takes off.
    offset = wiring.offset(weights)[index]
    values = values + offset - jax.lax.stop_gradient(offset)
    values = jnp.where(rank < k, jax.nn.relu(values), 0)
    part = mix(values, index, wiring.rows(weights))
    return step.over_model(part), values, index
