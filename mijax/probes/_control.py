"""Control tasks: what a probe can learn by itself."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PRNGKeyArray

from mijax._errors import ConfigError, ShapeError
from mijax.core import Interval, interval
from mijax.core.internal import checked
from mijax.probes._record import Fit


def control_labels(
    types: Any, y: Any, *, key: PRNGKeyArray
) -> Int[np.ndarray, " example"]:
    """Draws one label for every type of token, at random and for good.

    The control task of Hewitt and Liang (2019, arXiv:1909.03368): labels have no
    linguistic content and their frequencies are those of `y`, but each type (say, token
    id) always has the same one, so they can be memorised. The label of a type depends
    on the key, the type and the frequencies in `y` only: give the training labels as
    `y` for both training and held-out types.

    Args:
        types: integers `[example]`, for instance token ids.
        y: the labels whose frequencies are copied.
        key: decides the labels.

    Returns:
        Labels `[example]`.

    Raises:
        ShapeError: types that are no vector.
        ConfigError: types or labels that are not integers.

    Examples:
        >>> labels = control_labels([7, 8, 7], [0, 1, 1], key=jax.random.key(0))
        >>> bool(labels[0] == labels[2])
        True
    """
    types, y = np.asarray(types), np.asarray(y)
    if types.ndim != 1 or y.ndim != 1 or not y.size:
        raise ShapeError(
            f"types and y are vectors, got shapes {types.shape} and {y.shape}."
        )
    if types.dtype.kind not in "iub" or y.dtype.kind not in "iub":
        raise ConfigError(
            f"types and y are integers, got {types.dtype} and {y.dtype}: number the "
            "types first."
        )
    labels, counts = np.unique(y.astype(np.int64), return_counts=True)
    known, place = np.unique(types.astype(np.uint32), return_inverse=True)
    drawn = jax.vmap(lambda t: jax.random.uniform(jax.random.fold_in(key, t)))(
        jnp.asarray(known)
    )
    ends = np.cumsum(counts) / counts.sum()
    chosen = np.minimum(np.searchsorted(ends, np.asarray(drawn)), len(labels) - 1)
    return labels[chosen][place]


@checked
def selectivity(found: Fit, control: Fit, **options: Any) -> Interval:
    """Accuracy minus control accuracy, paired over held-out examples.

    Args:
        found: probes of the real labels.
        control: the same probes of control labels, or of a model with random weights,
            on the same held-out examples.
        **options: of `mijax.interval`.

    Returns:
        The difference of every probe and its confidence interval, `[*probe]`.

    Raises:
        ShapeError: other probes, or another number of held-out examples.

    Examples:
        >>> x = jax.random.normal(jax.random.key(1), (60, 4))
        >>> y, types = (x[:, 0] > 0).astype(int), jnp.arange(60) % 20
        >>> control = control_labels(types, y, key=jax.random.key(0))
        >>> probe, train, held_out = mijax.probes.Logistic(l2=0.1), x[:40], x[40:]
        >>> found = mijax.probes.fit(probe, train, y[:40], held_out, y[40:])
        >>> other = mijax.probes.fit(probe, train, control[:40], held_out, control[40:])
        >>> bool(selectivity(found, other).mean > 0.2)
        True
    """
    if found.values.shape != control.values.shape:
        raise ShapeError(
            f"Probes and held-out examples are {found.values.shape}, those of the "
            f"control {control.values.shape}: fit both to the same examples."
        )
    return interval(jnp.moveaxis(found.values - control.values, -1, 0), **options)
