"""Projection: remove or keep a subspace of an activation."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from mijax._errors import ShapeError
from mijax.core._edits import AbstractEdit
from mijax.core._integers import reals
from mijax.core._place import Place


class Project(AbstractEdit):
    r"""Removes a subspace, $x \mapsto x - Q Q^\top x$, or keeps it alone.

    Args:
        directions: `[embed]` or `[k, embed]`, linearly independent; `Q` is an
            orthonormal basis of their span.
        keep: keep the span and remove the rest instead.

    Raises:
        ShapeError: directions that depend on each other, or are zero.
    """

    basis: Float[Array, "k embed"]
    keep: bool = eqx.field(static=True)

    def __init__(self, directions: Any, *, keep: bool = False):
        rows = jnp.atleast_2d(reals(directions, "Directions").astype(jnp.float32))
        q, r = jnp.linalg.qr(rows.T)
        length, least = jnp.abs(jnp.diagonal(r)), 1e-5 * jnp.linalg.norm(rows, axis=1)
        known = not isinstance(length, Tracer)
        if len(length) < len(rows) or (known and bool((length <= least).any())):
            raise ShapeError(
                "Project takes linearly independent directions that are not zero, got "
                f"{rows.shape[0]} of which some are not."
            )
        self.basis = q.T
        self.keep = keep

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Projects the last axis."""
        basis = self.basis
        if basis.shape[-1] != x.shape[-1]:
            raise ShapeError(
                f"Project has directions of size {basis.shape[-1]}, but the site's "
                f"last axis has size {x.shape[-1]}."
            )
        inside = jnp.einsum("...d,kd,ke->...e", x, basis, basis).astype(x.dtype)
        return inside if self.keep else x - inside
