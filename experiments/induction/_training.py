"""Training of small attention-only models, which a kill cannot harm."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mijax import io, models
from mijax.experiment import Config, Progress
from mijax.models import AttentionOnlySpec
from mijax.nn import Transformer

from ._repeats import VOCAB, Repeats, draw
from ._scores import attention_scores, split_losses, token_losses


class Training(Config):
    """How the models are trained."""

    steps: int = 2000
    "Optimiser steps."
    batch: int = 64
    "Sequences per step."
    context: int = 64
    "Tokens per sequence, at most 64."
    shortest: int = 8
    "Least tokens of the segment that comes twice."
    longest: int = 28
    "Most tokens of the segment that comes twice."
    embed: int = 64
    "Width of the residual stream."
    heads: int = 4
    "Attention heads per layer."
    head_dim: int = 16
    "Width of a head."
    learning_rate: float = 3e-3
    "Peak of the schedule: linear warm-up, then a cosine to a tenth."
    warmup: int = 200
    "Steps of the warm-up; at most half of all."
    weight_decay: float = 0.01
    "Of AdamW."
    every: int = 50
    "Steps between two measurements; also what a kill loses at most."
    measured: int = 128
    "Held-out sequences per measurement."
    install: bool = False
    "Whether to put the trained model among those that mijax ships."


class History(NamedTuple):
    """What was measured during training, one entry per measurement.

    Attributes:
        step: steps done.
        copied: loss on tokens that can be copied from the first copy, in nats.
        fresh: loss on all other tokens, in nats.
        prefix_matching: of every head.
        previous_token: of every head.
    """

    step: Int[np.ndarray, " point"]
    copied: Float[np.ndarray, " point"]
    fresh: Float[np.ndarray, " point"]
    prefix_matching: Float[np.ndarray, "point layer heads"]
    previous_token: Float[np.ndarray, "point layer heads"]


class State(NamedTuple):
    """Everything that the next step depends on; data follow from the step."""

    model: Transformer
    optimiser: Any
    step: Int[Array, ""]


def unchanged(model: Transformer) -> Transformer:
    """Returns the model."""
    return model


def fit(
    config: Training,
    *,
    layers: int,
    seed: int,
    folder: Path,
    progress: Progress,
    change: Callable[[Transformer], Transformer] = unchanged,
) -> tuple[Transformer, History]:
    """Trains one model, going on from `folder` where it was killed.

    Args:
        config: how to train.
        layers: number of layers.
        seed: of the weights, the data and the measurements.
        folder: where the state is kept.
        progress: called with steps done and in total.
        change: what is substituted in the model before it is trained.

    Returns:
        The trained model and the history.
    """
    key = jax.random.key(seed)
    model = change(models.init(spec_of(config, layers), key))
    first = make_optimiser(config).init(model)
    state = State(model, first, jnp.zeros((), jnp.int32))
    points = -(-config.steps // config.every)
    per_head = (points, layers, config.heads)
    history = History(
        np.zeros(points, np.int32),
        *(np.zeros(shape, np.float32) for shape in [points] * 2 + [per_head] * 2),
    )
    held_out = draw(
        jax.random.fold_in(key, 2**30),
        config.measured,
        seq=config.context,
        shortest=config.shortest,
        longest=config.longest,
        distinct=True,
    )
    kept = folder / f"{layers}-layer"
    if io.is_checkpoint(kept):
        state, history = io.load_checkpoint((state, history), kept)
    history = History(*(np.array(values) for values in history))
    while (done := int(state.step)) < config.steps:
        progress(done, config.steps)
        count = min(config.every, config.steps - done)
        steps = jnp.arange(done, done + count, dtype=jnp.int32)
        state = advance(config, state, steps, key)
        measured = jax.device_get(measure(state.model, held_out))
        for values, new in zip(history, (done + count, *measured), strict=True):
            values[done // config.every] = new
        io.save_checkpoint((state, history), kept)
    progress(config.steps, config.steps)
    return state.model, history


def spec_of(config: Training, layers: int) -> AttentionOnlySpec:
    """Sizes of the model."""
    return AttentionOnlySpec(
        layers=layers,
        embed=config.embed,
        heads=config.heads,
        head_dim=config.head_dim,
        vocab=VOCAB,
        context=config.context,
    )


def make_optimiser(config: Training) -> Any:
    """AdamW with clipped gradients, a warm-up and a cosine."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        config.learning_rate,
        warmup_steps=min(config.warmup, config.steps // 2),
        decay_steps=config.steps,
        end_value=config.learning_rate / 10,
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.98, weight_decay=config.weight_decay),
    )


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def advance(
    config: Training, state: State, steps: Int[Array, " step"], key: PRNGKeyArray
) -> State:
    """Runs many steps in one call, which reuses the memory of the state."""
    optimiser = make_optimiser(config)

    def loss(model: Transformer, tokens: Array) -> Array:
        logits, _ = jax.vmap(model)(tokens)
        return optax.softmax_cross_entropy_with_integer_labels(
            logits[:, :-1], tokens[:, 1:]
        ).mean()

    def one(state: State, step: Array) -> tuple[State, None]:
        batch = draw(
            jax.random.fold_in(key, step),
            config.batch,
            seq=config.context,
            shortest=config.shortest,
            longest=config.longest,
        )
        gradient = jax.grad(loss)(state.model, batch.tokens)
        updates, new = optimiser.update(gradient, state.optimiser, state.model)
        model = eqx.apply_updates(state.model, updates)
        return State(model, new, step + 1), None

    return jax.lax.scan(one, state, steps)[0]


@jax.jit
def measure(model: Transformer, prompts: Repeats) -> tuple[Array, ...]:
    """Measures what `History` holds, after the step."""
    logits, acts = jax.vmap(model)(prompts.tokens)
    losses = split_losses(token_losses(logits, prompts), prompts)
    scores = attention_scores(acts.blocks.pattern, prompts)
    return tuple(
        values.mean(0)
        for values in (
            *losses,
            scores["prefix_matching"],
            scores["previous_token"],
        )
    )
