"""True if other prompts of the same kind would have given the same circuit."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from mijax._errors import ConfigError
from mijax.circuits._scores import Scores
from mijax.circuits._select import check_size, ranking
from mijax.circuits.evaluation._areas import LEVEL
from mijax.core import Interval
from mijax.core.internal import checked


class Stability(eqx.Module):
    """How much a selection changes with the prompts.

    Attributes:
        jaccard: overlap of each resample's selection with that of all prompts, 0 to 1.
        pairs: mean overlap of two resamples' selections.
        frequency: share of the resamples in which each edge, node or neuron was
            selected, of the shape of the scores.
        n: how many are selected.
        prompts: number of prompts.
    """

    jaccard: Float[np.ndarray, " sample"]
    pairs: float = eqx.field(static=True)
    frequency: Float[np.ndarray, "..."]
    n: int = eqx.field(static=True)
    prompts: int = eqx.field(static=True)

    @property
    def interval(self) -> Interval:
        """Mean overlap, and the range in which 95 % of the resamples' overlaps are."""
        low, high = np.quantile(self.jaccard, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        three = (self.jaccard.mean(), low, high)
        mean, low, high = (jnp.asarray(a, jnp.float32) for a in three)
        return Interval(mean, low, high, self.prompts, LEVEL)


@checked
def stability(
    scores: Scores,
    n: int,
    *,
    samples: int = 200,
    key: PRNGKeyArray | None = None,
    absolute: bool = False,
) -> Stability:
    r"""Resamples prompts and compares the `n` best with those of all prompts.

    Overlap is the Jaccard index $|A \cap B| / |A \cup B|$ of the `n` best edges (nodes,
    neurons), before pruning. Two random selections of `n` out of `N` overlap by about
    $n / (2N - n)$.

    Args:
        scores: with `keep_prompts=True`.
        n: how many are selected.
        samples: resamples of the prompts, with replacement.
        key: for the resamples; `jax.random.key(0)` by default.
        absolute: rank by size, whatever the sign.

    Returns:
        The overlaps, and how often each part is selected.

    Raises:
        ConfigError: scores without those of every prompt, or an impossible `n`.

    Examples:
        >>> from mijax.circuits import Graph, Scores
        >>> graph = Graph.decoder(1, heads=2)
        >>> prompts = np.array([[4, 1, 0, 0], [5, 1, 0, 0], [6, 2, 0, 0]], np.float32)
        >>> mean = jnp.asarray(prompts.mean(0))
        >>> scores = Scores(mean, None, prompts, graph, "node", "by hand")
        >>> float(stability(scores, 2).interval.mean)
        1.0
    """
    check_size(scores, n)
    if scores.prompts is None:
        raise ConfigError(
            "Stability needs the scores of every prompt: discover with "
            "keep_prompts=True."
        )
    if n < 1 or samples < 2:
        raise ConfigError(
            f"Stability needs n >= 1 and two samples or more, got {n} and {samples}."
        )
    real = scores.real.reshape(-1)
    each = np.asarray(scores.prompts, np.float32).reshape(len(scores.prompts), -1)
    each = each[:, real]
    key = jax.random.key(0) if key is None else key
    drawn = np.asarray(jax.random.randint(key, (samples, len(each)), 0, len(each)))
    counts = np.zeros((samples, len(each)), np.float32)
    np.add.at(counts, (np.arange(samples)[:, None], drawn), 1 / len(each))
    means = counts @ each
    chosen = best(np.abs(means) if absolute else means, n)
    whole = best(ranking(scores, absolute).reshape(1, -1)[:, real], n)
    shared = chosen.astype(np.float32) @ np.concatenate([whole, chosen]).T
    overlaps = shared / (2 * n - shared)
    frequency = np.zeros(real.shape)
    frequency[real] = chosen.mean(0)
    return Stability(
        overlaps[:, 0],
        float(overlaps[:, 1:][np.triu_indices(samples, 1)].mean()),
        frequency.reshape(scores.real.shape),
        n,
        len(each),
    )


def best(values: Float[np.ndarray, "sample part"], n: int) -> np.ndarray:
    """Returns which `n` are best in each row."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :n]
    chosen = np.zeros(values.shape, bool)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen
