"""Inputs and labels, checked before anything runs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mijax._errors import ConfigError, ShapeError
from mijax.core.internal import reals
from mijax.probes._frame import Sequences
from mijax.probes._probe import AbstractProbe

# Of the spread of values, the share that rounding to float32 may be.
LOST = 1e-3


def inputs(probe: AbstractProbe, x: Any, name: str) -> tuple[Any, tuple[int, ...]]:
    """Returns inputs with one probe axis, in float32, and the shape of the probes.

    Args:
        probe: what will be fitted.
        x: `[*probe, example, feature]` or `Sequences`.
        name: of the argument, for errors.

    Returns:
        Inputs `[probe, example, ...]` and the shape `*probe`.

    Raises:
        ShapeError: wrong rank, no examples, or numbers that are not finite.
    """
    kind = type(probe).__name__
    if isinstance(x, Sequences) != (probe.ranks == 2):
        wanted = (
            "Sequences(x, mask)" if probe.ranks == 2 else "[*probe, example, feature]"
        )
        raise ShapeError(f"{kind} takes {name} as {wanted}, got {type(x).__name__}.")
    array = reals(x.x if isinstance(x, Sequences) else x, name)
    lead = array.shape[: array.ndim - probe.ranks - 1]
    if array.ndim <= probe.ranks or 0 in array.shape:
        raise ShapeError(
            f"{name} has shape {array.shape}, expected [*probe, example, "
            f"{'seq, ' * (probe.ranks - 1)}feature], none of them empty."
        )
    flat = array.astype(jnp.float32).reshape(-1, *array.shape[len(lead) :])
    if isinstance(x, Sequences):
        mask = jnp.asarray(x.mask)
        fits = mask.shape in (flat.shape[1:3], array.shape[:-1])
        if not fits:
            raise ShapeError(
                f"{name} has {flat.shape[1:3]} examples and tokens, but its mask has "
                f"shape {mask.shape}."
            )
        mask = jnp.broadcast_to(mask, array.shape[:-1]).reshape(flat.shape[:-1])
        flat = jnp.where(mask[..., None], flat, 0.0)
        _check_finite(flat, lead, name)
        return Sequences(flat, mask), lead
    _check_finite(flat, lead, name)
    return flat, lead


def _check_finite(flat: jax.Array, lead: tuple[int, ...], name: str) -> None:
    bad = ~np.asarray(jnp.isfinite(flat).all(axis=tuple(range(1, flat.ndim))))
    if not bad.any():
        return
    where = np.unravel_index(int(bad.argmax()), lead) if lead else ()
    place = f"probe {tuple(map(int, where))} of {lead}" if lead else "the inputs"
    raise ShapeError(
        f"{name} has NaN or infinite numbers in {place} ({bad.sum()} of {len(bad)} "
        "probes): drop these, or find where the activations overflow."
    )


def same_probes(
    train: tuple[Any, tuple[int, ...]], held_out: tuple[Any, tuple[int, ...]]
) -> None:
    """Checks that training and held-out inputs are of the same probes.

    Args:
        train: inputs and shape of the probes.
        held_out: likewise.

    Raises:
        ShapeError: they are not.
    """
    (x, lead), (held, held_lead) = train, held_out
    if lead != held_lead:
        raise ShapeError(
            f"x_train has probes {lead}, x_held_out has {held_lead}: both need the "
            "same leading axes."
        )
    features = [jax.tree.leaves(one)[0].shape[-1] for one in (x, held)]
    if features[0] != features[1]:
        raise ShapeError(
            f"x_train has {features[0]} features, x_held_out has {features[1]}."
        )


def examples(x: Any) -> int:
    """Returns the number of examples of inputs `[probe, example, ...]`."""
    return jax.tree.leaves(x)[0].shape[1]


def labels(
    probe: AbstractProbe, y: Any, count: int, name: str
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Returns labels to train on and the classes among them.

    Args:
        probe: what will be fitted.
        y: integers `[example]`, or numbers for a probe of values.
        count: number of examples.
        name: of the argument, for errors.

    Returns:
        Class indices and classes in order, or values and no classes.

    Raises:
        ShapeError: not one label per example.
        ConfigError: labels of the wrong kind, one class only, as many classes as
            examples, or values that float32 cannot tell apart.
    """
    y = _of_kind(probe, y, count, name)
    if len(np.unique(y)) < 2:
        raise ConfigError(
            f"{name} has the label {y[0]} only: a probe needs two different ones."
        )
    if probe.targets == "values":
        return _values(y, name), ()
    classes, index = np.unique(y, return_inverse=True)
    if len(classes) >= count:
        raise ConfigError(
            f"{name} has {len(classes)} classes in {count} examples: give more "
            "examples than classes."
        )
    return index.astype(np.int32), tuple(int(c) for c in classes)


def held_out_labels(
    probe: AbstractProbe, y: Any, count: int, classes: tuple[int, ...]
) -> np.ndarray:
    """Returns held-out labels as indices of the training classes, or values.

    Args:
        probe: what will be fitted.
        y: labels.
        count: number of held-out examples.
        classes: of the training labels.

    Returns:
        Class indices or values.

    Raises:
        ShapeError: not one label per example.
        ConfigError: labels of the wrong kind, a class that was not trained, or values
            that do not differ, or that float32 cannot tell apart.
    """
    y = _of_kind(probe, y, count, "y_held_out")
    if probe.targets == "values":
        if len(np.unique(y)) < 2:
            raise ConfigError(
                f"y_held_out has the value {y[0]} only: R^2 needs two different ones."
            )
        return _values(y, "y_held_out")
    unknown = sorted({int(v) for v in y} - set(classes))
    if unknown:
        raise ConfigError(
            f"y_held_out has the class {unknown[0]}, which y_train lacks: train on it, "
            "or drop its examples."
        )
    return np.searchsorted(np.asarray(classes), y).astype(np.int32)


def _values(y: np.ndarray, name: str) -> np.ndarray:
    """Returns values in float32, which must not lose how they differ."""
    exact, near = y.astype(np.float64), y.astype(np.float32)
    if np.sqrt(np.mean((near - exact) ** 2)) > LOST * exact.std():
        raise ConfigError(
            f"{name} has the mean {exact.mean():.3g} and differs by {exact.std():.3g} "
            "only, which float32 loses: take the mean of y_train off all labels."
        )
    return near


def _of_kind(probe: AbstractProbe, y: Any, count: int, name: str) -> np.ndarray:
    y = np.asarray(y)
    if y.shape != (count,):
        raise ShapeError(
            f"{name} has shape {y.shape}, expected ({count},): one label per example."
        )
    kind = type(probe).__name__
    if probe.targets == "classes" and y.dtype.kind not in "iub":
        raise ConfigError(
            f"{kind} takes integer labels, {name} is {y.dtype}: for values use Ridge."
        )
    if y.dtype.kind not in "iubf" or not np.isfinite(y).all():
        raise ConfigError(f"{name} must hold finite numbers, one per example.")
    return y.astype(np.int64) if y.dtype.kind == "b" else y


def weights_of(weights: Any, y: np.ndarray, classes: tuple[int, ...]) -> np.ndarray:
    """Return the weight of each training example, 1 on average.

    Args:
        weights: `None`, `"balanced"`, or numbers `[example]`.
        y: class indices, or values.
        classes: labels of the classes; empty for values.

    Raises:
        ConfigError: weights that are not positive, or balanced weights of values.
        ShapeError: weights of another number of examples.
    """
    y = np.asarray(y)
    if weights is None:
        return np.ones(len(y), np.float32)
    if isinstance(weights, str):
        if weights != "balanced" or not classes:
            raise ConfigError(
                f"example_weights={weights!r} is not known: give one per training "
                'example, or "balanced" for labels that are classes.'
            )
        weights = 1 / np.bincount(y, minlength=len(classes))[y]
    found = np.asarray(weights, np.float64)
    if found.shape != (len(y),):
        raise ShapeError(
            f"example_weights has shape {found.shape}, expected one for each of the "
            f"{len(y)} training examples."
        )
    if not (np.isfinite(found).all() and (found > 0).all()):
        raise ConfigError("example_weights are positive numbers.")
    return (found / found.mean()).astype(np.float32)
