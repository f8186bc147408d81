"""How well estimates agree with exact effects, with intervals over prompts."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from mijax.core import Interval

RESAMPLES = 1000
LEVEL = 0.95
# What is smaller than this share of the largest is rounding, and would rank at random.
ROUNDING = 1e-5


class Effects(NamedTuple):
    """What a method says of some places, and what exact patching says.

    Attributes:
        estimate: scores, `[prompt, place]`.
        exact: how much the metric falls, `[prompt, place]`.
        names: of the places.
        signed: whether the estimate has a sign; one that has none is compared with
            the sizes of exact effects.
    """

    estimate: Float[np.ndarray, "prompt place"]
    exact: Float[np.ndarray, "prompt place"]
    names: list[str]
    signed: bool = True

    def some(self, index: np.ndarray) -> "Effects":
        """Returns some of the places."""
        names = [self.names[i] for i in index]
        both = (self.estimate[:, index], self.exact[:, index])
        return Effects(*both, names, self.signed)

    def sizes(self) -> "Effects":
        """Returns sizes in each prompt, whatever the sign."""
        return Effects(np.abs(self.estimate), np.abs(self.exact), self.names, False)

    def comparable(self) -> "Effects":
        """Returns sizes if the estimate has no sign, else itself."""
        return self if self.signed else self.sizes()


class Agreement(NamedTuple):
    """Correlations over places, of means over prompts.

    Attributes:
        pearson: Pearson's r.
        spearman: Spearman's rho.
    """

    pearson: Interval
    spearman: Interval


def agreement(effects: Effects, *, seed: int) -> Agreement:
    """Correlates means over prompts, place by place.

    Args:
        effects: estimates and exact effects, `[prompt, place]`.
        seed: of the resamples.

    Returns:
        Both correlations, with percentile intervals of a bootstrap over prompts in
        which estimate and exact effect are of the same prompts. NaN where one of them
        is the same at every place.
    """
    n = len(effects.exact)
    draws = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    draws += n * np.arange(RESAMPLES)[:, None]
    counts = np.bincount(draws.ravel(), minlength=RESAMPLES * n).reshape(-1, n) / n
    # The first row is the prompts themselves.
    weights = np.concatenate([np.full((1, n), 1 / n), counts])
    means = [rounded(weights @ part.astype(np.float64)) for part in effects[:2]]
    ranks = [rankdata(part, axis=1) for part in means]
    return Agreement(*(summary(rowwise(*both), n) for both in (means, ranks)))


def rounded(means: Float[np.ndarray, "row place"]) -> Float[np.ndarray, "row place"]:
    """Sets to 0 what is nothing but rounding."""
    size = np.abs(means)
    return np.where(size > ROUNDING * size.max(1, keepdims=True), means, 0)


def rowwise(x: np.ndarray, y: np.ndarray) -> Float[np.ndarray, " row"]:
    """Correlates each row of one array with the same row of another."""
    x, y = (part - part.mean(1, keepdims=True) for part in (x, y))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))


def summary(values: Float[np.ndarray, " row"], n: int) -> Interval:
    """Makes an interval of a value and its resamples."""
    ends = np.nanquantile(values[1:], ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    mean, low, high = map(jnp.float32, (values[0], *ends))
    return Interval(mean, low, high, n, LEVEL)
