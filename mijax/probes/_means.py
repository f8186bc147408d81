"""Difference of means."""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from mijax.probes._frame import Frame, one_scale
from mijax.probes._probe import AbstractLinear, Data, Linear, Solved


class Means(AbstractLinear):
    r"""Difference of means: the nearest class mean.

    Logits $-\lVert x - \mu_k \rVert^2 / 2\sigma^2$ up to a constant, with one variance
    $\sigma^2$ pooled over classes and features; of two classes, the direction is
    $\mu_1 - \mu_0$ and the threshold half way ("mass-mean probing", Marks and Tegmark
    2023, arXiv:2310.06824). Nothing is regularised, features keep their scales.

    Examples:
        >>> x = jnp.array([[0.0, 1.0], [0.0, 3.0], [2.0, 0.0], [2.0, 4.0]])
        >>> y = [0, 0, 1, 1]
        >>> mijax.probes.fit(Means(), x, y, x, y).direction().round(5).tolist()
        [1.0, 0.0]
    """

    targets: ClassVar[Literal["classes", "values"]] = "classes"
    ranks: ClassVar[int] = 1

    @property
    def strengths(self) -> tuple[float, ...]:
        """There is nothing to choose."""
        return (0.0,)

    def frame(
        self, x: Float[Array, "example feature"], weight: Float[Array, " example"]
    ) -> Frame:
        """Keeps angles."""
        return one_scale(x, weight)

    def solve(
        self, data: Data, strength: Float[Array, ""], key: PRNGKeyArray
    ) -> Solved:
        """Averages."""
        means, _ = class_means(data)
        variance = (data.weight @ (data.x - means[data.y]) ** 2).mean()
        scaled = means / jnp.where(variance > 0, variance, 1.0)
        bias = -0.5 * (scaled * means).sum(-1)
        params = log_odds(Linear(scaled.T, bias))
        return Solved(params, jnp.array(0.0), jnp.array(1))


def class_means(
    data: Data,
) -> tuple[Float[Array, "label feature"], Float[Array, " label"]]:
    """Returns the mean of every class (of all examples, where it has none), and shares.

    Args:
        data: inputs and class indices.

    Returns:
        Means, and the share of each class.
    """
    member = jax.nn.one_hot(data.y, data.classes) * data.weight[:, None]
    share = member.sum(0)
    means = (member.T @ data.x) / jnp.where(share > 0, share, 1.0)[:, None]
    return jnp.where(share[:, None] > 0, means, data.weight @ data.x), share


def log_odds(params: Linear) -> Linear:
    """Turns logits of two classes into one output, that of their log odds."""
    if params.weight.shape[-1] != 2:
        return params
    weight, bias = params.weight, params.bias
    return Linear(weight[:, 1:] - weight[:, :1], bias[1:] - bias[:1])
