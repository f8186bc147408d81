"""Training of toy models, many at once."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from mijax import train
from mijax.features._sparse import SparseFeatures
from mijax.features._toy import ToyModel, toy_losses


class Squeeze(train.AbstractObjective):
    r"""The objective of toy models as in the paper's notebook (Elhage et al. 2022).

    Instances do not meet: their losses are summed, and AdamW (weight decay 0.01)
    treats every number alone. Weights start as `xavier_normal_` of PyTorch draws the
    whole tensor, with standard deviation
    $\sqrt{2 / (\text{features} \cdot \text{embed} + \text{instances} \cdot
    \text{embed})}$; biases start at 0.

    Attributes:
        importance: of each feature of each instance.
        embed: into how many numbers features are squeezed (static).
        seed: of the weights.
        learning_rate: of AdamW, constant.

    Examples:
        >>> objective = Squeeze(jnp.ones((4, 5)), embed=2)
        >>> objective.start(objective.key())[0].weights.shape
        (4, 5, 2)
    """

    importance: Float[Array, "instance feature"]
    embed: int = eqx.field(static=True)
    seed: Any = 0
    learning_rate: Any = 1e-3

    def key(self) -> PRNGKeyArray:
        """Returns the key of the seed."""
        return jax.random.key(self.seed)

    def start(self, key: PRNGKeyArray) -> tuple[ToyModel, None]:
        """Draws weights."""
        instances, features = self.importance.shape
        scale = jnp.sqrt(2 / (self.embed * (features + instances)))
        drawn = jax.random.normal(key, (instances, features, self.embed))
        return ToyModel(scale * drawn, jnp.zeros((instances, features))), None

    def loss(
        self, params: Any, memory: None, batch: Any, step: train.Step
    ) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], None]]:
        """Returns the sum over instances of their losses."""
        found = toy_losses(params, batch.x, self.importance)
        return step.mean(found.sum()), ({}, None)

    def optimiser(self) -> optax.GradientTransformation:
        """Returns AdamW with the defaults of PyTorch."""
        return optax.adamw(self.learning_rate, weight_decay=0.01)


def squeeze(
    importance: Float[Array, "instance feature"],
    density: Float[Array, "instance feature"],
    *,
    embed: int,
    steps: int = 10_000,
    batch: int = 1024,
    seed: int = 0,
    sinks: Sequence[train.AbstractSink] = (),
    scan: int = 100,
) -> ToyModel:
    """Trains toy models as in the paper's notebook, all instances in one program.

    Args:
        importance: of each feature of each instance.
        density: chance that a feature is there.
        embed: into how many numbers features are squeezed.
        steps: updates.
        batch: examples of an update, of each instance.
        seed: of weights and examples. It is data: another one compiles nothing.
        sinks: where losses go, every `scan` updates.
        scan: updates of one program.

    Returns:
        The models.

    Examples:
        >>> density = jnp.full((1, 4), 0.5)
        >>> model = squeeze(jnp.ones((1, 4)), density, embed=2, steps=3, batch=8)
        >>> model.weights.shape
        (1, 4, 2)
    """
    source = SparseFeatures(density, batch=batch, seed=seed)
    objective = Squeeze(importance, embed, seed)
    state = train.fit(
        objective, source, steps=steps, sinks=sinks, report=scan, scan=scan
    )
    return state.params
