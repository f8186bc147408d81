"""Erasers that need the labels when they are applied."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import ConfigError
from mijax.core import AbstractEdit, Add, PerPrompt
from mijax.core.internal import integers
from mijax.editing._eraser import AbstractErasure, classes, concept
from mijax.editing._leace import moments, shrunk


class OracleEraser(eqx.Module):
    r"""Erasure with known labels: $x \mapsto x - B (z - \mu_z)$.

    Attributes:
        coefficients: $B = \Sigma_{xz} \Sigma_{zz}^+$.
        mean: $\mu_z$.
        classes: the classes in the columns of $z$; empty if labels are numbers.
    """

    coefficients: Float[Array, "embed k"]
    mean: Float[Array, " k"]
    classes: tuple[int, ...] = eqx.field(static=True)

    def shift(self, labels: Any) -> Float[Array, "example embed"]:
        """Return the shift to add to activations with these labels."""
        given = jnp.asarray(labels)
        if self.classes:
            given = given[:, None] == jnp.asarray(self.classes)
        z = given.reshape(len(given), -1).astype(jnp.float32)
        return -(z - self.mean) @ self.coefficients.T

    def erase(
        self, x: Float[Array | np.ndarray, "example embed"], labels: Any
    ) -> Float[Array, "example embed"]:
        """Return activations without the concept."""
        return jnp.asarray(x) + self.shift(labels)

    def edit(self, labels: Any) -> Add:
        """Return the edit of a batch of prompts with these labels, one per prompt."""
        return Add(PerPrompt(self.shift(labels)))


class OracleLEACE(AbstractErasure):
    """LEACE with known labels: the residual of a regression on the concept.

    It changes activations less than LEACE, since it subtracts each example's prediction
    from its label (Belrose et al. 2023, section 4.2). Fits an `OracleEraser`.

    Attributes:
        tolerance: smaller singular values of the concept's covariance count as zero.
    """

    tolerance: float = 0.01

    def fit(
        self, x: Float[np.ndarray, "example embed"], labels: np.ndarray
    ) -> OracleEraser:
        """Fit the eraser."""
        z = concept(labels)
        cross = moments(x, labels, False)[2]
        centered = z - z.mean(0)
        covariance = centered.T @ centered / (len(z) - 1)
        values, vectors = np.linalg.eigh(covariance)
        kept = values > self.tolerance
        inverse = (
            vectors * np.where(kept, 1 / np.where(kept, values, 1), 0)
        ) @ vectors.T
        is_class = labels.ndim == 1 and labels.dtype.kind != "f"
        return OracleEraser(
            jnp.asarray(cross @ inverse, jnp.float32),
            jnp.asarray(z.mean(0), jnp.float32),
            tuple(int(c) for c in np.unique(labels)) if is_class else (),
        )


class Transport(AbstractEdit):
    """An affine map for each prompt's class: `x -> (x - mean_c) A_c + mean`."""

    labels: PerPrompt
    maps: Float[Array, "class embed embed"]
    means: Float[Array, "class embed"]
    mean: Float[Array, " embed"]

    def __call__(self, x: Float[Array, "rows embed"], place: Any) -> Array:
        """Transport every row according to its prompt's class."""
        label = place.each(self.labels, x)
        wide = x.astype(jnp.float32)
        # Apply the maps of all classes, then select each row's own.
        moved = jnp.einsum("rd,cde->cre", wide, self.maps)
        moved += self.mean - jnp.einsum("cd,cde->ce", self.means, self.maps)[:, None]
        number = jnp.arange(len(self.maps)).reshape(-1, *(1,) * x.ndim)
        return jnp.where(number == label, moved, 0).sum(0).astype(x.dtype)


class QuadraticEraser(eqx.Module):
    """Erasure of differences in class means and covariances, with known labels.

    Attributes:
        maps: optimal transport of each class to the barycenter.
        means: mean of each class.
        mean: mean of the class means.
        classes: the classes.
    """

    maps: Float[Array, "class embed embed"]
    means: Float[Array, "class embed"]
    mean: Float[Array, " embed"]
    classes: tuple[int, ...] = eqx.field(static=True)

    def index(self, labels: Any) -> Int[np.ndarray, " example"]:
        """Return the index of each label among the classes.

        Raises:
            ConfigError: a class that the eraser was not fitted to.
        """
        given = np.asarray(integers(labels, "A label"))
        if not np.isin(given, self.classes).all():
            wrong = given[~np.isin(given, self.classes)][0]
            raise ConfigError(
                f"The eraser was fitted to classes {list(self.classes)}, got {wrong}."
            )
        return np.searchsorted(np.asarray(self.classes), given)

    def erase(
        self, x: Float[Array | np.ndarray, "example embed"], labels: Any
    ) -> Float[Array, "example embed"]:
        """Return activations whose classes have equal mean and covariance."""
        at = self.index(labels)
        centered = jnp.asarray(x) - self.means[at]
        return jnp.einsum("nd,nde->ne", centered, self.maps[at]) + self.mean

    def edit(self, labels: Any) -> Transport:
        """Return the edit of a batch of prompts with these labels, one per prompt."""
        at = PerPrompt(jnp.asarray(self.index(labels), jnp.int32))
        return Transport(at, self.maps, self.means, self.mean)


class Quadratic(AbstractErasure):
    """Quadratic concept erasure: give all classes the same mean and covariance.

    Optimal transport between Gaussians moves every class to the barycenter of all
    (Bures-Wasserstein; closed form for two classes, otherwise the fixed-point iteration
    of Álvarez-Esteban et al. 2016, arXiv:1511.05355). As in concept-erasure 0.2.4, the
    new mean is the unweighted mean of the class means. Fits a `QuadraticEraser`.

    Attributes:
        shrinkage: estimate covariances by optimal linear shrinkage.
        steps: maximum number of fixed-point iterations.
    """

    shrinkage: bool = True
    steps: int = 100

    def fit(
        self, x: Float[np.ndarray, "example embed"], labels: np.ndarray
    ) -> QuadraticEraser:
        """Fit the eraser."""
        y = classes(labels, "Quadratic")
        counts = np.bincount(y)
        if counts.min() < 2 or len(counts) < 2:
            raise ConfigError(
                f"Quadratic needs 2 or more classes with 2 or more examples each, got "
                f"{counts.tolist()} examples."
            )
        means = np.stack([x[y == c].mean(0) for c in range(len(counts))])
        sigmas = []
        for c, n in enumerate(counts):
            rows = x[y == c] - means[c]
            square = rows.T @ rows
            sigmas.append(
                shrunk(square / n, int(n)) if self.shrinkage else square / (n - 1)
            )
        weights = counts / counts.sum()
        middle = midpoint if len(counts) == 2 else barycenter
        center = middle(np.stack(sigmas), weights, self.steps)
        maps = np.stack([transport(sigma, center) for sigma in sigmas])
        return QuadraticEraser(
            jnp.asarray(maps, jnp.float32),
            jnp.asarray(means, jnp.float32),
            jnp.asarray(means.mean(0), jnp.float32),
            tuple(int(c) for c in np.unique(labels)),
        )


def roots(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the square root of a covariance and its pseudo-inverse."""
    values, vectors = np.linalg.eigh(matrix)
    least = values[-1] * len(values) * np.finfo(np.float64).eps
    root = np.sqrt(np.maximum(values, 0))
    inverse = np.where(values > least, 1 / np.where(root > 0, root, 1), 0)
    return (vectors * root) @ vectors.T, (vectors * inverse) @ vectors.T


def transport(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the optimal transport map between centered Gaussians."""
    root, inverse = roots(source)
    return inverse @ roots(root @ target @ root)[0] @ inverse


def midpoint(sigmas: np.ndarray, weights: np.ndarray, steps: int) -> np.ndarray:
    """Return the barycenter of two Gaussians, in closed form."""
    del steps
    first, second = sigmas
    root, inverse = roots(first)
    product = root @ roots(root @ second @ root)[0] @ inverse
    a, b = weights
    return a * a * first + b * b * second + a * b * (product + product.T)


def barycenter(sigmas: np.ndarray, weights: np.ndarray, steps: int) -> np.ndarray:
    """Return the barycenter of Gaussians, by fixed-point iteration."""
    center = np.einsum("c,cij->ij", weights, sigmas)
    loss, spread = np.inf, np.trace(center)
    for _ in range(steps):
        root, inverse = roots(center)
        inner = np.stack([roots(root @ sigma @ root)[0] for sigma in sigmas])
        mixed = np.einsum("c,cij->ij", weights, inner)
        new = np.trace(center) + spread - 2 * np.trace(mixed)
        if loss - new < np.finfo(np.float64).eps:
            break
        loss, step = new, inverse @ mixed @ inverse
        center = step @ center @ step.T
    return center
