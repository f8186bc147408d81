"""Faithfulness curves, the areas under them, and their confidence intervals."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from mijax._errors import ConfigError
from mijax.core import Interval
from mijax.core.internal import reals

MIB_FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
LEVEL = 0.95
Statistic = Callable[[np.ndarray], np.ndarray]


class Faithfulness(eqx.Module):
    r"""How much of a task's metric circuits of growing size keep.

    $f = \frac{\bar m(C) - \bar m(\emptyset)}{\bar m(M) - \bar m(\emptyset)}$ with means
    over prompts, where $M$ is the model and in $\emptyset$ every edge is replaced: the
    ratio of means, as Mueller et al. 2025 (arXiv:2504.13151) have it.

    Intervals are of the percentile bootstrap over prompts: 2,000 resamples from a
    fixed seed, the same prompts for all sizes and for both ends, so that the ratio is
    resampled as a whole. They hold what the prompts leave open, not the choice of the
    circuit.

    Attributes:
        fractions: of all edges (nodes, neurons) that were selected, increasing.
        n_edges: edges of each circuit, after pruning.
        metric: of each circuit in each prompt.
        full: of the model in each prompt.
        empty: of the circuit without edges in each prompt.
    """

    fractions: Float[np.ndarray, " size"]
    n_edges: Int[np.ndarray, " size"]
    metric: Float[np.ndarray, "size prompt"]
    full: Float[np.ndarray, " prompt"]
    empty: Float[np.ndarray, " prompt"]

    def __check_init__(self):
        """Refuses fractions out of order, and a metric that nothing moves."""
        check_fractions(self.fractions)
        check_ends(self.full, self.empty, "edges")

    @property
    def curve(self) -> Interval:
        """Faithfulness at each size."""
        return self._interval(lambda f: f)

    @property
    def cpr(self) -> Interval:
        """The area under the curve; meant for signed rankings."""
        return self._interval(lambda f: area(self.fractions, f))

    @property
    def cmd(self) -> Interval:
        """The area between the curve and 1; meant for rankings by size."""
        return self._interval(lambda f: area(self.fractions, np.abs(1 - f)))

    def _interval(self, statistic: Statistic) -> Interval:
        """Bootstraps a function of the curve."""
        return ratio(self.metric, self.full, self.empty, statistic)


def check_ends(full: np.ndarray, empty: np.ndarray, parts: str) -> None:
    """Refuse a metric that is the same with all parts and with none."""
    if abs(full.mean() - empty.mean()) <= 1e-6 * np.abs(full).max():
        raise ConfigError(
            f"Faithfulness is undefined: the metric's mean is {full.mean():.4g} with "
            f"all {parts} and {empty.mean():.4g} with none. Use another metric or "
            "ablation."
        )


def ratio(
    metric: Float[np.ndarray, "size prompt"],
    full: Float[np.ndarray, " prompt"],
    empty: Float[np.ndarray, " prompt"],
    statistic: Statistic = lambda f: f,
) -> Interval:
    """Bootstrap a function of the ratios of means between two ends.

    Args:
        metric: of circuits in each prompt.
        full: metric of the model.
        empty: metric of the circuit without parts.
        statistic: function of the ratios, vectorized over leading axes.

    Returns:
        Its value, and its interval over prompts.
    """
    values = np.concatenate([metric, full[None], empty[None]]).T
    values = values.astype(np.float64)

    def of(means: np.ndarray) -> np.ndarray:
        *sizes, full, empty = np.moveaxis(means, -1, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return statistic(
                (np.stack(sizes, -1) - empty[..., None]) / (full - empty)[..., None]
            )

    return bootstrap(values, of)


class Row(NamedTuple):
    """One size of an evaluation.

    Attributes:
        fraction: of edges that were selected.
        ranking: `"signed"` or `"absolute"`.
        n_edges: edges of the circuit, after pruning.
        faithfulness: of the circuit.
        low: lower end of its interval.
        high: upper end.
    """

    fraction: float
    ranking: str
    n_edges: int
    faithfulness: float
    low: float
    high: float


class Evaluation(eqx.Module):
    """What scores are worth on a task: both areas, as the benchmark has them.

    Attributes:
        signed: circuits of the best scores, from which CPR is taken.
        absolute: circuits of the largest scores whatever their sign, for CMD.
        method: how the scores were found.
    """

    signed: Faithfulness
    absolute: Faithfulness
    method: str = eqx.field(static=True)

    @property
    def cpr(self) -> Interval:
        """Circuit performance ratio: higher is better, may exceed 1."""
        return self.signed.cpr

    @property
    def cmd(self) -> Interval:
        """Circuit-model distance: 0 is a circuit that does what the model does."""
        return self.absolute.cmd

    def table(self) -> list[Row]:
        """Returns a row for each size of both rankings."""
        rows = []
        for ranking in ("signed", "absolute"):
            one: Faithfulness = getattr(self, ranking)
            curve = one.curve
            columns = (one.fractions, one.n_edges, curve.mean, curve.low, curve.high)
            for fraction, n_edges, *three in zip(*columns, strict=True):
                rows.append(
                    Row(float(fraction), ranking, int(n_edges), *map(float, three))
                )
        return rows

    def __str__(self) -> str:
        rows = self.table()
        size = len(rows) // 2
        lines = [
            self.method,
            f"CPR {shown(self.cpr)}   CMD {shown(self.cmd)}   "
            f"({self.cpr.n} prompts, {self.cpr.level:.0%} intervals)",
            f"{'fraction':>8}  {'edges':>6} {'signed':<21}  {'edges':>6} absolute",
        ]
        for one, other in zip(rows[:size], rows[size:], strict=True):
            lines.append(
                f"{one.fraction:>8g}  {one.n_edges:>6} {cell(one):<21}  "
                f"{other.n_edges:>6} {cell(other)}"
            )
        return "\n".join(lines)


def area(
    x: Float[np.ndarray, " size"], y: Float[np.ndarray, "*draw size"]
) -> np.ndarray:
    """Returns the area under a line through points, by trapezoids."""
    return np.asarray(((y[..., 1:] + y[..., :-1]) / 2 * np.diff(x)).sum(-1))


def bootstrap(
    values: Float[np.ndarray, "prompt *cell"], statistic: Statistic
) -> Interval:
    """Estimates a function of means over prompts, with its interval.

    Args:
        values: one per prompt, and per cell.
        statistic: of means, vectorised over leading axes.

    Returns:
        The function of the means, and percentiles of it over resampled prompts.
    """
    drawn = statistic(resampled(values))
    ends = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    low, high = np.quantile(drawn, ends, axis=0)
    mean, low, high = (
        jnp.asarray(a, jnp.float32) for a in (statistic(values.mean(0)), low, high)
    )
    return Interval(mean, low, high, len(values), LEVEL)


def resampled(
    values: Float[np.ndarray, "prompt *cell"], *, resamples: int = 2000, seed: int = 0
) -> Float[np.ndarray, "resample *cell"]:
    """Returns means over prompts drawn with replacement."""
    n, flat = len(values), values.reshape(len(values), -1)
    draws, found = np.random.default_rng(seed), []
    for start in range(0, resamples, 100):
        rows = min(100, resamples - start)
        drawn = draws.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(drawn.reshape(-1), minlength=rows * n)
        found.append(counts.reshape(rows, n) @ flat / n)
    return np.concatenate(found).reshape(resamples, *values.shape[1:])


def check_fractions(fractions: Sequence[float | int] | np.ndarray) -> None:
    """Refuses fractions that are not increasing within (0, 1]."""
    found = np.asarray(reals(fractions, "Fractions", ConfigError))
    if found.ndim != 1 or len(found) < 2:
        raise ConfigError(f"A curve needs two fractions or more, got {fractions}.")
    if found[0] <= 0 or found[-1] > 1 or (np.diff(found) <= 0).any():
        raise ConfigError(f"Fractions increase within (0, 1], got {fractions}.")


def shown(value: Interval) -> str:
    """Prints an interval."""
    return f"{float(value.mean):.3f} [{float(value.low):.3f}, {float(value.high):.3f}]"


def cell(row: Row) -> str:
    """Prints a row's faithfulness."""
    return f"{row.faithfulness:.3f} [{row.low:.3f}, {row.high:.3f}]"
