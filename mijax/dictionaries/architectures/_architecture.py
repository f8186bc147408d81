"""What makes a few latents of many: the part in which dictionaries differ."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mijax.dictionaries._wiring import AbstractWiring, Weights, product
from mijax.dictionaries.architectures._sparse import hits, shifted
from mijax.train import Step


class Given(eqx.Module):
    """What a loss is taken of: this device's examples and latents.

    Attributes:
        x: inputs, `[batch, *reads]`.
        y: outputs, `[batch, *writes]`.
        weights: of the dictionary.
        extra: what the architecture learns beside them.
        running: what it carries along without gradients.
        dead: which latents have not been active for long.
        share: how much of the penalty counts now, from 0 to 1.
        wiring: what is read and written.
        step: where training is.
        dtype: of products; sums are float32.
    """

    x: Float[Array, "batch *reads"]
    y: Float[Array, "batch *writes"]
    weights: Weights
    extra: Any
    running: Any
    dead: Bool[Array, " latent"]
    share: Float[Array, ""]
    wiring: AbstractWiring
    step: Step
    dtype: Any = eqx.field(static=True)

    def pre(self) -> Float[Array, "batch latent"]:
        """Returns latents before they are cut."""
        offset = self.step.local(self.wiring.offset(self.weights))
        return shifted(self.wiring.project(self.weights, self.x, self.dtype), offset)

    def base(self) -> Float[Array, "batch out"]:
        """Returns what is written without any latent."""
        centre = jnp.broadcast_to(
            self.weights.centre, (self.x.shape[0], self.weights.centre.shape[0])
        )
        if self.weights.skip is None:
            return centre
        return centre + product(
            self.wiring.flat(self.x), self.weights.skip.T, self.dtype
        )

    def restored(
        self, latents: Float[Array, "batch latent"], weights: Weights | None = None
    ) -> Float[Array, "batch out"]:
        """Returns what is written, from all devices' latents."""
        rows = self.wiring.rows(self.weights if weights is None else weights)
        part = product(latents, rows.T, self.dtype)
        return self.base() + self.step.over_model(part)

    def error(self, restored: Float[Array, "batch out"]) -> Float[Array, ""]:
        """Returns the squared error, summed over outputs, averaged over examples."""
        off = self.wiring.flat(self.y) - restored
        return self.step.mean((off**2).sum(1).mean())

    def norms(self) -> Float[Array, " latent"]:
        """Returns the length of each row of the decoder."""
        return jnp.linalg.norm(self.wiring.rows(self.weights), axis=1)

    def total(self, x: Float[Array, "batch latent"]) -> Float[Array, ""]:
        """Adds up over all latents and averages over all examples."""
        return self.step.mean(self.step.over_model(x.sum(1)).mean())

    def weighted(
        self, x: Float[Array, "batch latent"], weights: Float[Array, " latent"]
    ) -> Float[Array, ""]:
        """Adds up over all latents, with weights, and averages over all examples."""
        # A product with a vector, also backwards: nothing of the size of `x` is
        # written.
        each = jnp.matmul(x, weights, precision="highest")
        return self.step.mean(self.step.over_model(each).mean())

    def activity(
        self, latents: Float[Array, "batch latent"]
    ) -> tuple[Float[Array, ""], Bool[Array, " latent"]]:
        """Returns how many latents are active per example, and which are in any."""
        counts = hits(latents)
        each = counts.astype(jnp.float32).sum() / latents.shape[0]
        return self.step.mean(self.step.over_model(each)), self.step.total(counts) > 0


class Outcome(eqx.Module):
    """A loss and its parts.

    Attributes:
        error: squared error of what is restored.
        penalty: everything else that is minimised.
        l0: active latents per example, on average.
        active: which latents were active in any example.
        running: what is carried along, after this batch.
    """

    error: Float[Array, ""]
    penalty: Float[Array, ""]
    l0: Float[Array, ""]
    active: Bool[Array, " latent"]
    running: Any = None


class AbstractArchitecture(eqx.Module):
    """How latents are made sparse: a frozen value."""

    def extra(self, latents: int) -> Any:
        """Returns what is learned beside the weights: nothing."""
        return None

    def project(self, extra: Any) -> Any:
        """Return the parameters after an update, inside their bounds: unchanged."""
        return extra

    def running(self, latents: int) -> Any:
        """Returns what is carried along without gradients: nothing."""
        return None

    def check(self, latents: int) -> None:
        """Refuses a number of latents that does not fit."""

    @abc.abstractmethod
    def activate(
        self,
        pre: Float[Array, "batch latent"],
        weights: Weights,
        extra: Any,
        running: Any,
    ) -> Float[Array, "batch latent"]:
        """Returns the latents of each example on its own, as in use."""

    @abc.abstractmethod
    def loss(self, given: Given) -> Outcome:
        """Returns the loss of a batch, as in training."""
