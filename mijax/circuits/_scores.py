"""Scores: how much each edge, node or neuron matters."""

from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax.circuits.forward._graph import Graph
from mijax.core.internal import cut, shown

Level = Literal["edge", "node", "neuron"]


class Entry(NamedTuple):
    """One line of a ranking: a name, its score and the standard error of it."""

    name: str
    score: float
    error: float | None


class Scores(eqx.Module):
    """How much the metric falls when an edge, node or neuron is ablated.

    Attributes:
        values: mean over prompts: `[sender, receiver]` for edges (0 where there is no
            edge), `[sender]` for nodes, `[sender, embed]` for neurons.
        error: standard error of that mean, of the same shape; `None` if the method
            does not score prompts one by one.
        prompts: the score in each prompt, `[batch, ...]`, if it was kept.
        graph: senders and receivers.
        level: `"edge"`, `"node"` or `"neuron"`.
        method: how they were found.
    """

    values: Float[Array, "..."]
    error: Float[Array, "..."] | None
    prompts: Float[np.ndarray, "batch ..."] | None
    graph: Graph = eqx.field(static=True)
    level: Level = eqx.field(static=True)
    method: str = eqx.field(static=True)

    def __repr__(self) -> str:
        count, values = int(self.real.sum()), np.asarray(self.values)[self.real]
        return cut(f"Scores({count} {self.level}s: {shown(values)}, {self.method})")

    @property
    def real(self) -> np.ndarray:
        """Which entries of `values` exist, of the same shape."""
        if self.level == "edge":
            return self.graph.edges
        return np.ones(self.values.shape, bool)

    def best(self, n: int = 10, *, absolute: bool = True) -> list[Entry]:
        """Returns the entries with the largest scores.

        Args:
            n: how many.
            absolute: rank by size, whatever the sign.

        Returns:
            The entries, best first.
        """
        values = np.asarray(self.values)
        key = np.where(self.real, np.abs(values) if absolute else values, -np.inf)
        order = np.argsort(-key, axis=None, kind="stable")[: min(n, self.real.sum())]
        error = None if self.error is None else np.asarray(self.error).reshape(-1)
        return [
            Entry(
                self.name(int(i)),
                float(values.reshape(-1)[i]),
                None if error is None else float(error[i]),
            )
            for i in order
        ]

    def name(self, index: int) -> str:
        """Returns the name of an entry of the flattened values."""
        if self.level == "node":
            return self.graph.senders[index]
        row, column = divmod(index, self.values.shape[1])
        if self.level == "edge":
            return self.graph.name(row, column)
        return f"{self.graph.senders[row]}[{column}]"

    def __getitem__(self, name: str) -> Array:
        """Returns the score of an edge or a node by its name."""
        if self.level == "edge":
            return self.values[self.graph.edge(name)]
        return self.values[self.graph.sender(name)]


def merged(
    known: Float[Array, "2 ..."], n: int, found: Float[Array, "prompt ..."]
) -> Float[Array, "2 ..."]:
    """Adds prompts to a mean and a sum of squared deviations (Chan et al. 1979).

    Args:
        known: mean and sum of squared deviations so far.
        n: how many prompts these are of.
        found: values in more prompts.

    Returns:
        Both, of all prompts.
    """
    share = found.shape[0] / (n + found.shape[0])
    return _merge(known, found, np.float32(share), np.float32(n * share))


@jax.jit
def _merge(known: Array, found: Array, share: Array, weight: Array) -> Array:
    found = found.astype(known.dtype)
    mean = found.mean(0)
    change = mean - known[0]
    squares = ((found - mean) ** 2).sum(0) + change**2 * weight
    return jnp.stack([known[0] + change * share, known[1] + squares])


def standard_error(squares: Float[Array, "..."], n: int) -> Float[Array, "..."] | None:
    """Returns the error of a mean from the squared deviations; none of one prompt."""
    return None if n < 2 else jnp.sqrt(squares / (n * (n - 1)))
