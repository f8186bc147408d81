"""Lenses: maps of the residual stream before the final norm and unembedding."""

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

    To add a lens, write one subclass; `read`, `evaluate_lens` and the figures take any.
    """

    @property
    @abc.abstractmethod
    def site(self) -> str | None:
        """Site that the lens reads; `None` for the site that feeds the outputs."""

    @abc.abstractmethod
    def __call__(
        self, x: Float[Array, "prompt layer position embed"]
    ) -> Float[Array, "prompt layer position embed"]:
        """Map the residual stream of all layers."""

    def check(self, model: Any, layers: int, embed: int) -> None:
        """Raise if the lens does not fit the model.

        Args:
            model: the model.
            layers: number of layers of the site.
            embed: width of the residual stream.

        Raises:
            ShapeError: a different number of layers, or a different width.
            FrameError: different weight processing.
        """

    @property
    def rows(self) -> int | None:
        """Number of layers that the lens supports; `None` for any."""
        return None


class LogitLens(AbstractLens):
    r"""The identity: $\ell_i = W_U\,\mathrm{LN}(r_i)$.

    nostalgebraist 2020, "interpreting GPT: the logit lens".

    Attributes:
        at: `"resid_post"`, `"resid_pre"` or `"resid_mid"`; for a function, any site
            with the width of the residual stream. By default `"resid_post"`, or the
            site of a function's readout.

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
    r"""Control for any lens: it reads the stream after a random rotation.

    $\ell_i = \mathrm{lens}(Q r_i)$ with one orthogonal $Q$ for all layers, drawn
    uniformly. The rotation preserves norms and angles, so a result that survives it
    does not come from specific directions.

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
        """Number of layers that the lens supports."""
        return self.lens.rows

    def check(self, model: Any, layers: int, embed: int) -> None:
        """Raise if the lens does not fit the model."""
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
    """Raise if a site is not the residual stream of a decoder.

    Raises:
        SiteError: a different site.
    """
    if site not in STREAM:
        raise SiteError(
            f"The lens reads the residual stream, not {site!r}.{nearest(site, STREAM)}"
        )


def check_fit(kind: str, fitted: tuple[int, int], layers: int, embed: int) -> None:
    """Raise if the model's size differs from that of the fitted model.

    Raises:
        ShapeError: a different number of layers, or a different width.
    """
    if fitted != (layers, embed):
        raise ShapeError(
            f"The {kind} was fitted on {fitted[0]} layers of width {fitted[1]}, but "
            f"the model has {layers} of width {embed}: load the lens for this model."
        )
