"""Where batches come from: a state that is a tree of arrays, and what comes next."""

import abc
from typing import Any

import equinox as eqx


class AbstractSource(eqx.Module):
    """A stream of batches that can be resumed exactly.

    The state holds everything that decides what comes next (position, buffer, key), as
    a tree of arrays: a training loop keeps it in its checkpoints, and a stream that
    goes on from a state gives the batches that it would have given, bit for bit.
    """

    @abc.abstractmethod
    def start(self) -> Any:
        """Returns the state before the first batch, a tree of arrays."""

    @abc.abstractmethod
    def batch(self, state: Any) -> tuple[Any, Any]:
        """Returns the state after the next batch, and that batch.

        A batch is a tree of arrays whose first axis is examples.
        """
