"""An edit of the backward pass alone."""

import jax
from jaxtyping import Array, Float

from mijax.core._edits import AbstractEdit
from mijax.core._place import Place


class StopGradient(AbstractEdit):
    """Stops the gradient: the activation stays, and nothing flows back through it.

    Where it is placed is data like any other place, so one compiled program serves
    every layer.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> tokens, metric = [5, 6, 7], mijax.logit_difference(3, 4)
        >>> stop = [StopGradient().at(name) for name in ("attn_out", "mlp_out")]
        >>> site = mijax.Site("z")
        >>> float(abs(mijax.gradients(model, tokens, metric, site, stop)).max())
        0.0
    """

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Returns the rows as constants."""
        return jax.lax.stop_gradient(x)
