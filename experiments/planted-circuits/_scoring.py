"""How well a method's scores find a known circuit, with intervals."""

import dataclasses
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from mijax._errors import ConfigError
from mijax.circuits import Scores, roc

from ._cases import Case
from ._methods import METHODS, Found

Level = Literal["edge", "node"]
# Distractors of hand-built models score exactly 0, so that without a floor a gradient
# of 1e-32, through attention that is saturated, would pass as found.
FLOOR = 1e-6
LEVELS: tuple[Level, ...] = ("edge", "node")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method on one case at one level.

    Attributes:
        method: the method.
        case: label of the case.
        level: `"edge"`, or `"node"` for heads and MLPs as wholes.
        area: under the ROC curve; the mean over seeds.
        bare: the same without a floor under scores.
        low: lower end of its interval.
        high: upper end.
        over: what the interval is over: `"prompts"` (95 %), `"seeds"` (the range) or
            nothing.
        seconds: of all seeds, compilation included.
        fpr: false positive rates of the curve, of the first seed.
        tpr: true positive rates.
    """

    method: str
    case: str
    level: str
    area: float
    bare: float
    low: float
    high: float
    over: str
    seconds: float
    fpr: list[float]
    tpr: list[float]

    @property
    def text(self) -> str:
        """The area, with its interval where there is any width to it."""
        if self.high - self.low < 0.005:
            return f"{self.area:.2f}"
        return f"{self.area:.2f} ({self.low:.2f}-{self.high:.2f})"


def cells(name: str, case: Case, found: Found, *, resamples: int) -> list[Cell]:
    """Scores what a method found, at every level that it ranks.

    Edges are ranked by the size of their scores: one that hurts matters as well; what
    is less than a millionth of the largest counts as 0, unless a mask was learned. A
    node ranks by the best of its edges, or by its own score if the method gives one.

    Args:
        name: of the method.
        case: what was to be found.
        found: what was found.
        resamples: of the prompts, for methods that score prompts one by one.

    Returns:
        A cell for each level; none where the circuit is all or nothing of it.
    """
    edges = case.edges and METHODS[name].level == "edge"
    levels = LEVELS if edges else LEVELS[1:]
    made = []
    for level in levels:
        try:
            made.append(cell(name, case, found, level=level, resamples=resamples))
        except ConfigError:
            if level == "edge":
                raise
    return made


def cell(name: str, case: Case, found: Found, *, level: Level, resamples: int) -> Cell:
    """Scores what a method found at one level."""
    given = [found.circuits] if found.circuits else found.scores
    bare = np.mean(
        [roc(g, case.truth, level=level, absolute=True).auroc for g in given]
    )
    if not (METHODS[name].learns or found.circuits):
        given = [floored(one) for one in found.scores]
    curves = [roc(one, case.truth, level=level, absolute=True) for one in given]
    areas = np.array([curve.auroc for curve in curves])
    ends, over = areas, "seeds" if len(areas) > 1 else ""
    (first, *_) = found.scores
    if first.prompts is not None:
        ends, over = resampled(first, case, level=level, resamples=resamples), "prompts"
    share = (0.025, 0.975) if over == "prompts" else (0, 1)
    low, high = np.quantile(ends, share)
    return Cell(
        *(name, case.label, level, float(areas.mean()), float(bare)),
        *(float(low), float(high), over),
        seconds=found.seconds,
        fpr=curves[0].fpr.tolist(),
        tpr=curves[0].tpr.tolist(),
    )


def resampled(
    scores: Scores, case: Case, *, level: Level, resamples: int, seed: int = 0
) -> np.ndarray:
    """Areas of the mean scores of prompts that are drawn with replacement."""
    each = np.asarray(scores.prompts)
    drawn = np.random.default_rng(seed).integers(0, len(each), (resamples, len(each)))
    areas = []
    for rows in drawn:
        mean = jnp.asarray(each[rows].mean(0))
        one = eqx.tree_at(lambda scores: scores.values, scores, mean)
        areas.append(roc(floored(one), case.truth, level=level, absolute=True).auroc)
    return np.array(areas)


def floored(scores: Scores) -> Scores:
    """Sets scores to 0 that are less than a millionth of the largest."""
    values = np.asarray(scores.values)
    large = np.abs(values) > FLOOR * np.abs(values).max()
    new = jnp.asarray(np.where(large, values, 0))
    return eqx.tree_at(lambda scores: scores.values, scores, new)
