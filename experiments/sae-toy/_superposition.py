"""A toy model of superposition: features squeezed into fewer numbers, by training."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from mijax import train
from mijax.testing import PlantedFeatures


class Squeezed(train.AbstractObjective):
    r"""$\hat c = \max(0, W^\top W c + b)$ (Elhage et al. 2022).

    Attributes:
        features: how many (static).
        embed: into how many numbers (static).
        seed: of the weights.
    """

    features: int = eqx.field(static=True)
    embed: int = eqx.field(static=True)
    seed: Any = 0

    def key(self) -> PRNGKeyArray:
        """Returns the key of the seed."""
        return jax.random.key(self.seed)

    def start(self, key: PRNGKeyArray) -> tuple[dict[str, Array], None]:
        """Draws weights."""
        w = jax.random.normal(key, (self.features, self.embed))
        return {"w": w / jnp.sqrt(self.features), "b": jnp.zeros(self.features)}, None

    def loss(
        self, params: Any, memory: None, batch: Any, step: train.Step
    ) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], None]]:
        """Returns the squared error of the features."""
        hidden = batch.x @ params["w"]
        off = batch.x - jax.nn.relu(hidden @ params["w"].T + params["b"])
        return step.mean((off**2).sum(1).mean()), ({}, None)

    def optimiser(self) -> optax.GradientTransformation:
        """Returns AdamW with the defaults of the paper's code."""
        return optax.adamw(1e-3, weight_decay=0.01)


def superposed(
    features: int, embed: int, *, density: float, steps: int, seed: int
) -> Float[Array, "feature embed"]:
    """Trains the model; returns where each feature lies in it.

    Args:
        features: how many.
        embed: size of the hidden layer.
        density: chance that a feature is there.
        steps: updates.
        seed: of weights and data.

    Returns:
        The rows of $W$, not of length 1.
    """
    source = PlantedFeatures(
        jnp.eye(features), batch=1024, density=density, seed=seed + 1000
    )
    objective = Squeezed(features, embed, seed)
    return train.fit(objective, source, steps=steps, report=steps).params["w"]
