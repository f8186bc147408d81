"""Noise: a seeded perturbation of an activation."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from mijax._errors import ShapeError, quoted
from mijax.core._edits import AbstractEdit
from mijax.core._operands import check_per_prompt, coefficient_of


class Noise(AbstractEdit):
    r"""Adds Gaussian noise: $x \mapsto x + c \cdot \epsilon$.

    The noise of a row depends on the key and on the row's prompt, layer and position
    only, so it is the same in a batch, alone, padded or in a sweep.

    Args:
        key: a `jax.random.key`.
        coefficient: standard deviation, in units of the activation; a number or
            `PerPrompt`.
    """

    key: PRNGKeyArray
    coefficient: Any = eqx.field(default=1.0, converter=coefficient_of)

    def __check_init__(self):
        """Refuse what is not one key."""
        key = self.key
        typed = isinstance(key, jax.Array) and jnp.issubdtype(
            key.dtype, jax.dtypes.prng_key
        )
        old = isinstance(key, jax.Array | np.ndarray) and key.dtype == np.uint32
        if not (typed and key.ndim == 0) and not (old and key.ndim == 1):
            raise ShapeError(f"Noise takes a jax.random.key, got {quoted(key)}.")

    def check_operand(self, spec: Any, rows: range, batch: tuple[int, ...]) -> None:
        """Refuses coefficients of other prompts."""
        check_per_prompt(self.coefficient, "coefficient", batch)

    def __call__(self, x: Float[Array, "rows ..."], place: Any) -> Array:
        """Adds each row's own noise."""
        noise = place.noise(self.key, x)
        step = place.each(self.coefficient, x) * noise
        return x + step.astype(x.dtype)
