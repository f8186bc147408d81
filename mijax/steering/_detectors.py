"""Detectors, which fit a direction to texts with and without a concept."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mijax.probes import AbstractLinear, Logistic
from mijax.steering._methods import ProbeWeights

Tokens = Float[np.ndarray, "token embed"]
Others = Float[np.ndarray, "other embed"]
Vector = Float[np.ndarray, " embed"]


class AbstractDetector(eqx.Module):
    """A method that finds a direction whose projections detect a concept."""

    @abc.abstractmethod
    def vector(self, positive: Tokens, negative: Others, *, seed: int) -> Vector:
        """Return the direction, with norm 1.

        Args:
            positive: activations of the tokens of texts with the concept.
            negative: activations of the tokens of texts without it.
            seed: seed for random draws.
        """


class DiffMean(AbstractDetector):
    """Difference between the means over tokens."""

    def vector(self, positive: Tokens, negative: Others, *, seed: int) -> Vector:
        """Return the difference."""
        return _unit(positive.mean(0) - negative.mean(0))


class PositivePCA(AbstractDetector):
    """First principal component of the tokens of positive texts.

    PCA leaves the sign open; here the largest entry is positive.
    """

    def vector(self, positive: Tokens, negative: Others, *, seed: int) -> Vector:
        """Return the component."""
        return _component(positive - positive.mean(0))


class LAT(AbstractDetector):
    """Linear artificial tomography: PCA of differences between random token pairs.

    Tokens from both sets are shuffled and paired, and each difference is divided by its
    norm. The sign makes the largest entry positive.
    """

    def vector(self, positive: Tokens, negative: Others, *, seed: int) -> Vector:
        """Return the component."""
        every = np.concatenate([positive, negative])
        order = np.random.default_rng(seed).permutation(len(every))
        half = len(every) // 2
        delta = every[order[:half]] - every[order[half : 2 * half]]
        norm = np.linalg.norm(delta, axis=1, keepdims=True)
        delta = (delta / np.where(norm == 0, 1, norm))[norm[:, 0] > 0]
        return _component(delta - delta.mean(0))


class Probe(AbstractDetector):
    """Weights of a linear probe on tokens; AxBench fits the same probe with AdamW.

    Attributes:
        probe: a linear probe with a single penalty strength.
    """

    probe: AbstractLinear = eqx.field(default_factory=lambda: Logistic(l2=0.1))

    def vector(self, positive: Tokens, negative: Others, *, seed: int) -> Vector:
        """Return the weights."""
        method = ProbeWeights(self.probe)
        sides = (jnp.asarray(side, jnp.float32) for side in (positive, negative))
        return np.asarray(method(*sides), np.float64)


class RandomDirection(AbstractDetector):
    """A random direction, the control for every other detector."""

    def vector(self, positive: Tokens, negative: Others, *, seed: int) -> Vector:
        """Return the direction."""
        key = jax.random.fold_in(jax.random.key(seed), 1)
        return _unit(np.asarray(jax.random.normal(key, positive.shape[1:]), np.float64))


def _unit(vector: Vector) -> Vector:
    norm = np.linalg.norm(vector)
    return vector / (norm if norm else 1)


def _component(rows: Tokens) -> Vector:
    """Return the first principal component of centered rows."""
    vector = np.linalg.eigh(rows.T @ rows)[1][:, -1]
    return vector * np.sign(vector[np.abs(vector).argmax()])
