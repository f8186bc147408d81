"""LEACE and its relatives: least-squares concept erasure."""

import numpy as np
from jaxtyping import Float

from mijax.editing._eraser import AbstractErasure, Eraser, concept, eraser_of


class LEACE(AbstractErasure):
    r"""Least-squares concept erasure (Belrose et al. 2023, arXiv:2306.03819).

    Among all affine maps after which no linear classifier beats a constant, LEACE
    changes the activations least, in the mean square of every norm:

    \[ r(x) = x - W^+ U U^\top W (x - \mu), \quad W = \Sigma_{xx}^{-1/2} \]

    with the left singular vectors $U$ of $W \Sigma_{xz}$ whose singular values exceed
    `tolerance`. Defaults match concept-erasure 0.2.4, in float64. That package can also
    constrain the trace of the covariance, which has no effect: erasure leaves
    $\mathrm{tr}\,\Sigma - \mathrm{tr}\, U^\top \Sigma U$, never more than before.

    Attributes:
        affine: preserve the mean of the activations; otherwise the map is linear.
        shrinkage: estimate $\Sigma_{xx}$ by optimal linear shrinkage (Bodnar et al.
            2014, arXiv:1308.2608), for few examples. The estimate then differs from the
            sample covariance, but erasure on the sample remains exact.
        tolerance: absolute threshold; smaller singular values are treated as noise.
    """

    affine: bool = True
    shrinkage: bool = True
    tolerance: float = 0.01

    def fit(self, x: Float[np.ndarray, "example embed"], labels: np.ndarray) -> Eraser:
        """Fit the eraser."""
        mean, sigma, cross = moments(x, labels, self.shrinkage)
        values, vectors = np.linalg.eigh(sigma)
        kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
        root = np.sqrt(np.where(kept, values, 0))
        half = (vectors * np.where(kept, 1 / np.where(kept, root, 1), 0)) @ vectors.T
        back = (vectors * root) @ vectors.T
        u = leading(half @ cross, self.tolerance)
        shift = mean if self.affine else np.zeros_like(mean)
        return eraser_of(back @ u, u.T @ half, shift)


class MeanProjection(AbstractErasure):
    r"""Orthogonal projection that makes the means of classes equal.

    $r(x) = x - U U^\top (x - \mu)$ with the left singular vectors $U$ of
    $\Sigma_{xz}$: LEACE without whitening ("orth" in concept-erasure), which changes
    activations more (the mean projection of Haghighatkhah et al. 2022,
    arXiv:2212.04273).

    Attributes:
        affine: preserve the mean of the activations; otherwise the map is linear.
        tolerance: absolute threshold; smaller singular values are treated as noise.
    """

    affine: bool = True
    tolerance: float = 0.01

    def fit(self, x: Float[np.ndarray, "example embed"], labels: np.ndarray) -> Eraser:
        """Fit the eraser."""
        mean, _, cross = moments(x, labels, False)
        u = leading(cross, self.tolerance)
        return eraser_of(u, u.T, mean if self.affine else np.zeros_like(mean))


def moments(
    x: np.ndarray, labels: np.ndarray, shrinkage: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, covariance, and covariance with the concept."""
    z = concept(labels)
    n, mean = len(x), x.mean(0)
    centered = x - mean
    square = centered.T @ centered
    cross = centered.T @ (z - z.mean(0)) / (n - 1)
    return mean, shrunk(square / n, n) if shrinkage else square / (n - 1), cross


def shrunk(sample: np.ndarray, n: int) -> np.ndarray:
    """Shrink a sample covariance toward a multiple of the identity, optimally."""
    size = len(sample)
    trace = np.trace(sample)
    target = np.eye(size) * trace / size
    target_square, square = (target**2).sum(), (sample**2).sum()
    product = np.trace(sample @ target)
    eps = np.finfo(np.float64).eps
    above = trace**2 * target_square / n + eps
    alpha = 1 - above / (square * target_square - product**2 + eps)
    beta = (1 - alpha) * (product + eps) / (target_square + eps)
    return alpha * sample + beta * target


def leading(matrix: np.ndarray, tolerance: float) -> Float[np.ndarray, "embed rank"]:
    """Return left singular vectors with singular values above a tolerance."""
    u, values, _ = np.linalg.svd(matrix, full_matrices=False)
    return u[:, values > tolerance]
