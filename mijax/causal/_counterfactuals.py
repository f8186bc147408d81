"""What is asked of a model: a base, sources, and the label after the swap."""

from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray, Shaped

from mijax.data import AbstractSource


@final
class Counterfactuals(eqx.Module):
    """Interchange interventions and what the causal model says of them.

    Inputs are vectors of numbers or of token ids. One example, or a batch of them.

    Attributes:
        base: inputs of the runs that are changed.
        sources: inputs of the runs that each variable is read from.
        swapped: which variables are set.
        label: the causal model's output after that, an index of the logits.
    """

    base: Shaped[Array, "*batch input"]
    sources: Shaped[Array, "*batch variable input"]
    swapped: Bool[Array, "*batch variable"]
    label: Int[Array, "*batch"]


@final
class Drawn(AbstractSource):
    """Batches that a function draws, each with a key of its own.

    Args:
        draw: returns a tree of arrays, the examples of one key along their first axis
            once it is mapped: it draws a single example.
        batch: examples of a batch.
        seed: of all keys.

    Examples:
        >>> source = Drawn(lambda key: jax.random.normal(key, (3,)), batch=4)
        >>> state, batch = source.batch(source.start())
        >>> batch.shape
        (4, 3)
    """

    draw: Callable[[PRNGKeyArray], Any] = eqx.field(static=True)
    rows: int = eqx.field(static=True)
    seed: Int[Array, ""]

    def __init__(
        self, draw: Callable[[PRNGKeyArray], Any], *, batch: int, seed: int = 0
    ):
        self.draw, self.rows, self.seed = draw, batch, jnp.int32(seed)

    def start(self) -> Int[Array, ""]:
        """Returns how many batches have been given: none."""
        return jnp.int32(0)

    def batch(self, state: Int[Array, ""]) -> tuple[Int[Array, ""], Any]:
        """Returns the next batch."""
        return state + 1, _drawn(self, state)


@eqx.filter_jit
def _drawn(source: Drawn, state: Int[Array, ""]) -> Any:
    key = jax.random.fold_in(jax.random.key(source.seed), state)
    return jax.vmap(source.draw)(jax.random.split(key, source.rows))
