"""Schedules: from nothing, up, along, and down."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax._errors import ConfigError


def warmed(
    peak: Any, *, steps: int, warmup: int = 0, decay: int = 0
) -> Callable[[Any], Float[Array, ""]]:
    """Rises in a line from 0, stays, and falls in a line to 0.

    Args:
        peak: the value in between; may be traced.
        steps: updates in all.
        warmup: updates of the rise.
        decay: updates of the fall, the last ones.

    Returns:
        The schedule: updates done to value.

    Raises:
        ConfigError: rise and fall are longer than all of it.

    Examples:
        >>> schedule = warmed(1.0, steps=10, warmup=2, decay=4)
        >>> [float(schedule(i)) for i in (0, 1, 2, 6, 8, 9)]
        [0.5, 1.0, 1.0, 1.0, 0.5, 0.25]
    """
    if warmup < 0 or decay < 0 or warmup + decay > steps:
        raise ConfigError(
            f"A schedule of {steps} steps cannot warm up for {warmup} and decay for "
            f"{decay}: make them at most {steps} together."
        )

    def value(step: Any) -> Float[Array, ""]:
        up = (step + 1) / max(warmup, 1) if warmup else 1.0
        down = (steps - step) / max(decay, 1) if decay else 1.0
        return peak * jnp.clip(jnp.minimum(up, down), 0.0, 1.0)

    return value
