"""What a kind of probe is: a frozen value that can be fitted to weighted examples."""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mijax._errors import ConfigError
from mijax.probes._frame import Frame, per_feature

# A fit has converged where the norm of its gradient is this share of that at its start.
CONVERGED = 1e-4


class Data(NamedTuple):
    """Examples of one probe.

    Attributes:
        x: inputs, `[example, feature]` or `Sequences`; standardised over all training
            examples, of which `weight` may leave out some.
        y: class indices `[example]`, or values.
        weight: share of each example in every mean, sums to one.
        classes: number of classes; 1 for values.
    """

    x: Any
    y: Array
    weight: Float[Array, " example"]
    classes: int


class Solved(NamedTuple):
    """Parameters and how close to optimal they are.

    Attributes:
        params: tree of arrays.
        gradient: norm of the gradient relative to that at the start.
        steps: iterations.
    """

    params: Any
    gradient: Float[Array, ""]
    steps: Int[Array, ""]


class AbstractProbe(eqx.Module):
    """A kind of probe.

    To write one's own, subclass it: `fit` batches over probes, strengths and folds, so
    a kind sees one probe, one strength, and examples with weights.

    Attributes:
        targets: whether labels are `"classes"` or `"values"`.
        ranks: axes of one example, 1, or 2 for `Sequences`.
    """

    targets: ClassVar[Literal["classes", "values"]]
    ranks: ClassVar[int]

    @property
    @abc.abstractmethod
    def strengths(self) -> tuple[float, ...]:
        """Strengths of regularisation to choose from."""

    def frame(self, x: Any, weight: Float[Array, " example"]) -> Frame:
        """Returns the mean and scale that inputs are put on: those of each feature."""
        return per_feature(x, weight)

    @abc.abstractmethod
    def solve(
        self, data: Data, strength: Float[Array, ""], key: PRNGKeyArray
    ) -> Solved:
        """Fits to standardised inputs."""

    @abc.abstractmethod
    def outputs(self, params: Any, x: Any) -> Float[Array, "example output"]:
        """Returns logits of the classes, or values, of standardised inputs."""


class Linear(NamedTuple):
    """Parameters of a linear probe. Two classes share one output, the log odds."""

    weight: Float[Array, "*probe feature output"]
    bias: Float[Array, "*probe output"]


class AbstractLinear(AbstractProbe):
    """A probe that is linear in its inputs, with parameters `Linear`."""

    def outputs(
        self, params: Linear, x: Float[Array, "example feature"]
    ) -> Float[Array, "example output"]:
        """Returns logits of the classes, or values."""
        out = x @ params.weight + params.bias
        if self.targets == "classes" and out.shape[-1] == 1:
            return jnp.concatenate([jnp.zeros_like(out), out], axis=-1)
        return out


def grid(strengths: float | Sequence[float]) -> tuple[float, ...]:
    """Checks strengths of regularisation; one may be given alone.

    Args:
        strengths: numbers that are not negative.

    Returns:
        The strengths.

    Raises:
        ConfigError: none, a negative one, or one that is not finite.
    """
    found = tuple(float(s) for s in np.atleast_1d(np.asarray(strengths, float)))
    if not found or not all(0 <= s < float("inf") for s in found):
        raise ConfigError(
            f"Strengths of regularisation are numbers >= 0, at least one; got {found}."
        )
    return found
