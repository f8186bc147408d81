"""Kinds of representation finetuning, each with its optimizer."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from mijax.core import AbstractEdit, Add, Site
from mijax.steering._answers import Answers
from mijax.steering._reft import AbstractTrained, DiReFT, LoReFT, ReFTr1, top_latents


class AbstractReft(eqx.Module):
    """A kind of representation finetuning, and its optimizer."""

    @abc.abstractmethod
    def start(self, key: PRNGKeyArray, width: int) -> Any:
        """Return the parameters before training."""

    @abc.abstractmethod
    def optimizer(self, steps: int) -> optax.GradientTransformation:
        """Return the optimizer."""

    @abc.abstractmethod
    def edit(self, params: Any, strength: Any) -> AbstractEdit:
        """Return the edit for one text.

        Args:
            params: the parameters.
            strength: the text's value from `strengths`.
        """

    def strengths(
        self, params: Any, batch: Any, progress: Float[Array, ""]
    ) -> tuple[Any, Float[Array, ""]]:
        """Return values that differ between texts, and a penalty; none by default.

        Args:
            params: the parameters.
            batch: tokens, lengths, starts of answers, activations.
            progress: completed fraction of the training.
        """
        return None, jnp.zeros(())

    @property
    def needs_activations(self) -> bool:
        """True if batches must contain the activations at the site."""
        return False

    def made(self, params: Any, source: Answers, place: Site) -> Any:
        """Return the edit with the trained parameters."""
        return params


class TrainLoReFT(AbstractReft):
    """LoReFT trained with AdamW and a linearly decaying learning rate.

    Attributes:
        rank: rank of the edit.
        learning_rate: initial learning rate.
        weight_decay: weight decay.
    """

    rank: int = eqx.field(static=True, default=4)
    learning_rate: float = eqx.field(static=True, default=9e-4)
    weight_decay: float = eqx.field(static=True, default=0.0)

    def start(self, key: PRNGKeyArray, width: int) -> AbstractTrained:
        """Return a random rotation and random weights."""
        return LoReFT.start(key, width=width, rank=self.rank)

    def edit(self, params: Any, strength: Any) -> AbstractEdit:
        """Return the parameters, which are the edit."""
        return params

    def optimizer(self, steps: int) -> optax.GradientTransformation:
        """Return AdamW."""
        return optax.adamw(_decay(self, steps), weight_decay=self.weight_decay)


class TrainDiReFT(TrainLoReFT):
    """DiReFT, trained like LoReFT."""

    def start(self, key: PRNGKeyArray, width: int) -> AbstractTrained:
        """Return random weights that change nothing."""
        return DiReFT.start(key, width=width, rank=self.rank)


class TrainReFTr1(AbstractReft):
    r"""ReFT-r1: one direction, scaled in training by its largest latents.

    Every token receives $v$ times the mean of the `k` largest latents in its text, and
    the loss includes $\frac{\text{step}}{\text{steps}} \lambda$ times the mean of the
    other latents. Before each step of AdamW, $v$ is divided by its norm and the
    gradient's component along it is removed; gradients are clipped to norm 1. The first
    token of a text has no latent.

    Attributes:
        k: number of latents in the mean.
        penalty: `λ`.
        learning_rate: initial learning rate; it decays linearly to 0.

    Source: AxBench, Wu et al. 2025, arXiv:2501.17148.
    """

    k: int = eqx.field(static=True, default=8)
    penalty: float = eqx.field(static=True, default=0.005)
    learning_rate: float = eqx.field(static=True, default=0.01)

    @property
    def needs_activations(self) -> bool:
        """True, since latents come from the model without the edit."""
        return True

    def start(self, key: PRNGKeyArray, width: int) -> Float[Array, " embed"]:
        """Return a random unit vector."""
        draw = jax.random.normal(key, (width,))
        return draw / jnp.linalg.norm(draw)

    def strengths(
        self, params: Any, batch: Any, progress: Float[Array, ""]
    ) -> tuple[Any, Float[Array, ""]]:
        """Return the mean of the largest latents in each text, and the penalty."""
        tokens, lengths, _, acts = batch
        real = real_tokens(tokens, lengths)
        latents = jnp.where(real, jax.nn.relu(acts @ params), 0)
        top, rest = top_latents(latents, self.k)
        mean = rest.sum() / jnp.maximum(real.sum(), 1)
        return top, progress * self.penalty * mean

    def edit(self, params: Any, strength: Any) -> AbstractEdit:
        """Return the edit that adds the vector to one text."""
        return Add(params, strength)

    def optimizer(self, steps: int) -> optax.GradientTransformation:
        """Return AdamW on the sphere."""
        clip = optax.clip_by_global_norm(1.0)
        adam = optax.adamw(_decay(self, steps), weight_decay=0.0)
        return _on_sphere(optax.chain(clip, _tangent(), adam))

    def made(self, params: Any, source: Answers, place: Site) -> "ReFTr1":
        """Return the unit vector, with the largest latent of the training texts."""
        unit = params / jnp.linalg.norm(params)
        assert source.acts is not None, "this method needs activations"
        latents = jax.nn.relu(source.acts @ unit)
        real = real_tokens(source.tokens, source.lengths)
        largest = jnp.where(real, latents, 0).max()
        return ReFTr1(unit, int(place.layer), place.name, largest)


def _decay(kind: Any, steps: int) -> optax.Schedule:
    return optax.linear_schedule(kind.learning_rate, 0.0, steps)


def real_tokens(tokens: Array, lengths: Array) -> Bool[Array, "text seq"]:
    """Return the tokens that are neither padding nor the first one."""
    position = jnp.arange(tokens.shape[1])
    return (position > 0) & (position < lengths[:, None])


def _tangent() -> optax.GradientTransformation:
    """Remove the gradient's component along the parameters."""

    def change(updates: Any, state: Any, params: Any = None) -> Any:
        unit = params / jnp.linalg.norm(params)
        return updates - (updates @ unit) * unit, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), change)


def _on_sphere(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """Divide parameters by their norm before each step of a rule."""

    def change(updates: Any, state: Any, params: Any = None) -> Any:
        unit = params / jnp.linalg.norm(params)
        step, state = rule.update(updates, state, unit)
        return step + (unit - params), state

    return optax.GradientTransformation(rule.init, change)
