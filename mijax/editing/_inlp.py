"""INLP: repeatedly fit a classifier and project out its directions."""

import equinox as eqx
import numpy as np
from jaxtyping import Float

from mijax import probes
from mijax._errors import ConfigError
from mijax.editing._eraser import AbstractErasure, Eraser, classes, eraser_of

# One in this many examples is held out to evaluate a classifier.
HELD_OUT = 5


class INLP(AbstractErasure):
    """Iterative nullspace projection (Ravfogel et al. 2020, arXiv:2004.07667).

    Each round fits a linear classifier and projects out its directions. Rounds end
    after `rounds`, or earlier once the accuracy of a new classifier on a held-out fifth
    of the examples does not exceed that of predicting the most frequent class.

    Attributes:
        probe: the classifier.
        rounds: maximum number of classifiers to fit.
        margin: smallest gain in accuracy over the most frequent class that counts as
            better.
        affine: preserve the mean of the activations; otherwise the map is linear.
    """

    probe: probes.AbstractLinear = probes.Logistic(l2=0.01)
    rounds: int = eqx.field(static=True, default=10)
    margin: float = eqx.field(static=True, default=0.02)
    affine: bool = eqx.field(static=True, default=True)

    def fit(self, x: Float[np.ndarray, "example embed"], labels: np.ndarray) -> Eraser:
        """Fit the eraser."""
        if self.rounds < 1:
            raise ConfigError(f"INLP needs 1 round or more, got {self.rounds}.")
        y = classes(labels, "INLP")
        mean = x.mean(0)
        found = np.zeros((x.shape[1], 0))
        order = np.random.default_rng(0).permutation(len(x))
        held, train = np.split(order, [max(1, len(x) // HELD_OUT)])
        for _ in range(self.rounds):
            rest = (x - mean) - (x - mean) @ found @ found.T
            if len(np.unique(y[train])) < 2 or found.shape[1] >= x.shape[1]:
                break
            parts = (rest[train], y[train], rest[held], y[held])
            fitted = probes.fit(self.probe, *parts, progress=False)
            if float(fitted.held_out.mean) <= float(fitted.baseline) + self.margin:
                break
            weight = np.asarray(fitted.weights.weight, np.float64)
            weight -= found @ (found.T @ weight)
            u, values, _ = np.linalg.svd(weight, full_matrices=False)
            found = np.concatenate([found, u[:, values > 1e-6 * values[0]]], axis=1)
            found = np.linalg.qr(found)[0]
        zero = np.zeros_like(mean)
        return eraser_of(found, found.T, mean if self.affine else zero)
