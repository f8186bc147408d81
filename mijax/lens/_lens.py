"""Lenses: maps of the residual stream that the final norm and unembedding then read."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from mijax._errors import ShapeError, SiteError, nearest

# Sites of the whole residual stream, as the final norm expects it.
STREAM = ("resid_pre", "resid_mid", "resid_post")


class AbstractLens(eqx.Module):
    """A map of every layer's residual stream, before the final norm and unembedding.

    A new lens is one subclass; `read`, `evaluate_lens` and the pictures take any.
    """

    @property
    @abc.abstractmethod
    def site(self) -> str | None:
        """Site that is read; `None` is the one that the model's outputs read."""

    @abc.abstractmethod
    def __call__(
        self, x: Float[Array, "prompt layer position embed"]
    ) -> Float[Array, "prompt layer position embed"]:
        """Map the residual stream of all layers."""

    def check(self, model: Any, layers: int, embed: int) -> None:
        """Refuse a model that the lens does not fit.

        Args:
            model: the model.
            layers: number of layers of the site.
            embed: width of the residual stream.

        Raises:
            ShapeError: another number of layers, or another width.
            FrameError: other weight processing.
        """

    @property
    def rows(self) -> int | None:
        """Number of layers that the lens takes; `None` is any."""
        return None


class LogitLens(AbstractLens):
    r"""The identity: $\ell_i = W_U\,\mathrm{LN}(r_i)$.

    nostalgebraist 2020, "interpreting GPT: the logit lens".

    Attributes:
        at: `"resid_post"`, `"resid_pre"` or `"resid_mid"`; in a function any site as
            wide as the residual stream. By default `"resid_post"`, in a function the
            site of its readout.

    Examples:
        >>> LogitLens("resid_pre").site
        'resid_pre'
    """

    at: str | None = eqx.field(static=True, default=None)

    @property
    def site(self) -> str | None:
        """Site that is read."""
        return self.at

    def __call__(
        self, x: Float[Array, "prompt layer position embed"]
    ) -> Float[Array, "prompt layer position embed"]:
        """Return the stream."""
        return x


class RotatedLens(AbstractLens):
    r"""Control of any lens: it reads the stream after a random rotation.

    $\ell_i = \mathrm{lens}(Q r_i)$ with one orthogonal $Q$ for all layers, drawn
    uniformly. Norms and angles of the stream stay; what is left of a result is not due
    to its directions.

    Attributes:
        lens: the lens.
        key: seed of the rotation.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_llama(jax.random.key(0))
        >>> control = RotatedLens(LogitLens(), jax.random.key(1))
        >>> mijax.lens.read(model, [5, 6, 7], control, top=1).tokens.shape
        (3, 3, 1)
    """

    lens: AbstractLens
    key: PRNGKeyArray

    @property
    def site(self) -> str | None:
        """Site that is read."""
        return self.lens.site

    @property
    def rows(self) -> int | None:
        """Number of layers that the lens takes."""
        return self.lens.rows

    def check(self, model: Any, layers: int, embed: int) -> None:
        """Refuse a model that the lens does not fit."""
        self.lens.check(model, layers, embed)

    def __call__(
        self, x: Float[Array, "prompt layer position embed"]
    ) -> Float[Array, "prompt layer position embed"]:
        """Rotate the stream and apply the lens."""
        drawn = jax.random.normal(self.key, (x.shape[-1],) * 2)
        q, r = jnp.linalg.qr(drawn)
        # Signs of the diagonal make the rotation uniform (Mezzadri 2007).
        q = q * jnp.sign(jnp.diagonal(r))
        return self.lens((x.astype(q.dtype) @ q).astype(x.dtype))


def check_stream(site: str) -> None:
    """Refuse a site that is not the residual stream of a decoder.

    Raises:
        SiteError: another site.
    """
    if site not in STREAM:
        raise SiteError(
            f"The lens reads the residual stream, not {site!r}.{nearest(site, STREAM)}"
        )


def check_fit(kind: str, fitted: tuple[int, int], layers: int, embed: int) -> None:
    """Refuse a model of another size than a lens was fitted on.

    Raises:
        ShapeError: another number of layers, or another width.
    """
    if fitted != (layers, embed):
        raise ShapeError(
            f"The {kind} was fitted on {fitted[0]} layers of width {fitted[1]}, but "
            f"the model has {layers} of width {embed}: load the lens of this model."
        )
