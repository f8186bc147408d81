"""What an attribution method is."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, Int

from mijax.core import AbstractMetric, AbstractModel, Site

Rule = Callable[[AbstractModel], AbstractModel]


class AbstractMethod(eqx.Module):
    """An attribution method: a frozen value."""

    @abc.abstractmethod
    def scores(
        self,
        model: AbstractModel,
        clean: Int[Array, "*batch seq"],
        corrupt: Int[Array, "*batch seq"],
        metric: AbstractMetric,
        sites: Any,
    ) -> Any:
        """Returns the tree of `sites` with their scores; see `attribute`."""


def is_site(node: Any) -> bool:
    """True if a node of a tree is a site."""
    return isinstance(node, Site)
