"""A metric with its sign changed: divergences as something to keep large."""

import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import ConfigError, quoted
from mijax.core._metric import AbstractMetric


class negative(AbstractMetric):
    """Minus a metric, so that more of it is better.

    Circuits are found on metrics of which more is better. A divergence from the model
    (`kl`, `l2`) or a loss (`cross_entropy`) is one of which less is.

    Args:
        metric: a metric of which less is better.

    Raises:
        ConfigError: something else than a metric.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mijax.core import l2
        >>> logits = jnp.zeros((1, 4))
        >>> float(negative(l2(logits))(logits + 3))
        -9.0
    """

    metric: AbstractMetric
    position: Int[Array, "..."] | None

    def __init__(self, metric: AbstractMetric):
        if not isinstance(metric, AbstractMetric):
            raise ConfigError(
                "negative: `metric` must be a metric, got the "
                f"{type(metric).__name__} {quoted(metric)}."
            )
        if metric.looks():
            raise ConfigError(
                "negative takes a metric of logits: change the sign in the function of "
                "site_metric."
            )
        self.metric = metric
        self.position = metric.position

    def ids(self, prompt: Int[Array, ""] | None) -> Int[Array, " k"] | None:
        """Reads what the metric reads."""
        return self.metric.ids(prompt)

    def operands(self) -> dict[str, Array]:
        """Returns those of the metric."""
        return self.metric.operands()

    def counted(self) -> np.ndarray | None:
        """Return those of the metric."""
        return self.metric.counted()

    def check_tokens(self, vocab: int) -> None:
        """Refuses what the metric refuses."""
        self.metric.check_tokens(vocab)

    def score(
        self, logits: Float[Array, "reads k"], prompt: Int[Array, ""] | None
    ) -> Float[Array, ""]:
        """Changes the sign."""
        return -self.metric.score(logits, prompt)
