"""Swaps of subspaces: interchange interventions on a model, as edits."""

from typing import Any, final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax._errors import PositionError, ShapeError
from mijax.core import AbstractEdit, Place, Site, Sites
from mijax.core.internal import get


@final
class Subspaces(eqx.Module):
    """Where variables lie in an activation: one orthogonal subspace for each.

    Attributes:
        basis: orthonormal rows; the identity where variables are sets of neurons.
        mask: how much each row belongs to each variable, between 0 and 1.
    """

    basis: Float[Array, "*lane row width"]
    mask: Float[Array, "*lane variable row"]


@final
class Swap(AbstractEdit):
    r"""Sets subspaces of an activation to what they are in other runs.

    $$x \mapsto x + \sum_v B^\top \mathrm{diag}(m_v) B \, (s_v - x)$$

    with the basis $B$, the mask $m_v$ of a variable and its source $s_v$ (Geiger et
    al. 2023, arXiv:2303.02536). A source that is the activation itself changes nothing,
    bit for bit.

    Args:
        subspaces: where the variables lie.
        source: activations of the other runs, one for each variable.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> first = Subspaces(jnp.eye(32), jnp.ones((1, 32)).at[:, 4:].set(0))
        >>> edit = Swap(first, jnp.ones((1, 32))).at("resid_post", layer=1, position=2)
        >>> mijax.run(model, jnp.array([5, 6, 7]), edit).shape
        (3, 64)
    """

    subspaces: Subspaces
    source: Float[Array, "*prompt variable width"]

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Swaps in every row."""
        source, (variables, width) = self.source, self.source.shape[-2:]
        basis, mask = self.subspaces.basis, self.subspaces.mask
        if (width, width) != (basis.shape[-1], x.shape[-1]) or variables != len(mask):
            raise ShapeError(
                f"Subspaces of {len(mask)} variables in {basis.shape[-1]} numbers and "
                f"sources of shape {source.shape} do not fit rows of {x.shape[1:]}."
            )
        if source.ndim > 2:
            if place.rows.prompt is None:
                raise PositionError(
                    f"The sources are of {source.shape[0]} prompts, but a single one "
                    "is run: index them, or run the whole batch."
                )
            rows = jnp.broadcast_to(place.rows.prompt, x.shape[:1])
            source = source[rows].reshape(
                (x.shape[0],) + (1,) * (x.ndim - 2) + (variables, width)
            )
        off = source - x[..., None, :]
        inside = jnp.einsum("...vd,rd,vr->...r", off, basis, mask)
        return x + (inside @ basis).astype(x.dtype)


def activation(acts: Sites[Any], site: Site) -> Float[Array, "*lane width"]:
    """Reads one vector of the activations of one example.

    Args:
        acts: what a model returns beside its output.
        site: the place, with a layer where the site has one, and a position where the
            example has several.

    Returns:
        The vector.

    Raises:
        PositionError: the site leaves open which vector is meant.
        ShapeError: the model has no such site.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> _, acts = model(jnp.array([5, 6, 7]))
        >>> activation(acts, Site("resid_post", layer=1, position=2)).shape
        (32,)
    """
    value = get(acts, site.name)
    if value is None:
        raise ShapeError(f"The model has no activations at {site.name!r}.")
    if site.layered:
        if site.layer is None:
            raise PositionError(f"Say which layer of {site.name!r} is meant.")
        value = jnp.take(value, jnp.asarray(site.layer), axis=0)
    if site.position is None and value.shape[0] > 1:
        raise PositionError(
            f"Say which position of {site.name!r} is meant, of {value.shape[0]}."
        )
    at = 0 if site.position is None else site.position
    value = jnp.take(value, jnp.asarray(at), axis=0)
    if value.ndim > 1:
        if site.head is None:
            raise PositionError(f"Say which head of {site.name!r} is meant.")
        value = jnp.take(value, jnp.asarray(site.head), axis=0)
    return value
