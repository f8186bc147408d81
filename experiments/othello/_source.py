"""Batches of fresh Othello games, played where the model is trained."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from mijax._errors import ConfigError
from mijax.data import AbstractSource

from ._rules import Othello, OthelloGames


class OthelloSource(AbstractSource):
    """Games of uniformly random legal moves, none of them twice on purpose.

    The state is how many batches have been given: batch `i` is drawn with
    `fold_in(key, i)`. JAX can trace it, so a training program draws its own games.

    Args:
        rules: of the board.
        batch_size: games of a batch.
        seed: of the games.

    Raises:
        ConfigError: no games in a batch.
    """

    rules: Othello
    batch_size: int = eqx.field(static=True, default=128)
    seed: Any = eqx.field(default=0, converter=jnp.asarray)

    def __check_init__(self):
        """Refuses batches without games."""
        if self.batch_size < 1:
            raise ConfigError(f"A batch has 1 game at least, got {self.batch_size}.")

    def start(self) -> Int[Array, ""]:
        """Returns how many batches have been given: none."""
        return jnp.int32(0)

    def batch(self, state: Int[Array, ""]) -> tuple[Int[Array, ""], OthelloGames]:
        """Returns fresh games."""
        key = jax.random.fold_in(jax.random.key(self.seed), state)
        return state + 1, self.rules.games(key, self.batch_size)
