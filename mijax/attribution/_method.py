"""What an attribution method is."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx

from mijax.core import AbstractMetric, AbstractModel, Site
from mijax.core.internal import TokensLike

Rule = Callable[[AbstractModel], AbstractModel]


class AbstractMethod(eqx.Module):
    """An attribution method: a frozen value."""

    @abc.abstractmethod
    def scores(
        self,
        model: AbstractModel,
        clean: TokensLike,
        corrupt: TokensLike,
        metric: AbstractMetric,
        sites: Any,
    ) -> Any:
        """Returns the tree of `sites` with their scores; see `attribute`.

        Prompts with lengths are passed on to `capture` and `gradients`, which mask the
        padding of a model that is not causal.
        """


def is_site(node: Any) -> bool:
    """True if a node of a tree is a site."""
    return isinstance(node, Site)
