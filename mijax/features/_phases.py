"""What becomes of one more feature than there are dimensions."""

import enum

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

Numbers = float | Real[Array | np.ndarray, "..."]


class Phase(enum.IntEnum):
    """What a model does with a feature.

    Attributes:
        ABSENT: it is not represented.
        OWN: it has a dimension of its own.
        SHARED: it is in superposition.

    Examples:
        >>> Phase(2).name
        'SHARED'
    """

    ABSENT = 0
    OWN = 1
    SHARED = 2


def phase_of(
    weights: Float[Array, "*instance feature embed"], *, feature: int = -1
) -> Int[Array, "*instance"]:
    r"""Says what models do with a feature.

    Args:
        weights: where each feature lies.
        feature: which.

    Returns:
        The `Phase`: `ABSENT` where $\lVert W_i \rVert^2$ is below 1/2; of the others
        `SHARED` where $\sum_{j \ne i} (\hat W_i \cdot W_j)^2$ is above 1/4, else `OWN`.

    Examples:
        >>> pairs = jnp.array([[[1.0], [0.0]], [[0.0], [1.0]], [[1.0], [-1.0]]])
        >>> phase_of(pairs).tolist()
        [0, 1, 2]
    """
    one = weights[..., feature, :]
    squared = (one**2).sum(-1)
    overlap = ((weights * one[..., None, :]).sum(-1) ** 2).sum(-1) - squared**2
    shared = overlap > squared / 4
    return jnp.where(
        squared < 1 / 2, Phase.ABSENT, jnp.where(shared, Phase.SHARED, Phase.OWN)
    )


def absent_loss(density: Numbers) -> np.ndarray:
    r"""Computes the expected loss of a feature of importance 1 that is not there.

    Args:
        density: chance $p$ that it is there, and then uniform in $[0, 1]$.

    Returns:
        $\min_b E(x - b)^2 = p/3 - p^2/4$, its variance.

    Examples:
        >>> round(float(absent_loss(np.array(1.0))), 4)
        0.0833
    """
    p = np.asarray(density, np.float64)
    return np.asarray(p / 3 - p**2 / 4)


def antipodal_loss(density: Numbers) -> np.ndarray:
    r"""Computes the expected loss of a feature of importance 1 in an antipodal pair.

    The model restores $\hat x_1 = \max(0, x_1 - x_2 + b)$, where both features are
    there with chance $p$. For $0 \le b \le 1$,

    $$E(x_1 - \hat x_1)^2 = (1 - p) b^2 + \tfrac13 p (1 - p) b^3 + p^2 \left(
    \tfrac13 (1 - b)^3 + \tfrac13 b^3 - \tfrac16 (1 - b)^4 \right),$$

    which is convex in $b$.

    Args:
        density: chance $p$ of both features.

    Returns:
        The loss with the best bias.

    Examples:
        >>> bool(antipodal_loss(np.array(0.1)) < absent_loss(np.array(0.1)))
        True
    """
    p = np.asarray(density, np.float64)
    low, high = np.zeros_like(p), np.ones_like(p)
    for _ in range(50):
        b = (low + high) / 2
        slope = (1 - p) * (2 * b + p * b**2)
        slope = slope + p**2 * (b**2 - (1 - b) ** 2 + 2 / 3 * (1 - b) ** 3)
        low, high = np.where(slope < 0, b, low), np.where(slope < 0, high, b)
    return pair_loss(p, (low + high) / 2)


def pair_loss(density: Numbers, bias: Numbers) -> np.ndarray:
    """Computes the loss of `antipodal_loss` with a given bias from 0 to 1."""
    p, b = np.asarray(density, np.float64), np.asarray(bias, np.float64)
    alone = (1 - p) * (b**2 + p * b**3 / 3)
    both = ((1 - b) ** 3 + b**3) / 3 - (1 - b) ** 4 / 6
    return np.asarray(alone + p**2 * both)


def phase_theory(
    density: Numbers, importance: Numbers, *, embed: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    r"""Predicts what becomes of a feature when there are `embed` others.

    The others have importance 1, the feature has its own; all are there with chance
    $p$. The least expected loss of a few models decides, each with its best bias. With
    one dimension these are the rows of features `[1, 0]`, `[0, 1]` and `[1, -1]`. With
    more, every feature but those has a dimension of its own, and one more model lets
    two of the others share one.

    Args:
        density: $p$, of any shape.
        importance: of the feature, of the same shape.
        embed: dimensions.

    Returns:
        The `Phase` of each, and the expected losses `[candidate, ...]`, summed over
        features: the feature absent, in place of another, sharing with another, and
        beside two others that share.

    Examples:
        >>> p, importance = np.array([1.0, 1.0, 0.01]), np.array([0.5, 2.0, 1.0])
        >>> found, losses = phase_theory(p, importance)
        >>> found.tolist()
        [0, 1, 2]
    """
    p = np.asarray(density, np.float64)
    extra = np.asarray(importance, np.float64)
    absent, pair = absent_loss(p), antipodal_loss(p)
    losses = [extra * absent, absent + 0 * extra, (1 + extra) * pair]
    phases = [Phase.ABSENT, Phase.OWN, Phase.SHARED]
    if embed > 1:
        losses.append(2 * pair + 0 * extra)
        phases.append(Phase.OWN)
    stacked = np.stack(losses)
    return np.asarray(phases)[stacked.argmin(0)], stacked
