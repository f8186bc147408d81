"""A causal depthwise convolution over tokens."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax.core import AbstractRows, Past, site
from mijax.nn._attention import add

CHANNELS = "position channel"


class CausalConv(eqx.Module):
    """A depthwise convolution over the latest tokens, followed by an activation.

    The site `conv_out` is its output. A block with this convolution keeps the latest
    inputs, `conv_window`.

    Attributes:
        weight: weight for each token in the window, oldest first.
        bias: bias, or `None`.
        activation: activation applied to the sum.
    """

    weight: Float[Array, "*layer taps channel"]
    bias: Float[Array, "*layer channel"] | None
    activation: Callable[[Array], Array]

    def __call__(
        self,
        x: Float[Array, "rows channel"],
        rows: AbstractRows,
        past: Past | None = None,
    ) -> Float[Array, "rows channel"]:
        """Convolves the rows of each sequence."""
        window = rows.window("conv_window", x, len(self.weight), past)
        out = add(jnp.einsum("nkc,kc->nc", window, self.weight), self.bias)
        return site("conv_out", self.activation(out), CHANNELS)
