"""How much of a dimension each feature has, and where features stick."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax._errors import ShapeError

FRACTIONS = (3 / 4, 2 / 3, 1 / 2, 2 / 5, 3 / 8)
"""Dimensions of a feature in a tetrahedron, triangle, digon, pentagon, antiprism."""

WIDTH, FLANK, LEAST, RATIO = 0.005, 0.0125, 10, 2
DENSE = 0.95


def dimensionality(
    weights: Float[Array, "*instance feature embed"],
) -> Float[Array, "*instance feature"]:
    r"""Computes the share of a dimension that each feature has.

    Args:
        weights: where each feature lies.

    Returns:
        $D_i = \lVert W_i \rVert^2 / \sum_j (\hat W_i \cdot W_j)^2$: 1 for a feature
        with a dimension of its own, 1/2 in an antipodal pair, 0 for one that is not
        there.

    Examples:
        >>> dimensionality(jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]])).tolist()
        [0.5, 0.5, 1.0]
    """
    squared = (weights**2).sum(-1)
    overlap = (weights @ jnp.swapaxes(weights, -1, -2)) ** 2
    # Both sides times the squared length: rows of zeros divide 0 by 0.
    total = overlap.sum(-1)
    return jnp.where(total > 0, squared**2 / jnp.where(total > 0, total, 1), 0)


def dimensions_per_feature(
    weights: Float[Array, "*instance feature embed"],
) -> Float[Array, "*instance"]:
    r"""Computes dimensions per feature that is there.

    Args:
        weights: where each feature lies.

    Returns:
        $D^* = m / \lVert W \rVert_F^2$ with $m$ dimensions: 1 where as many features
        are there, 1/2 where twice as many are.

    Examples:
        >>> dimensions_per_feature(jnp.array([[1.0], [-1.0]])).item()
        0.5
    """
    return weights.shape[-1] / (weights**2).sum((-1, -2))


class Lines(NamedTuple):
    """Where features stick.

    Attributes:
        fractions: of a dimension.
        counts: features within 0.005 of each.
        below: features within 0.005 of what lies 0.0125 below.
        above: and of what lies 0.0125 above.
        present: whether there is a line: at least 10 features, and at least twice as
            many as on either side.
    """

    fractions: tuple[float, ...]
    counts: np.ndarray
    below: np.ndarray
    above: np.ndarray
    present: np.ndarray


def count_lines(
    dimensions: Float[Array | np.ndarray, "instance feature"],
    per_feature: Float[Array | np.ndarray, " instance"],
    *,
    fractions: Sequence[float] = FRACTIONS,
) -> Lines:
    r"""Counts features at fractions of a dimension, and beside them.

    Only instances that squeeze more features than they have dimensions count, those
    with $D^* < 0.95$; their features are pooled.

    Args:
        dimensions: share of a dimension of each feature, see `dimensionality`.
        per_feature: of each instance, see `dimensions_per_feature`.
        fractions: to look at.

    Returns:
        The counts, and which fractions are lines.

    Raises:
        ShapeError: not one number per instance.

    Examples:
        >>> found = count_lines(np.full((1, 12), 0.5), np.array([0.5]))
        >>> [f for f, there in zip(found.fractions, found.present) if there]
        [0.5]
    """
    dimensions, per_feature = np.asarray(dimensions), np.asarray(per_feature)
    if len(dimensions) != len(per_feature):
        raise ShapeError(
            f"Features of {len(dimensions)} instances and {len(per_feature)} numbers "
            "of dimensions per feature; give one for each instance."
        )
    pooled = dimensions[per_feature < DENSE].ravel()

    def near(shift: float) -> np.ndarray:
        places = np.asarray(fractions) + shift
        return (np.abs(pooled[:, None] - places) <= WIDTH).sum(0)

    counts, below, above = near(0.0), near(-FLANK), near(FLANK)
    present = (counts >= LEAST) & (counts >= RATIO * np.maximum(below, above))
    return Lines(tuple(fractions), counts, below, above, present)
