"""A dictionary: an architecture, a wiring, and weights."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from mijax._errors import ConfigError, ShapeError
from mijax.dictionaries._wiring import (
    AbstractWiring,
    Weights,
    check_scale,
    over_embed,
    product,
)
from mijax.dictionaries.architectures._architecture import AbstractArchitecture


class Dictionary(eqx.Module):
    """Latents that read activations and write them again, or write others.

    Attributes:
        architecture: how latents are made sparse.
        wiring: what is read and written.
        weights: encoder, decoder and biases, of activations times `scale`.
        extra: what the architecture learned beside them.
        running: what it carries along: a threshold.
        scale: factor of the activations in training, one number or one per site of a
            crosscoder; undone on the output.

    Examples:
        >>> import jax
        >>> from mijax import dictionaries as d
        >>> sae = d.untrained(d.TopK(4), d.SAE(16), latents=64, key=jax.random.key(0))
        >>> x = jax.random.normal(jax.random.key(1), (5, 16))
        >>> latents = sae.encode(x)
        >>> latents.shape, int((latents > 0).sum(1).max())
        ((5, 64), 4)
        >>> sae(x).shape
        (5, 16)
    """

    architecture: AbstractArchitecture
    wiring: AbstractWiring
    weights: Weights
    extra: Any
    running: Any
    scale: Float[Array, "*site"]

    @property
    def latents(self) -> int:
        """Number of latents."""
        return self.weights.decoder.shape[0]

    def encode(self, x: Float[Array | np.ndarray, "..."]) -> Float[Array, "..."]:
        """Returns the latents of activations.

        Args:
            x: activations, `[*batch, *reads]`.

        Returns:
            Latents, `[*batch, latent]`, in the units of the scaled activations.

        Raises:
            ShapeError: activations of another shape.
        """
        flat, batch = self._batched(x)
        pre = self.wiring.pre(self.weights, flat * over_embed(self.scale))
        found = self.architecture.activate(pre, self.weights, self.extra, self.running)
        return found.reshape(*batch, -1)

    def decode(
        self,
        latents: Float[Array | np.ndarray, "..."],
        x: Float[Array | np.ndarray, "..."] | None = None,
    ) -> Float[Array, "..."]:
        """Returns what latents write.

        Args:
            latents: `[*batch, latent]`.
            x: the activations they are of, where the wiring has a linear path.

        Returns:
            Activations, `[*batch, *writes]`.

        Raises:
            ShapeError: a linear path, and no activations to take it.
        """
        latents = jnp.asarray(latents)
        batch = latents.shape[:-1]
        flat = latents.reshape(-1, latents.shape[-1])
        out = product(flat, self.wiring.rows(self.weights).T) + self.weights.centre
        if self.weights.skip is not None:
            if x is None:
                raise ShapeError(
                    "The dictionary has a linear path from its input: give x to decode."
                )
            given = self._batched(x)[0] * over_embed(self.scale)
            out = out + product(self.wiring.flat(given), self.weights.skip.T)
        out = out.reshape(*batch, *self.wiring.writes)
        return out / over_embed(self.scale)

    def __call__(self, x: Float[Array | np.ndarray, "..."]) -> Float[Array, "..."]:
        """Encodes and decodes."""
        return self.decode(self.encode(x), x)

    def _batched(self, x: Any) -> tuple[Float[Array, "n *reads"], tuple[int, ...]]:
        """Joins the axes before those that are read."""
        x, reads = jnp.asarray(x), self.wiring.reads
        if x.shape[x.ndim - len(reads) :] != reads:
            raise ShapeError(
                f"The dictionary reads activations {list(reads)}, got shape "
                f"{list(x.shape)}."
            )
        batch = x.shape[: x.ndim - len(reads)]
        return x.reshape(-1, *reads), batch


def untrained(
    architecture: AbstractArchitecture,
    wiring: AbstractWiring,
    *,
    latents: int,
    key: PRNGKeyArray,
    norm: float = 1.0,
    tied: bool = True,
    centre: Any = None,
    scale: Any = 1.0,
) -> Dictionary:
    """Draws a dictionary: where training starts, and the baseline of every number.

    Args:
        architecture: how latents are made sparse.
        wiring: what is read and written.
        latents: how many.
        key: random.
        norm: length of each row of the decoder.
        tied: start the encoder as the decoder.
        centre: start of the decoder's bias, `[*writes]`, in the units of the
            activations, before `scale`; for instance their geometric median. 0 by
            default.
        scale: factor of the activations, one number or one per site of a crosscoder.

    Returns:
        The dictionary.

    Raises:
        ConfigError: a number of latents that does not fit the architecture, or a scale
            of another shape.
        ShapeError: rows that cannot be tied, or a centre of another shape.

    Examples:
        >>> import jax
        >>> from mijax import dictionaries as d
        >>> wiring = d.Crosscoder(sites=3, embed=16)
        >>> new = untrained(d.ReLU(), wiring, latents=64, key=jax.random.key(0))
        >>> new.weights.decoder.shape
        (64, 48)
    """
    if latents < 1:
        raise ConfigError(f"A dictionary has at least one latent, got {latents}.")
    architecture.check(latents)
    check_scale(wiring, scale)
    if centre is not None:
        centre = jnp.asarray(centre, jnp.float32) * over_embed(scale)
    weights = wiring.start(key, latents, norm=norm, tied=tied, centre=centre)
    return Dictionary(
        architecture,
        wiring,
        weights,
        architecture.extra(latents),
        architecture.running(latents),
        jnp.asarray(scale, jnp.float32),
    )
