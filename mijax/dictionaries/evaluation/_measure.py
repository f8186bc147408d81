"""L0 and FVU of a dictionary, against what its file says."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from mijax._errors import ShapeError
from mijax.dictionaries._dictionary import Dictionary
from mijax.dictionaries._wiring import SAE, Crosscoder

BATCH = 1024


def measured(dictionary: Dictionary, activations: Any) -> dict[str, float]:
    r"""Measures L0 and the fraction of variance unexplained.

    The latter is $\sum\lVert y - \hat y\rVert^2 / \sum\lVert y - \bar y\rVert^2$.

    Args:
        dictionary: the dictionary.
        activations: `[n, *reads]`, or a pair with `[n, *writes]`.

    Returns:
        `"l0"`, and `"fvu"` where the outputs are known.

    Raises:
        ShapeError: inputs and outputs of different numbers.
    """
    several = isinstance(activations, tuple | list)
    x, y = activations if several else (activations, None)
    x = jnp.asarray(x)
    same = isinstance(dictionary.wiring, SAE | Crosscoder)
    if y is None and same:
        y = x
    if y is not None and len(y) != len(x):
        raise ShapeError(f"There are {len(x)} inputs and {len(y)} outputs.")
    active, missed = 0.0, 0.0
    for start in range(0, len(x), BATCH):
        latents, out = both(dictionary, x[start : start + BATCH])
        active += float((latents > 0).sum())
        if y is not None:
            off = np.asarray(y[start : start + BATCH], np.float64) - np.asarray(out)
            missed += float((off**2).sum())
    numbers = {"l0": active / len(x)}
    if y is not None:
        whole = np.asarray(y, np.float64)
        numbers["fvu"] = missed / float(((whole - whole.mean(0)) ** 2).sum())
    return numbers


@eqx.filter_jit
def both(dictionary: Dictionary, x: Any) -> tuple[Any, Any]:
    """Returns latents and what they write."""
    latents = dictionary.encode(x)
    return latents, dictionary.decode(latents, x)


def warn_of_difference(
    path: Path,
    stated: Mapping[str, float],
    numbers: Mapping[str, float],
    tolerance: float,
) -> None:
    """Warn of a number that is not what the file says, or of an FVU above 1."""
    if numbers.get("fvu", 0) > 1:
        warnings.warn(
            f"{path}: the reconstruction of these activations is worse than their mean "
            f"(FVU {numbers['fvu']:.4g}): other activations (site, normalization, "
            "model) than the dictionary was trained on.",
            stacklevel=3,
        )
    for name in sorted(stated.keys() & numbers.keys()):
        said, found = stated[name], numbers[name]
        if abs(found - said) > tolerance * abs(said):
            warnings.warn(
                f"{path} says {name} {said:.4g}, and on these activations it is "
                f"{found:.4g}: other activations (site, normalisation, model) or a "
                "file that is read in another way than it was trained.",
                stacklevel=3,
            )
