"""What a dictionary reads and writes: wirings."""

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from mijax._errors import ConfigError, ShapeError


class Weights(eqx.Module):
    """What every dictionary learns; the first axis of each matrix is latents.

    Attributes:
        encoder: a row per latent, `[latent, in]`.
        bias: of the encoder, `[latent]`.
        decoder: a row per latent, `[latent, out]`.
        centre: bias of the decoder, `[out]`.
        skip: a linear path from input to output, `[in, out]`, or `None`.
    """

    encoder: Float[Array, "*lane latent in"]
    bias: Float[Array, "*lane latent"]
    decoder: Float[Array, "*lane latent out"]
    centre: Float[Array, "*lane out"]
    skip: Float[Array, "*lane in out"] | None = None


class AbstractWiring(eqx.Module):
    """What a dictionary reads and what it writes: a frozen value."""

    @property
    @abc.abstractmethod
    def reads(self) -> tuple[int, ...]:
        """Shape of one input."""

    @property
    @abc.abstractmethod
    def writes(self) -> tuple[int, ...]:
        """Shape of one output."""

    @property
    def skips(self) -> bool:
        """True if there is a linear path beside the latents."""
        return False

    @property
    def whole(self) -> bool:
        """True if every latent reads all of the input."""
        return True

    def flat(self, x: Float[Array, "batch *shape"]) -> Float[Array, "batch size"]:
        """Joins the axes of inputs or outputs."""
        return x.reshape(x.shape[0], -1)

    def pre(
        self, weights: Weights, x: Float[Array, "batch *reads"]
    ) -> Float[Array, "batch latent"]:
        """Returns what latents are before they are cut, `x W + b`."""
        return self.project(weights, x) + self.offset(weights)

    def project(
        self, weights: Weights, x: Float[Array, "batch *reads"], dtype: Any = None
    ) -> Float[Array, "batch latent"]:
        """Return the product of the inputs with the encoder, `x W`."""
        return product(self.read(weights, x), weights.encoder, dtype)

    def offset(self, weights: Weights) -> Float[Array, " latent"]:
        """Return the bias; its gradient is that of everything added to the product."""
        return weights.bias

    def read(
        self, weights: Weights, x: Float[Array, "rows *reads"]
    ) -> Float[Array, "rows in"]:
        """Return the vectors that the encoder multiplies, without a gradient to it.

        Row `i` is for latent `i` where latents read different parts of the input.
        """
        return self.flat(x)

    def rows(self, weights: Weights) -> Float[Array, "latent out"]:
        """Returns the decoder."""
        return weights.decoder

    def widths(self, latents: int) -> tuple[int, int]:
        """Returns the sizes of a row of encoder and decoder."""
        return math.prod(self.reads), math.prod(self.writes)

    def start(
        self, key: PRNGKeyArray, latents: int, *, norm: float, tied: bool, centre: Any
    ) -> Weights:
        """Draws weights.

        Args:
            key: random.
            latents: how many.
            norm: length of each row of the decoder.
            tied: start the encoder as the decoder, each row divided by its length
                squared; otherwise with rows of its own.
            centre: start of the decoder's bias, `[*writes]`, in the units of the
                scaled activations; 0 by default.

        Raises:
            ShapeError: rows that cannot be tied, or a centre of another shape.
        """
        reads, writes = self.widths(latents)
        one, other = jax.random.split(key)
        decoder = jax.random.normal(one, (latents, writes))
        decoder = self.rows(Weights(decoder, decoder[:, 0], decoder, decoder[0]))
        decoder *= norm / jnp.linalg.norm(decoder, axis=1, keepdims=True)
        if tied and reads != writes:
            raise ShapeError(
                f"A latent reads {reads} numbers and writes {writes}, so its encoder "
                "cannot start as its decoder: give tied=False."
            )
        encoder = decoder if tied else jax.random.normal(other, (latents, reads))
        if not tied:
            encoder *= norm / jnp.linalg.norm(encoder, axis=1, keepdims=True)
        start = jnp.zeros(self.writes) if centre is None else jnp.asarray(centre)
        if start.shape != self.writes:
            raise ShapeError(
                f"The centre has shape {start.shape}, outputs have {self.writes}."
            )
        skip = jnp.zeros((reads, writes)) if self.skips else None
        flat = start.reshape(-1).astype(jnp.float32)
        return Weights(encoder, jnp.zeros(latents), decoder, flat, skip)


class SAE(AbstractWiring):
    """Reads and writes the same activation; the input is centred by the output's bias.

    Attributes:
        embed: size of the activation.
    """

    embed: int = eqx.field(static=True)

    @property
    def reads(self) -> tuple[int, ...]:
        """Shape of one input."""
        return (self.embed,)

    @property
    def writes(self) -> tuple[int, ...]:
        """Shape of one output."""
        return (self.embed,)

    def offset(self, weights: Weights) -> Float[Array, " latent"]:
        """Return the bias, with the gradient of the decoder bias in `read`.

        The product with every example would have the same gradient and cost one more
        dense product; this is a product with one vector.
        """
        still = jax.lax.stop_gradient
        moved = still(weights.encoder) @ weights.centre
        return weights.bias - (moved - still(moved))

    def read(
        self, weights: Weights, x: Float[Array, "rows *reads"]
    ) -> Float[Array, "rows in"]:
        """Return the inputs minus the decoder bias.

        Subtracted before the product: in bfloat16 a large mean would otherwise round
        away the rest.
        """
        return x - jax.lax.stop_gradient(weights.centre)


class Transcoder(AbstractWiring):
    """Reads one activation and writes another: the input and output of an MLP.

    Attributes:
        embed: size of the input.
        out: size of the output; that of the input by default.
        skip: add a linear path from input to output (Paulo et al. 2025).
    """

    embed: int = eqx.field(static=True)
    out: int | None = eqx.field(static=True, default=None)
    skip: bool = eqx.field(static=True, default=False)

    @property
    def reads(self) -> tuple[int, ...]:
        """Shape of one input."""
        return (self.embed,)

    @property
    def writes(self) -> tuple[int, ...]:
        """Shape of one output."""
        return (self.embed if self.out is None else self.out,)

    @property
    def skips(self) -> bool:
        """True if there is a linear path beside the latents."""
        return self.skip


class Crosscoder(AbstractWiring):
    """Reads and writes several activations at once: of layers, or of two models.

    Attributes:
        sites: how many (Lindsey et al. 2024).
        embed: size of each.
    """

    sites: int = eqx.field(static=True)
    embed: int = eqx.field(static=True)

    @property
    def reads(self) -> tuple[int, ...]:
        """Shape of one input."""
        return (self.sites, self.embed)

    @property
    def writes(self) -> tuple[int, ...]:
        """Shape of one output."""
        return (self.sites, self.embed)


class CrossLayer(AbstractWiring):
    """Each latent reads one layer and writes to it and all later ones.

    Latent `i` reads layer `i % layers` (Ameisen et al. 2025).

    Attributes:
        layers: how many.
        embed: size of each layer's input and output.
    """

    layers: int = eqx.field(static=True)
    embed: int = eqx.field(static=True)

    @property
    def reads(self) -> tuple[int, ...]:
        """Shape of one input."""
        return (self.layers, self.embed)

    @property
    def writes(self) -> tuple[int, ...]:
        """Shape of one output."""
        return (self.layers, self.embed)

    @property
    def whole(self) -> bool:
        """True if every latent reads all of the input: it reads its layer only."""
        return False

    def widths(self, latents: int) -> tuple[int, int]:
        """Returns the sizes of a row of encoder and decoder."""
        if latents % self.layers:
            raise ShapeError(
                f"{latents} latents cannot be shared by {self.layers} layers evenly."
            )
        return self.embed, self.layers * self.embed

    def project(
        self, weights: Weights, x: Float[Array, "batch *reads"], dtype: Any = None
    ) -> Float[Array, "batch latent"]:
        """Returns what latents read, from their own layer."""
        dtype = x.dtype if dtype is None else dtype
        encoder = weights.encoder.reshape(-1, self.layers, self.embed)
        found = jnp.einsum(
            "ble,nle->bnl",
            x.astype(dtype),
            encoder.astype(dtype),
            preferred_element_type=jnp.float32,
        )
        return found.reshape(x.shape[0], -1)

    def read(
        self, weights: Weights, x: Float[Array, "rows *reads"]
    ) -> Float[Array, "rows in"]:
        """Return the layer of example `i` that latent `i` reads."""
        latent = jnp.arange(x.shape[0])
        return x[latent, latent % self.layers]

    def rows(self, weights: Weights) -> Float[Array, "latent out"]:
        """Returns the decoder, without what would be written to earlier layers."""
        latents = weights.decoder.shape[0]
        later = jnp.arange(self.layers) >= (jnp.arange(latents) % self.layers)[:, None]
        return weights.decoder * jnp.repeat(later, self.embed, axis=1)


def check_scale(wiring: AbstractWiring, scale: Any) -> None:
    """Refuse a scale that is neither one number nor one per site.

    Raises:
        ConfigError: a scale of another shape.
    """
    sites = wiring.reads[:-1] if wiring.reads == wiring.writes else ()
    if eqx.is_array_like(scale) and jnp.shape(scale) in ((), sites):
        return
    given = f"shape {np.shape(scale)}" if np.ndim(scale) else repr(scale)
    wanted = f"one number, or {sites[0]}, one per site" if sites else "one number"
    raise ConfigError(f"scale takes {wanted}, such as 1.0, got {given}.")


def over_embed(scale: Any) -> Any:
    """Return a scale by which activations, `[*site, embed]`, are multiplied."""
    return scale if jnp.ndim(scale) == 0 else jnp.asarray(scale)[:, None]


def check_batch(wiring: AbstractWiring, batch: Any) -> None:
    """Refuses a batch that is not of what a wiring reads and writes.

    Raises:
        ShapeError: activations of another shape, or no activations.
    """
    if not hasattr(batch, "x"):
        raise ShapeError(
            f"Dictionaries take batches of activations, the source gives "
            f"{type(batch).__name__}: give mijax.data.Activations(model, tokens, site)."
        )
    sides = {"reads": (wiring.reads, batch.x), "writes": (wiring.writes, batch.y)}
    for verb, (shape, given) in sides.items():
        if given.shape[1:] != shape:
            raise ShapeError(
                f"{wiring} {verb} activations {list(shape)}, the source gives "
                f"{list(given.shape[1:])} per example: change the sizes of the wiring, "
                "or the source."
            )


def product(
    x: Float[Array, "batch in"], rows: Float[Array, "latent in"], dtype: Any = None
) -> Float[Array, "batch latent"]:
    """Multiplies by rows, in `dtype`, adding up in float32."""
    dtype = x.dtype if dtype is None else dtype
    return jnp.einsum(
        "be,le->bl",
        x.astype(dtype),
        rows.astype(dtype),
        preferred_element_type=jnp.float32,
    )
