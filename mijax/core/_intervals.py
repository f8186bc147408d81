"""Intervals of a mean over prompts or seeds."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from mijax._errors import ShapeError
from mijax.core._arguments import checked
from mijax.core._integers import reals
from mijax.core._shown import cut, shown

# Indices drawn at once: a GiB of them.
MOST_DRAWN = 2**28


class Interval(eqx.Module):
    """A mean over prompts and its interval; arrays of any common shape.

    Attributes:
        mean: mean over prompts, in units of the metric.
        low: lower end.
        high: upper end.
        n: number of prompts.
        level: coverage, e.g. 0.95; 1 of a range.
    """

    mean: Float[Array, "*cell"]
    low: Float[Array, "*cell"]
    high: Float[Array, "*cell"]
    n: int = eqx.field(static=True)
    level: float = eqx.field(static=True)

    def __repr__(self) -> str:
        rest = f"n={self.n}, level={self.level:g})"
        if jnp.ndim(self.mean):
            return cut(f"Interval(mean {shown(self.mean)}, {rest}")
        mean, low, high = (shown(a) for a in (self.mean, self.low, self.high))
        return f"Interval({mean}, {low} to {high}, {rest}"


@checked
def interval(
    values: Float[Array, "prompt *cell"],
    *,
    level: float = 0.95,
    method: str = "bootstrap",
    resamples: int = 2000,
    key: PRNGKeyArray | None = None,
) -> Interval:
    """Estimates the mean over prompts with a confidence interval.

    Args:
        values: one value per prompt (or seed), and per cell.
        level: coverage; not of a range.
        method: `"bootstrap"`, the percentile bootstrap (Efron 1979), which resamples
            prompts, the same ones for every cell; `"normal"`, mean plus or minus the
            normal quantile times the standard error; or `"range"`, from the least to
            the greatest value, for few seeds, where no more can be said.
        resamples: bootstrap resamples.
        key: for the resamples; `jax.random.key(0)` by default.

    Returns:
        The interval of every cell.

    Raises:
        ShapeError: without prompts, or with an unknown method or level.

    Examples:
        >>> found = interval(jnp.array([1.0, 2.0, 3.0]), method="normal")
        >>> round(float(found.low), 2), round(float(found.high), 2)
        (0.87, 3.13)
        >>> seeds = interval(jnp.array([0.7, 0.9, 0.8]), method="range")
        >>> round(float(seeds.low), 2), round(float(seeds.high), 2)
        (0.7, 0.9)
    """
    values = reals(values, "Values").astype(jnp.float32)
    if values.ndim == 0 or values.shape[0] == 0:
        raise ShapeError(f"An interval needs one value per prompt, got {values.shape}.")
    if method not in ("bootstrap", "normal", "range") or not 0 < level < 1:
        raise ShapeError(
            "An interval has method 'bootstrap', 'normal' or 'range' and "
            f"0 < level < 1, got {method!r} and {level}."
        )
    n, mean = values.shape[0], values.mean(0)
    if method == "range":
        return Interval(mean, values.min(0), values.max(0), n, 1.0)
    if method == "normal":
        error = (
            values.std(0, ddof=1) / n**0.5 if n > 1 else jnp.full_like(mean, jnp.inf)
        )
        reach = jax.scipy.stats.norm.ppf(0.5 + level / 2) * error
        return Interval(mean, mean - reach, mean + reach, n, level)
    low, high = _percentiles(values, None, level, resamples, key)
    return Interval(mean, low, high, n, level)


def interval_of_ratio(
    above: Float[Array, "prompt *cell"],
    below: Float[Array, " prompt"],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    key: PRNGKeyArray | None = None,
) -> Interval:
    """Estimates a ratio of means over prompts by the percentile bootstrap.

    Args:
        above: one value per prompt and cell.
        below: one value per prompt.
        level: coverage.
        resamples: of prompts, the same ones above and below.
        key: for the resamples; `jax.random.key(0)` by default.

    Returns:
        The interval of every cell.

    Raises:
        ShapeError: a level that is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ShapeError(f"An interval has 0 < level < 1, got {level}.")
    above, below = (jnp.asarray(a, jnp.float32) for a in (above, below))
    mean = above.mean(0) / below.mean()
    low, high = _percentiles(above, below, level, resamples, key)
    return Interval(mean, low, high, len(below), level)


def _percentiles(
    values: Array,
    below: Array | None,
    level: float,
    resamples: int,
    key: PRNGKeyArray | None,
) -> Array:
    """Computes percentiles of resampled means, or ratios, some cells at a time."""
    n = values.shape[0]
    if not 1 <= resamples * n <= MOST_DRAWN:
        raise ShapeError(
            f"resamples times prompts are from 1 to {MOST_DRAWN}, got {resamples} and "
            f"{n}."
        )
    key = jax.random.key(0) if key is None else key
    tail = (1 - level) / 2
    ends = jnp.array([tail, 1 - tail])
    drawn = np.asarray(jax.random.randint(key, (resamples, n), 0, n))
    rows = np.arange(resamples)[:, None]
    counts = np.zeros((resamples, n), np.float32)
    np.add.at(counts, (rows, drawn), 1 / n)
    flat = values.reshape(n, -1)
    step = max(1, 2**24 // resamples)
    blocks = [
        _block(jnp.asarray(counts), flat[:, at : at + step], below, ends)
        for at in range(0, flat.shape[1], step)
    ]
    return jnp.concatenate(blocks, axis=1).reshape(2, *values.shape[1:])


@jax.jit
def _block(counts: Array, values: Array, below: Array | None, ends: Array) -> Array:
    means = jnp.matmul(counts, values, precision="highest")
    if below is not None:
        means = means / jnp.matmul(counts, below, precision="highest")[:, None]
    return jnp.quantile(means, ends, axis=0)
