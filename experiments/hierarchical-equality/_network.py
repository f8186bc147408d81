"""Perceptrons that learn the task, several at once."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from mijax import train
from mijax.causal import MLP, Drawn

from ._task import Examples


class Learned(train.AbstractObjective):
    """A perceptron of three hidden layers as wide as the input.

    Attributes:
        width: of input and layers (static).
        steps: updates (static).
        learning_rate: of Adam at the start; it falls to 0 along a cosine.
        seed: of the weights.
    """

    width: int = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    learning_rate: Any
    seed: Any

    def key(self) -> PRNGKeyArray:
        """Returns the key of the seed."""
        return jax.random.key(self.seed)

    def start(self, key: PRNGKeyArray) -> tuple[MLP, None]:
        """Draws weights."""
        return MLP(self.width, width=self.width, layers=3, classes=2, key=key), None

    def loss(
        self, params: MLP, memory: None, batch: Examples, step: train.Step
    ) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], None]]:
        """Returns the cross-entropy."""
        logits, _ = jax.vmap(params)(batch.x)
        cost = optax.softmax_cross_entropy_with_integer_labels(logits, batch.label)
        right = (logits.argmax(-1) == batch.label).mean()
        return step.mean(cost.mean()), ({"accuracy": step.mean(right)}, None)

    def optimiser(self) -> optax.GradientTransformation:
        """Returns Adam with a cosine."""
        cosine = optax.cosine_decay_schedule(1.0, self.steps)
        return optax.adam(lambda count: self.learning_rate * cosine(count))


def learned(
    source: Drawn,
    *,
    width: int,
    seeds: int,
    steps: int,
    learning_rate: float,
    sink: train.AbstractSink,
) -> list[MLP]:
    """Trains one perceptron per seed.

    Args:
        source: batches of examples.
        width: of input and layers.
        seeds: how many.
        steps: updates.
        learning_rate: of Adam at the start.
        sink: where loss and accuracy go.

    Returns:
        The perceptrons.
    """
    objectives = [Learned(width, steps, learning_rate, seed) for seed in range(seeds)]
    report = max(1, steps // 50)
    state = train.fit(objectives, source, steps=steps, sinks=[sink], report=report)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], state.params) for i in range(seeds)]


def accuracy(models: list[MLP], given: Examples) -> np.ndarray:
    """Measures the share of right labels of each model."""
    found = [
        (eqx.filter_jit(jax.vmap(model))(given.x)[0].argmax(-1) == given.label).mean()
        for model in models
    ]
    return np.asarray(jnp.stack(found))
