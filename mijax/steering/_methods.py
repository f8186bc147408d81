"""Methods that compute a direction from the activations of two sets of prompts."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax.probes import AbstractLinear, Data, Logistic

Positive = Float[Array, "positive embed"]
Negative = Float[Array, "negative embed"]
Vector = Float[Array, " embed"]


class AbstractMethod(eqx.Module):
    """A method that computes a direction from the activations in one layer.

    Attributes:
        paired: whether prompt `i` of one set is the counterpart of prompt `i` of the
            other.
        title: name of the method, recorded in `Directions`.
    """

    paired: ClassVar[bool]
    title: ClassVar[str]

    @abc.abstractmethod
    def __call__(self, positive: Positive, negative: Negative) -> Vector:
        """Return the direction from the negative to the positive prompts."""


class MeanDifference(AbstractMethod):
    r"""Difference between the means of two sets of any sizes: $\bar h_+ - \bar h_-$.

    Used for refusal directions (Arditi et al. 2024) and in DiffMean.

    Examples:
        >>> MeanDifference()(jnp.ones((3, 2)), jnp.zeros((5, 2))).tolist()
        [1.0, 1.0]
    """

    paired: ClassVar[bool] = False
    title: ClassVar[str] = "mean difference"

    def __call__(self, positive: Positive, negative: Negative) -> Vector:
        """Return the difference between the means."""
        return positive.mean(0) - negative.mean(0)


class CAA(AbstractMethod):
    r"""Contrastive activation addition: the mean over pairs of $h_+ - h_-$.

    Rimsky et al. 2024 (arXiv:2312.06681) read the answer letter, which is the
    second-to-last token of a text that ends in `"(A)"`: use `position=FromEnd(2)`.
    """

    paired: ClassVar[bool] = True
    title: ClassVar[str] = "CAA"

    def __call__(self, positive: Positive, negative: Negative) -> Vector:
        """Return the mean of the differences."""
        return (positive - negative).mean(0)


class CenteredPCA(AbstractMethod):
    r"""RepE reading, repeng's `pca_diff`: principal component of the differences.

    First component of $\Delta_i = h_{+,i} - h_{-,i}$ after subtracting their mean, so
    the mean difference itself is removed. A majority vote sets the sign: it is flipped
    if the positive prompt has the smaller projection in most pairs. Norm 1.

    Source: Zou et al. 2023, arXiv:2310.01405, as repeng 0.4.0 computes it.
    """

    paired: ClassVar[bool] = True
    title: ClassVar[str] = "centered PCA"

    def __call__(self, positive: Positive, negative: Negative) -> Vector:
        """Return the first principal component."""
        delta = positive - negative
        return _by_majority(_component(delta - delta.mean(0)), delta)


class PairCenteredPCA(AbstractMethod):
    r"""RepE reading, repeng's `pca_center`: activations around each pair's midpoint.

    First component of $\pm\frac12 \Delta_i$: the uncentered component of the
    differences, with its sign set by majority vote over pairs. Norm 1.
    """

    paired: ClassVar[bool] = True
    title: ClassVar[str] = "pair-centered PCA"

    def __call__(self, positive: Positive, negative: Negative) -> Vector:
        """Return the first principal component."""
        delta = positive - negative
        return _by_majority(_component(delta), delta)


class UncenteredPCA(AbstractMethod):
    r"""RepE reading as in steering-vectors: first component of $[\Delta; -\Delta]$.

    The uncentered first component of the differences; the sign makes the mean
    projection of the differences positive. Norm 1.
    """

    paired: ClassVar[bool] = True
    title: ClassVar[str] = "uncentered PCA"

    def __call__(self, positive: Positive, negative: Negative) -> Vector:
        """Return the first principal component."""
        delta = positive - negative
        found = _component(delta)
        return jnp.where((delta @ found).mean() < 0, -found, found)


class PairedLogistic(AbstractMethod):
    r"""Logistic regression without intercept on pair-centered activations.

    The `logistic_aggregator` of steering-vectors: classes are $\pm\frac12 \Delta_i$,
    and the direction is the weight vector, with norm 1. In scikit-learn's terms,
    $\lambda = 1 / (C n)$ with $n$ examples, two for each pair.

    Attributes:
        inverse: scikit-learn's `C`.
        steps: maximum number of iterations.
        tolerance: gradient norm to stop at, relative to the first one.
    """

    inverse: float = eqx.field(static=True, default=1.0)
    steps: int = eqx.field(static=True, default=1000, kw_only=True)
    tolerance: float = eqx.field(static=True, default=1e-7, kw_only=True)
    paired: ClassVar[bool] = True
    title: ClassVar[str] = "paired logistic regression"

    def __call__(self, positive: Positive, negative: Negative) -> Vector:
        """Return the weights."""
        # Mirrored examples have an optimal bias of exactly 0.
        half = (positive - negative) / 2
        x = jnp.concatenate([-half, half])
        probe = Logistic(l2=1.0, steps=self.steps, tolerance=self.tolerance)
        penalty = jnp.asarray(1 / (self.inverse * len(x)), x.dtype)
        return _unit(probe.solve(_labeled(x), penalty, jax.random.key(0)).params.weight)


class ProbeWeights(AbstractMethod):
    """The weights of a linear probe, in the units of the activations, with norm 1.

    Attributes:
        probe: a linear probe with a single penalty strength.

    Examples:
        >>> import mijax
        >>> x = jax.random.normal(jax.random.key(0), (40, 3))
        >>> method = ProbeWeights(mijax.probes.Logistic(l2=0.1))
        >>> found = method(x + jnp.array([2.0, 0, 0]), x)
        >>> bool(found[0] > 0.9)
        True
    """

    probe: AbstractLinear = eqx.field(default_factory=lambda: Logistic(l2=0.1))
    paired: ClassVar[bool] = False
    title: ClassVar[str] = "probe"

    def __call__(self, positive: Positive, negative: Negative) -> Vector:
        """Return the weights."""
        x = jnp.concatenate([negative, positive])
        data = _labeled(x, len(positive))
        frame = self.probe.frame(x, data.weight)
        data = data._replace(x=frame.enter(x))
        penalty = jnp.asarray(self.probe.strengths[0], x.dtype)
        found = self.probe.solve(data, penalty, jax.random.key(0)).params.weight
        found = found[:, -1] - (found[:, 0] if found.shape[1] > 1 else 0)
        return _unit(found / frame.scale)


def _labeled(x: Array, positive: int | None = None) -> Data:
    """Label the last rows 1; half of them by default."""
    n = len(x)
    last = n // 2 if positive is None else positive
    y = (jnp.arange(n) >= n - last).astype(jnp.int32)
    return Data(x, y, jnp.full(n, 1 / n, x.dtype), 2)


def _component(rows: Float[Array, "row embed"]) -> Vector:
    """Return the right singular vector with the largest singular value.

    The sign makes its largest entry positive, as in scikit-learn's PCA. It remains
    where the majority vote over pairs is a tie.
    """
    found = jnp.linalg.svd(rows, full_matrices=False)[2][0]
    largest = found[jnp.argmax(jnp.abs(found))]
    return jnp.where(largest < 0, -found, found)


def _by_majority(vector: Vector, delta: Float[Array, "pair embed"]) -> Vector:
    """Flip a vector if the positive prompt projects lower on it in most pairs."""
    along = delta @ vector
    return jnp.where((along < 0).sum() > (along > 0).sum(), -vector, vector)


def _unit(vector: Float[Array, "..."]) -> Vector:
    vector = vector.reshape(-1)
    norm = jnp.linalg.norm(vector)
    return vector / jnp.where(norm == 0, 1, norm)
