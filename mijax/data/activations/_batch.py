"""The batch that dictionaries, transcoders and crosscoders are trained on."""

from typing import Any

import equinox as eqx
from jaxtyping import Shaped


class Batch(eqx.Module):
    """What is read, and what is to be predicted from it.

    Attributes:
        x: `[batch, embed]`, `[batch, site, embed]`, `[batch, model, embed]` or
            `[batch, model, site, embed]`.
        target: the same of what is to be predicted, `None` where that is `x`.

    Examples:
        >>> batch = Batch(jax.numpy.ones((4, 8)))
        >>> batch.y is batch.x, len(jax.tree.leaves(batch))
        (True, 1)
    """

    x: Shaped[Any, "batch ..."]
    target: Shaped[Any, "batch ..."] | None = None

    @property
    def y(self) -> Any:
        """What is to be predicted: `target`, or `x` itself."""
        return self.x if self.target is None else self.target
