"""A multilayer perceptron with sites, as a transformer has them."""

import itertools
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from mijax._errors import ConfigError
from mijax.core import Sites, compose, site
from mijax.core.internal import Sequence as Rows
from mijax.core.internal import observed


@final
class MLP(eqx.Module):
    r"""Hidden layers of ReLU units, and logits.

    $h_l = \max(0, W_l h_{l-1} + b_l)$. The vector of layer `l` is a sequence of one
    token: it is read, and edited, at `Site("mlp_post", layer=l, position=0)`, and
    before the ReLU at `mlp_pre`. Layers count from 0.

    Attributes:
        weights: of each layer, the logits last, `[out, in]`.
        biases: of each layer, `[out]`.

    Args:
        inputs: size of the input.
        width: units of every hidden layer.
        layers: number of hidden layers.
        classes: number of logits.
        key: draws weights as PyTorch does, uniform within one over the root of the
            number of inputs of a unit.

    Raises:
        ConfigError: there is no hidden layer.

    Examples:
        >>> import mijax
        >>> model = MLP(16, width=8, layers=3, classes=2, key=jax.random.key(0))
        >>> logits, acts = model(jnp.ones(16))
        >>> logits.shape, acts.blocks.mlp_post.shape
        ((2,), (3, 1, 8))
        >>> off, _ = model(jnp.ones(16), mijax.Zero().at("mlp_post", layer=2))
        >>> bool((off == model.biases[-1]).all())
        True
    """

    weights: tuple[Float[Array, "out in"], ...]
    biases: tuple[Float[Array, " out"], ...]

    def __init__(
        self, inputs: int, *, width: int, layers: int, classes: int, key: PRNGKeyArray
    ):
        if layers < 1:
            raise ConfigError(f"An MLP has 1 hidden layer at least, got {layers}.")
        sizes = (inputs, *[width] * layers, classes)
        weights, biases = [], []
        for i, (n, m) in enumerate(itertools.pairwise(sizes)):
            one, two = jax.random.split(jax.random.fold_in(key, i))
            reach = n**-0.5
            weights.append(jax.random.uniform(one, (m, n), minval=-reach, maxval=reach))
            biases.append(jax.random.uniform(two, (m,), minval=-reach, maxval=reach))
        self.weights, self.biases = tuple(weights), tuple(biases)

    def __call__(
        self, x: Float[Array, " in"], edits: Any = None
    ) -> tuple[Float[Array, " classes"], Sites[Any]]:
        """Runs one example.

        Args:
            x: the input.
            edits: placed edits, a list of them, or `None`.

        Returns:
            Logits, and activations: `embed` is the input, `mlp_pre` and `mlp_post` are
            `[layer, 1, width]`.
        """
        rows = Rows(jnp.zeros(1, jnp.int32))
        logits, acts = observed(self._forward, compose(edits), rows)(x[None])
        return logits[0], acts

    def _forward(self, x: Float[Array, "1 in"]) -> Float[Array, "1 classes"]:
        """Computes logits, every layer's vector as a sequence of one token."""
        x = site("embed", x, "position embed")
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            pre = site("mlp_pre", x @ weight.T + bias, "position mlp")
            x = site("mlp_post", jax.nn.relu(pre), "position mlp")
        logits = x @ self.weights[-1].T + self.biases[-1]
        return site("logits", logits, "position vocab")
