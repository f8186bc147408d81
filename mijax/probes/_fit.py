"""`fit`: all probes of a grid in one compiled program."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from mijax._errors import ConfigError
from mijax._progress import Progress, reports
from mijax.core import Interval, interval
from mijax.core.internal import checked
from mijax.probes._check import (
    examples,
    held_out_labels,
    inputs,
    labels,
    same_probes,
    weights_of,
)
from mijax.probes._layout import lay_out
from mijax.probes._probe import AbstractProbe
from mijax.probes._program import Batch, Fitted, fit_all
from mijax.probes._record import Fit

# Of training examples, one in so many is set aside where there is one split.
ASIDE = 5
# Coverage of the intervals of held-out accuracy.
LEVEL = 0.95


@reports("Probes")
@checked
def fit(  # noqa: PLR0913 - every one of them is a choice of the user
    probe: AbstractProbe,
    x_train: Any,
    y_train: Any,
    x_held_out: Any,
    y_held_out: Any,
    *,
    example_weights: Any = None,
    folds: int = 1,
    key: PRNGKeyArray | None = None,
    mesh: Mesh | None = None,
    progress: Progress = None,
) -> Fit:
    """Fits one probe per leading index of the inputs, and measures it elsewhere.

    All probes, folds and strengths of regularisation are one compiled program. The
    strength of each probe is the one with the least loss on training examples that were
    set aside; the probe is then fitted to all training examples. Held-out examples are
    only measured on. Mean and scale of inputs are those of all training examples.

    Args:
        probe: a kind: `Logistic`, `Ridge`, `Means`, `LDA`, `Hidden`, `AttentionPooled`.
        x_train: `[*probe, example, feature]`; leading axes, such as layer, position and
            site, are probes. `Sequences` for `AttentionPooled`.
        y_train: integers `[example]`, or numbers for `Ridge`; the same for all probes.
        x_held_out: likewise, of other examples. Split by document or by prompt where
            examples of one are alike.
        y_held_out: their labels.
        example_weights: weights of the training examples in the loss, `[example]`; or
            `"balanced"`, which gives every class the same total weight
            (`class_weight="balanced"` of scikit-learn). Accuracies are not weighted.
        folds: 1 sets a random fifth of the training examples aside to choose the
            strength; k > 1 averages over k folds. One strength needs neither.
        key: for folds and random starts; `jax.random.key(0)` by default.
        mesh: devices: examples go over its axis `"data"`, probes over `"model"`.
        progress: called with groups of probes done and their number; `None` draws a bar
            after three seconds in a terminal or notebook, `False` none.

    Returns:
        The probes.

    Raises:
        ShapeError: inputs and labels that do not fit, or numbers that are not finite.
        ConfigError: labels that cannot be learned from, weights that are not positive
            or balanced weights of numbers, more folds than examples, a
            mesh that does not divide the probes.

    Examples:
        >>> x = jax.random.normal(jax.random.key(1), (3, 60, 4))  # 3 layers
        >>> y = (x[2, :, 0] > 0).astype(int)
        >>> train, held_out = (x[:, :40], y[:40]), (x[:, 40:], y[40:])
        >>> found = fit(mijax.probes.Logistic(l2=0.1), *train, *held_out)
        >>> found.held_out.mean.shape, bool(found.held_out.mean[2] > 0.9)
        ((3,), True)
        >>> found.direction().shape  # for Add and Project
        (3, 4)
    """
    key = jax.random.key(0) if key is None else key
    train = inputs(probe, x_train, "x_train")
    held = inputs(probe, x_held_out, "x_held_out")
    same_probes(train, held)
    (x, lead), (x_held, _) = train, held
    n, n_held = examples(x), examples(x_held)
    y, classes = labels(probe, y_train, n, "y_train")
    y_held = held_out_labels(probe, y_held_out, n_held, classes)
    count = max(1, len(classes))
    split, start = jax.random.split(key)
    layout = lay_out(x, count, mesh)
    batch = Batch(
        x=layout.spread(x),
        y=layout.shared(y),
        weight=layout.shared(weights_of(example_weights, y, classes)),
        folds=layout.shared(_folds(split, n, folds), axis=1),
        x_held=layout.spread(x_held),
        y_held=layout.shared(y_held),
    )
    done = layout.gather(fit_all(probe, batch, start, classes=count, progress=progress))
    done = jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), done)
    return _record(probe, done, (y, y_held), classes)


def _record(
    probe: AbstractProbe,
    done: Fitted,
    labels: tuple[np.ndarray, np.ndarray],
    classes: tuple[int, ...],
) -> Fit:
    """Turns what the program found into accuracies or R²."""
    y, y_held = labels
    values, train = done.values[..., : len(y_held)], done.train
    if not classes:
        values, train = 1 - values / y_held.var(), 1 - train / y.var()
    baseline, chance = _baselines(y, y_held, max(1, len(classes)))
    return Fit(
        params=done.params,
        frame=done.frame,
        strength=done.strength,
        selection=done.selection,
        train=train,
        held_out=_interval(values, bool(classes)),
        values=values,
        baseline=jnp.float32(baseline),
        chance=jnp.float32(chance),
        gradient=done.gradient,
        steps=done.steps,
        probe=probe,
        classes=classes,
    )


def _interval(values: Float[Array, "*probe example"], shares: bool) -> Interval:
    """Returns the mean with Wilson's (1927) interval of a share, or a bootstrap one."""
    if not shares:
        return interval(jnp.moveaxis(values, -1, 0))
    n, share = values.shape[-1], values.mean(-1)
    z = jax.scipy.stats.norm.ppf(0.5 + LEVEL / 2)
    middle = share + z**2 / (2 * n)
    reach = z * jnp.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    low, high = ((middle + side) / (1 + z**2 / n) for side in (-reach, reach))
    return Interval(share, low, high, n, LEVEL)


def _folds(key: PRNGKeyArray, n: int, folds: int) -> np.ndarray:
    """Draws which examples are set aside, `[fold, example]`."""
    if folds < 1 or folds > n:
        raise ConfigError(
            f"folds={folds} with {n} training examples: 1 sets a part aside once, "
            f"otherwise from 2 to {n}."
        )
    order = np.asarray(jax.random.permutation(key, n))
    parts = np.array_split(order, folds) if folds > 1 else [order[: -(-n // ASIDE)]]
    out = np.zeros((len(parts), n), np.float32)
    for row, part in zip(out, parts, strict=True):
        row[part] = 1
    return out


def _baselines(y: np.ndarray, y_held: np.ndarray, classes: int) -> tuple[float, float]:
    """Accuracy of the most frequent training class and of guessing, or R² of means."""
    if classes == 1:
        return float(1 - ((y_held - y.mean()) ** 2).mean() / y_held.var()), 0.0
    frequent = np.bincount(y, minlength=classes).argmax()
    return float((y_held == frequent).mean()), 1 / classes
