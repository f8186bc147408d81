"""Area under the ROC curve of scores."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax._errors import ConfigError, ShapeError


def auroc(scores: Any, labels: Any) -> Float[Array, "*probe"]:
    r"""Measures how well scores order two classes.

    The chance that a random example of the second class scores higher than one of the
    first, ties counted half: the Mann-Whitney statistic over the number of pairs
    (Hanley and McNeil 1982),

    $$\frac{\sum_{i: y_i = 1} r_i - n_1 (n_1 + 1) / 2}{n_0 n_1},$$

    with ranks $r$ from 1, equal scores sharing their mean rank.

    Args:
        scores: `[*probe, example]`, for instance the difference of a fit's logits.
        labels: 0 or 1, `[example]`.

    Returns:
        One area for each leading index; 0.5 is chance.

    Raises:
        ShapeError: not as many labels as examples, or scores that are NaN.
        ConfigError: labels that are not 0 and 1, or only one of them.

    Examples:
        >>> float(auroc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]))
        0.75
    """
    scores, positive = np.asarray(scores), np.asarray(labels)
    if positive.shape != scores.shape[-1:]:
        raise ShapeError(
            f"Give one label per example: got scores {list(scores.shape)} and labels "
            f"{list(positive.shape)}."
        )
    bad = int(np.isnan(scores).sum())
    if bad:
        raise ShapeError(
            f"{bad} of {scores.size} scores are NaN, which have no rank: drop these "
            "examples."
        )
    found = np.unique(positive).tolist()
    if found != [0, 1]:
        raise ConfigError(f"An area needs labels 0 and 1, both of them; got {found}.")
    flat = scores.reshape(-1, scores.shape[-1])
    areas = [_area(row, positive == 1) for row in flat]
    return jnp.asarray(areas, jnp.float32).reshape(scores.shape[:-1])


def _area(scores: np.ndarray, positive: np.ndarray) -> float:
    """Counts in float64: ranks of many examples add up to more than float32 holds."""
    ordered = np.sort(scores)
    below = np.searchsorted(ordered, scores, side="left").astype(np.float64)
    upto = np.searchsorted(ordered, scores, side="right")
    ranks = (below + upto + 1) / 2
    n = int(positive.sum())
    pairs = n * (len(scores) - n)
    return (ranks[positive].sum() - n * (n + 1) / 2) / pairs
