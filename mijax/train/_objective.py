"""What is fitted: parameters, a loss, an optimiser."""

import abc
from typing import Any

import equinox as eqx
import jax
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray

from mijax.train._mesh import Step


class AbstractObjective(eqx.Module):
    """What is minimised, and by what: a frozen value.

    Its array leaves (a learning rate, a sparsity coefficient) are traced: objectives
    that differ only there run as one program, and many at once as lanes of it.
    """

    @abc.abstractmethod
    def key(self) -> PRNGKeyArray:
        """Returns the key of parameters and of every update."""

    @abc.abstractmethod
    def start(self, key: PRNGKeyArray) -> tuple[Any, Any]:
        """Returns parameters, and a memory that updates carry on without gradients."""

    @abc.abstractmethod
    def loss(
        self, params: Any, memory: Any, batch: Any, step: Step
    ) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], Any]]:
        """Returns the loss, numbers to report, and the memory after this batch.

        Under a mesh it sees this device's examples and this device's part of the
        parameters; `step` sums and averages over the others.
        """

    @abc.abstractmethod
    def optimiser(self) -> optax.GradientTransformation:
        """Returns what turns gradients into updates."""

    def identity(self) -> Any:
        """Return everything that a checkpoint depends on: the objective, by default."""
        return self

    def about(self) -> Any:
        """Return JSON that a checkpoint keeps to be read without the objective."""
        return None

    def after(
        self, params: Any, optimiser: Any, memory: Any, batch: Any, step: Step
    ) -> tuple[Any, Any, Any]:
        """Changes parameters, optimiser and memory after an update; nothing here."""
        return params, optimiser, memory

    def specs(self, tree: Any) -> Any:
        """Says how parameters and memory lie on a mesh: on every device, by default.

        Args:
            tree: parameters and memory, a pair, or shapes of them.

        Returns:
            The same tree of `PartitionSpec`s over the axis `"model"`.
        """
        return jax.tree.map(lambda _: PartitionSpec(), tree)
