"""A metric of a site's value, measured in the run and not from a capture."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import ShapeError, SiteError, quoted
from mijax.core._metric import AbstractMetric, own, wide
from mijax.core._sites import Site


def _same(value: Array) -> Array:
    return value


class site_metric(AbstractMetric):
    """A number computed from the value of a site, in place of the logits.

    `sweep` and `gradients` measure it in every run, next to metrics of the output, and
    keep only the part of the site that it reads. The value is the one that the model
    goes on with, after any edit.

    Args:
        site: the part that is read, as for `capture`: a `Site`, or the name of one. Of
            a decoder one layer of a site in the blocks, at one position, one per
            prompt, or every position.
        function: from the value for one example, as `capture` returns it, to a number;
            by default the value itself, which is a number if one index is given on
            each axis. A function with arrays, such as a direction to project on, is
            best an Equinox module (`eqx.Partial(jnp.vdot, direction)`): other arrays
            then run in the same program.

    Raises:
        SiteError: something else than a site.
        ShapeError: `function` is not a function.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> tokens = jax.numpy.array([[5, 6, 7], [8, 9, 10]])
        >>> last = mijax.Site("resid_post", layer=2, position=2)
        >>> norm = mijax.site_metric(last, jax.numpy.linalg.norm)
        >>> zero = mijax.Zero().at("z")
        >>> found = mijax.sweep(model, tokens, zero, over="head", metric=norm)
        >>> acts = mijax.capture(model, tokens, last)
        >>> bool(jax.numpy.allclose(found.base, jax.numpy.linalg.norm(acts, axis=-1)))
        True
    """

    site: Site
    function: Callable[[Array], Array]
    position: Any

    def __init__(self, site: Any, function: Callable[[Array], Any] = _same):
        site = Site(site) if isinstance(site, str) else site
        if not isinstance(site, Site):
            raise SiteError(
                "site_metric reads a site, for instance Site('resid_post', layer=5), "
                f"got {quoted(site)}."
            )
        if not callable(function):
            raise ShapeError(
                "site_metric takes a function from the site's value to a number, got "
                f"{quoted(function)}."
            )
        self.site, self.function = site, function
        given = site.position
        self.position = None if isinstance(given, slice | None) else jnp.asarray(given)

    def looks(self) -> tuple["site_metric", ...]:
        """Return the metric itself."""
        return (self,)

    def reads(self, prompt: Int[Array, ""] | None, seq: int) -> Int[Array, " reads"]:
        """Return the positions of the site that are read."""
        if self.position is None:
            return jnp.arange(seq, dtype=jnp.int32)
        return jnp.atleast_1d(own(self.position, prompt)).astype(jnp.int32)

    def ids(self, prompt: Int[Array, ""] | None) -> Int[Array, " k"]:
        """Return one token, the fewest that can be unembedded."""
        return jnp.zeros(1, jnp.int32)

    def picked(self, seen: tuple[Array, ...], prompt: Any) -> tuple[Array, ...]:
        """Select head and feature, and drop the axis of one position."""
        (value,) = seen
        if self.site.feature is not None:
            value = jnp.take(value, self.site.feature, axis=-1)
        if self.site.head is not None:
            value = jnp.take(value, self.site.head, axis=1)
        return (value if self.position is None else value[0],)

    def score_seen(
        self, logits: Any, seen: tuple[Array, ...], prompt: Any
    ) -> Float[Array, ""]:
        """Return the function's number."""
        found = jnp.asarray(self.function(seen[0]))
        if found.shape != ():
            raise ShapeError(
                f"site_metric needs one number for each example: its function returned "
                f"shape {found.shape} for a value of shape {seen[0].shape} at site "
                f"{self.site.name!r}."
            )
        return wide(found)

    def score(
        self, logits: Float[Array, "reads k"], prompt: Int[Array, ""] | None
    ) -> Float[Array, ""]:
        """Refuse logits.

        Raises:
            SiteError: always.
        """
        raise SiteError(
            f"site_metric reads site {self.site.name!r} and no logits: give it to "
            "sweep or gradients."
        )

    def counted(self) -> np.ndarray | None:
        """Return `None`: every position that is read counts."""
        return None


def seen_rows(
    looks: tuple[site_metric, ...],
    layer: Array,
    acts: Any,
    before: tuple[Array, ...],
    tile: Any,
    read: Array,
) -> tuple[Array, ...]:
    """Return the activations that metrics read in one block, `[lane, reads, ...]`.

    Args:
        looks: metrics of activations.
        layer: the layer.
        acts: its activations, at all rows or only at those that are read.
        before: values so far, of the unedited run at first.
        tile: the lanes.
        read: positions that are read of each lane.
    """
    row = jnp.clip(tile.offset[:, None] + read - tile.start[:, None], 0)
    row = jnp.minimum(row, tile.lane.shape[0] - 1).reshape(-1)
    own = read >= tile.start[:, None]
    found = []
    for look, old in zip(looks, before, strict=True):
        value = getattr(acts, look.site.name)
        value = value[row] if len(value) == tile.lane.shape[0] else value
        here = own & (layer == look.site.layer)
        here = here.reshape(*here.shape, *(1,) * (old.ndim - 2))
        found.append(jnp.where(here, value.reshape(old.shape), old))
    return tuple(found)
