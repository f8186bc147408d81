"""Scores of nodes, and selection by them."""

import operator
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from mijax._errors import ConfigError, SiteError, nearest
from mijax.circuits._scores import Entry
from mijax.circuits.nodes._circuit import NodeCircuit
from mijax.circuits.nodes._nodes import Nodes
from mijax.core.internal import cut, shown


class NodeScores(eqx.Module):
    """Fall of the metric when a node is replaced.

    `scores["relu"]` gives the values of a site, `[*axes]`, a tuple by layer where
    their sizes differ.

    Attributes:
        values: mean over examples, `[node]`.
        error: standard error of that mean; `None` for one example, or if the method
            does not score examples one by one.
        nodes: the nodes.
        method: the method that found them.
    """

    values: Float[np.ndarray, " node"]
    error: Float[np.ndarray, " node"] | None
    nodes: Nodes = eqx.field(static=True)
    method: str = eqx.field(static=True)

    def __repr__(self) -> str:
        count = len(self.nodes)
        return cut(f"NodeScores({count} nodes: {shown(self.values)}, {self.method})")

    def __getitem__(self, site: str) -> Any:
        found = self.nodes.split(self.values)
        if site not in found:
            close = nearest(site, found)
            raise SiteError(f"There are no scores of a site {site!r}.{close}")
        return found[site]

    def best(self, n: int = 10, *, absolute: bool = True) -> list[Entry]:
        """Return the nodes with the largest scores.

        Args:
            n: number of nodes.
            absolute: rank by size, whatever the sign.

        Returns:
            Name, score and standard error of each, best first.
        """
        order, names = self._order(absolute)[:n], self.nodes.names()
        error = self.error
        return [
            Entry(
                names[i],
                float(self.values[i]),
                None if error is None else float(error[i]),
            )
            for i in order
        ]

    def top(self, n: Any, *, absolute: bool = False) -> NodeCircuit:
        """Select the `n` best nodes.

        Args:
            n: number of nodes.
            absolute: rank by size, whatever the sign.

        Returns:
            The circuit.

        Raises:
            ConfigError: `n` that is not an integer from 0 to the number of nodes, or
                scores that are NaN.
        """
        try:
            n = operator.index(n)
        except TypeError:
            raise ConfigError(f"n is a whole number of nodes, got {n!r}.") from None
        if not 0 <= n <= len(self.nodes):
            raise ConfigError(
                f"There are {len(self.nodes)} nodes to choose from, got n={n}."
            )
        mask = np.zeros(len(self.nodes), bool)
        mask[self._order(absolute)[:n]] = True
        return NodeCircuit(self.nodes, mask)

    def above(self, at: float | int, *, absolute: bool = False) -> NodeCircuit:
        """Select all nodes that score `at` or more.

        Args:
            at: least score.
            absolute: compare sizes, whatever the sign.

        Returns:
            The circuit.

        Raises:
            ConfigError: scores that are NaN.
        """
        return NodeCircuit(self.nodes, self._ranked(absolute) >= at)

    def _ranked(self, absolute: bool) -> np.ndarray:
        if np.isnan(self.values).any():
            raise ConfigError(f"{int(np.isnan(self.values).sum())} scores are NaN.")
        return np.abs(self.values) if absolute else self.values

    def _order(self, absolute: bool) -> np.ndarray:
        return np.argsort(-self._ranked(absolute), kind="stable")
