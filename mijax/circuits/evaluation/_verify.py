"""Rank, then verify: patch exactly what ranking found, and a sample of the rest."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from mijax._errors import ShapeError
from mijax._progress import Progress, reports
from mijax.circuits._circuit import Circuit
from mijax.circuits._method import MEMORY
from mijax.circuits._scores import Scores
from mijax.circuits._task import Task
from mijax.circuits.evaluation._measure import measured
from mijax.circuits.forward._streams import Model
from mijax.core import Interval, interval
from mijax.core.internal import checked


class Line(NamedTuple):
    """One edge or node: estimate, exact effect, and the interval of the latter."""

    name: str
    estimate: float
    exact: float
    low: float
    high: float


class Verification(eqx.Module):
    """Exact effects of the best-ranked parts, and of a random sample of the others.

    Attributes:
        names: the best `top`, then the sample.
        estimate: what the method said, `[part]`.
        exact: how much the metric falls when the part is ablated, `[part]`.
        prompts: the same in each prompt, `[part, prompt]`.
        top: how many were chosen by rank.
        rest: number of parts that the sample stands for.
        correlation: Pearson r of estimate and exact effect, over all that were patched.
        missed: share of the rest whose exact effect is larger than that of the weakest
            of the best, as an interval from the sample (Wilson).
    """

    names: tuple[str, ...] = eqx.field(static=True)
    estimate: Float[np.ndarray, " part"]
    exact: Interval
    prompts: Float[np.ndarray, "part prompt"]
    top: int = eqx.field(static=True)
    rest: int = eqx.field(static=True)
    correlation: float = eqx.field(static=True)
    missed: tuple[float, float, float] = eqx.field(static=True)

    def table(self) -> list[Line]:
        """Returns a line per part, the best first, then the sample."""
        parts = (self.estimate, self.exact.mean, self.exact.low, self.exact.high)
        columns = (np.asarray(part).tolist() for part in parts)
        return [Line(*line) for line in zip(self.names, *columns, strict=True)]


@reports("Verify")
@checked
def verify(
    model: Model,
    task: Task,
    scores: Scores,
    *,
    top: int = 50,
    sample: int = 50,
    key: PRNGKeyArray | None = None,
    absolute: bool = True,
    progress: Progress = None,
    memory: int = MEMORY,
) -> Verification:
    """Patches the best-ranked edges (or nodes) exactly, and a sample of the others.

    Args:
        model: the model.
        task: prompts, metric and ablation.
        scores: of edges or nodes.
        top: how many to take by rank.
        sample: how many of the others to draw, without replacement.
        key: for the sample; `jax.random.key(0)` by default.
        absolute: rank by size, whatever the sign.
        progress: called with runs done and their total; `None` draws a bar after three
            seconds in a terminal or notebook, `False` none.
        memory: bytes of working memory to aim at.

    Returns:
        Exact effects with their intervals, and a bound on what ranking missed.

    Raises:
        ShapeError: scores of neurons, or nothing to verify.

    Examples:
        >>> import mijax
        >>> from mijax import circuits
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> metric = mijax.logit_difference(3, 4)
        >>> task = Task([[5, 6, 7], [8, 6, 7]], [[5, 9, 7], [8, 2, 7]], metric=metric)
        >>> scores = circuits.discover(model, task, circuits.EAP())
        >>> found = verify(model, task, scores, top=5, sample=5)
        >>> found.exact.mean.shape
        (10,)
    """
    if scores.level == "neuron" or top < 1 or sample < 0:
        raise ShapeError(
            "verify takes scores of edges or nodes and at least one of them, got level "
            f"{scores.level!r}, top={top}, sample={sample}."
        )
    key = jax.random.key(0) if key is None else key
    values = np.asarray(scores.values)
    size = np.abs(values) if absolute else values
    order = np.argsort(-np.where(scores.real, size, -np.inf), axis=None, kind="stable")
    order = order[: int(scores.real.sum())]
    best, others = order[:top], order[top:]
    drawn = np.asarray(jax.random.permutation(key, len(others)))[:sample]
    index = np.concatenate([best, others[drawn]])
    names = tuple(scores.name(int(i)) for i in index)
    full = Circuit.full(scores.graph)
    runs = [full, *(full.without(name) for name in names)]
    found = measured(model, task, runs, progress=progress, memory=memory)
    effects = found[0] - found[1:]
    within = interval(jnp.asarray(effects.T), key=key)
    exact, estimate = np.asarray(within.mean), values.reshape(-1)[index]
    strong = np.abs(exact) if absolute else exact
    over = strong[len(best) :] > strong[: len(best)].min()
    return Verification(
        names=names,
        estimate=estimate,
        exact=within,
        prompts=effects,
        top=len(best),
        rest=len(others),
        correlation=pearson(estimate, exact),
        missed=wilson(int(over.sum()), len(over)),
    )


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the correlation of two arrays, 0 where one of them is constant."""
    if len(x) < 2 or not x.std() or not y.std():
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float, float]:
    """Returns a share and its Wilson score interval, (0, 0, 1) without a sample."""
    if not n:
        return 0.0, 0.0, 1.0
    share, spread = hits / n, z**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * np.sqrt(share * (1 - share) / n + spread / (4 * n))
    return share, max(0.0, float(centre - half)), min(1.0, float(centre + half))
