"""The fraction of an effect that a run recovers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from mijax._errors import NotFiniteError, ShapeError
from mijax.core._integers import reals


def recovered(value: Any, clean: Any, corrupt: Any) -> Array:
    r"""Share of the effect that a patch restores, $(m - m_*) / (m_{cl} - m_*)$.

    0 is the corrupt run and 1 the clean one (Wang et al. 2022, arXiv:2211.00593;
    Zhang and Nanda 2023, arXiv:2309.16042). With many prompts average the metrics
    first: the mean of ratios is dominated by prompts where clean and corrupt agree.

    Args:
        value: metric of the patched run.
        clean: metric of the clean run.
        corrupt: metric of the corrupt run.

    Returns:
        The normalised metric, in the broadcast shape; ends `[prompt]` belong to values
        `[prompt, *cells]`.

    Raises:
        ShapeError: ends that fit the values in no way, or in two.
        NotFiniteError: clean and corrupt are equal somewhere, or NaN.

    Examples:
        >>> float(recovered(1.0, clean=3.0, corrupt=-1.0))
        0.5
    """
    value, clean, corrupt = (
        reals(given, "Metrics") for given in (value, clean, corrupt)
    )
    refuse_equal_ends(clean, corrupt)
    return _fraction(value, clean, corrupt)


@jax.jit
def _fraction(value: Array, clean: Array, corrupt: Array) -> Array:
    clean, corrupt = (_beside(value, end) for end in (clean, corrupt))
    try:
        jnp.broadcast_shapes(value.shape, clean.shape, corrupt.shape)
    except ValueError:
        raise ShapeError(
            f"Values of {value.shape} do not fit ends of {clean.shape} and "
            f"{corrupt.shape}."
        ) from None
    return (value - corrupt) / (clean - corrupt)


def refuse_equal_ends(clean: Array, corrupt: Array) -> None:
    """Refuse a scale whose ends are equal, or NaN, where they are known."""
    if isinstance(clean, Tracer) or isinstance(corrupt, Tracer):
        return
    try:
        distance = np.asarray(clean, np.float32) - np.asarray(corrupt, np.float32)
    except ValueError:  # ends of other shapes are judged with the values
        return
    wrong = (distance == 0) | ~np.isfinite(distance)
    if wrong.any():
        raise NotFiniteError(
            f"Clean and corrupt metrics are equal, or not finite, in {wrong.sum()} of "
            f"{wrong.size} cases, so no fraction is recovered: leave those prompts "
            "out, or average over prompts first."
        )


def _beside(value: Array, end: Array) -> Array:
    """Broadcast one end of the scale to the values, by prompt if it has prompts."""
    if not 0 < end.ndim < value.ndim:
        return end
    first = end.shape == value.shape[: end.ndim]
    last = all(a in (1, b) for a, b in zip(end.shape[::-1], value.shape[::-1]))  # noqa: B905
    if first == last:
        fit = "both ways along" if first else "not along"
        raise ShapeError(
            f"An end of shape {end.shape} fits {fit} values of {value.shape}: index it "
            "with None where it has no axis, or use the sweep's own recovered(clean)."
        )
    return end.reshape(end.shape + (1,) * (value.ndim - end.ndim)) if first else end
