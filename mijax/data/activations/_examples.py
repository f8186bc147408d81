"""Examples that are already in memory, as a source."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax._errors import ConfigError, ShapeError
from mijax.data._permute import permuted_on_device
from mijax.data._source import AbstractSource
from mijax.data.activations._batch import Batch


class Examples(AbstractSource):
    """Batches of arrays, in an order drawn anew for every pass over them.

    Args:
        x: inputs, `[example, ...]`.
        y: outputs, `[example, ...]`; the inputs by default.
        batch: examples of a batch. What is left at the end of a pass is not used.
        seed: of the order.

    Raises:
        ConfigError: fewer examples than a batch.
        ShapeError: not as many outputs as inputs.

    Examples:
        >>> source = Examples(jnp.arange(6.0)[:, None], batch=3)
        >>> state, batch = source.batch(source.start())
        >>> batch.x.shape, int(state)
        ((3, 1), 1)
    """

    x: Float[Array, "example ..."]
    y: Float[Array, "example ..."] | None
    size: int = eqx.field(static=True)
    seed: int = eqx.field(static=True)

    def __init__(self, x: Any, y: Any = None, *, batch: int, seed: int = 0):
        self.x = jnp.asarray(x)
        self.y = None if y is None else jnp.asarray(y)
        self.size, self.seed = batch, seed
        if batch < 1 or batch > self.x.shape[0]:
            raise ConfigError(
                f"Batches of {batch} cannot be drawn from {self.x.shape[0]} examples."
            )
        if self.y is not None and self.y.shape[0] != self.x.shape[0]:
            raise ShapeError(
                f"There are {self.x.shape[0]} inputs and {self.y.shape[0]} outputs."
            )

    def start(self) -> Int[Array, ""]:
        """Returns how many batches have been given: none."""
        return jnp.int32(0)

    def batch(self, state: Int[Array, ""]) -> tuple[Int[Array, ""], Batch]:
        """Returns the next batch."""
        return _draw(self, state)


@eqx.filter_jit
def _draw(source: Examples, state: Int[Array, ""]) -> tuple[Int[Array, ""], Batch]:
    """Draws a batch; the order is that of the pass that the state is in."""
    n, size = source.x.shape[0], source.size
    turn, place = state // (n // size), state % (n // size)
    key = jax.random.fold_in(jax.random.key(source.seed), turn)
    index = permuted_on_device(key, place * size + jnp.arange(size), n)
    y = None if source.y is None else source.y[index]
    return state + 1, Batch(source.x[index], y)
