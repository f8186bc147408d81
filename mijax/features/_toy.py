"""The toy model of superposition: many features through few numbers, and back."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class ToyModel(eqx.Module):
    r"""$\hat x = \max(0, W^\top W x + b)$, one model or many (Elhage et al. 2022).

    A model of several instances has them as leading axes of both arrays; it takes
    examples of all of them at once with `jax.vmap`, or by `restore`.

    Attributes:
        weights: where each feature lies, the transpose of the paper's $W$.
        bias: added before the ReLU.

    Examples:
        >>> model = ToyModel(jnp.array([[1.0], [-1.0]]), jnp.zeros(2))
        >>> model(jnp.array([0.0, 0.5])).tolist()
        [0.0, 0.5]
    """

    weights: Float[Array, "*instance feature embed"]
    bias: Float[Array, "*instance feature"]

    def __call__(self, x: Float[Array, " feature"]) -> Float[Array, " feature"]:
        """Squeezes the features of one example and restores them."""
        return jax.nn.relu(self.weights @ (x @ self.weights) + self.bias)

    def restore(
        self, x: Float[Array, "batch instance feature"]
    ) -> Float[Array, "batch instance feature"]:
        """Restores the features of examples of every instance.

        Args:
            x: features, of which each instance sees its own.

        Returns:
            What the model makes of them.
        """
        # With examples as the last axis no product has to transpose them.
        last = jnp.moveaxis(x, 0, -1)
        hidden = jnp.einsum("ife,ifb->ieb", self.weights, last)
        back = jnp.einsum("ife,ieb->ifb", self.weights, hidden)
        return jnp.moveaxis(jax.nn.relu(back + self.bias[..., None]), -1, 0)


def toy_losses(
    model: ToyModel,
    x: Float[Array, "batch instance feature"],
    importance: Float[Array, "instance feature"],
) -> Float[Array, " instance"]:
    r"""Computes the loss of every instance.

    Args:
        model: the instances.
        x: features of examples.
        importance: $I$, of every feature.

    Returns:
        $I (|x| - \hat x)^2$, averaged over examples and features.

    Examples:
        >>> model = ToyModel(jnp.ones((1, 1, 1)), jnp.zeros((1, 1)))
        >>> toy_losses(model, jnp.ones((4, 1, 1)), jnp.ones((1, 1))).tolist()
        [0.0]
    """
    off = jnp.abs(x) - model.restore(x)
    return (importance * off**2).mean((0, 2))
