"""Models that are trained to predict moves, and how legal their predictions are."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from mijax import models, train
from mijax.io import replace_file
from mijax.nn import Transformer

from ._rules import OthelloGames
from ._source import OthelloSource

# Updates of one compiled program.
SCAN = 50


class Predicts(train.AbstractObjective):
    """Prediction of the next move of a random game (Li et al. 2022).

    Attributes:
        spec: sizes of the model (static).
        steps: updates in all, which the schedule ends with (static).
        expected: whether the loss is its mean over the move that is drawn next, which
            is the mean over legal moves, instead of the loss of one draw (static).
        seed: of the weights.
        learning_rate: the greatest one.
    """

    spec: models.GPT2Spec = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    expected: bool = eqx.field(static=True)
    seed: Any = 0
    learning_rate: Any = 1e-3

    def key(self) -> PRNGKeyArray:
        """Returns the key of the seed."""
        return jax.random.key(self.seed)

    def start(self, key: PRNGKeyArray) -> tuple[Transformer, None]:
        """Draws weights."""
        return models.init(self.spec, key), None

    def loss(
        self, params: Transformer, memory: None, batch: OthelloGames, step: train.Step
    ) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], None]]:
        """Returns the mean loss where a move follows."""
        logits = jax.vmap(lambda tokens: params(tokens)[0])(batch.tokens[:, :-1])
        chances = jax.nn.log_softmax(logits)
        mask, legal = batch.mask[:, :-1], batch.legal[:, :-1]
        if self.expected:
            each = -jnp.where(legal, chances[..., :-1], 0).sum(-1)
            each = each / jnp.maximum(legal.sum(-1), 1)
        else:
            following = batch.tokens[:, 1:, None]
            each = -jnp.take_along_axis(chances, following, axis=-1)[..., 0]
        total, count = step.total((each * mask).sum()), step.total(mask.sum())
        return total / count, ({}, None)

    def optimiser(self) -> optax.GradientTransformation:
        """Returns AdamW with a short rise and a cosine to a tenth."""
        shape = optax.warmup_cosine_decay_schedule(
            *(0.0, 1.0),
            warmup_steps=min(200, self.steps // 10 + 1),
            decay_steps=self.steps,
            end_value=0.1,
        )
        rate = lambda step: self.learning_rate * shape(step)  # noqa: E731
        return optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=0.01),
        )


class Legality(NamedTuple):
    """How legal predictions are, over positions that a move follows.

    Attributes:
        illegal: share of positions whose most likely token is illegal.
        mass: mean probability of illegal tokens.
        excess: loss above that of the uniform distribution over legal moves, in nats,
            which no model can beat.
    """

    illegal: Float[Array | np.ndarray, "*model"]
    mass: Float[Array | np.ndarray, "*model"]
    excess: Float[Array | np.ndarray, "*model"]


class Trained(NamedTuple):
    """Models of several seeds, every array with a leading axis of seeds.

    Attributes:
        models: after training.
        untrained: before it.
        updates: at which `history` was measured.
        history: on held-out games, `[point, seed]`.
        seconds: of the updates of this run, with compilation.
        done: updates of this run; fewer than all if it went on from a checkpoint.
    """

    models: Transformer
    untrained: Transformer
    updates: Float[np.ndarray, " point"]
    history: Legality
    seconds: float
    done: int


def trained(
    objectives: list[Predicts],
    source: OthelloSource,
    held_out: OthelloGames,
    *,
    every: int,
    folder: Path,
    progress: Callable[[int, int], None],
) -> Trained:
    """Trains models side by side on the same games, and measures them on the way.

    Args:
        objectives: one for each seed.
        source: of the games.
        held_out: games to measure on.
        every: updates between two measurements, and between two checkpoints.
        folder: where these are; a run goes on from there.
        progress: takes updates done and all.

    Returns:
        The models.
    """
    steps, untrained = objectives[0].steps, before(objectives)
    updates = [*range(every, steps, every), steps]
    rows, state, seconds, done = [measured(untrained, held_out)], None, 0.0, 0
    for i, update in enumerate(updates):
        file = folder / f"{update}.npz"
        if state is None and file.exists() and update != steps:
            rows.append(kept(file))
            continue
        began = time.perf_counter()
        state = train.fit(
            *(objectives, source),
            steps=update,
            report=every,
            checkpoint=folder / "checkpoints",
            every=every,
            scan=min(SCAN, every),
        )
        if not file.exists():
            seconds += time.perf_counter() - began
            done += update - (updates[i - 1] if i else 0)
            row = measured(unbound(state.params), held_out)
            replace_file(file, lambda path, row=row: np.savez(path, **row._asdict()))
        rows.append(kept(file))
        progress(update, steps)
    assert state is not None
    history = Legality(*(np.stack(column) for column in zip(*rows, strict=True)))
    at = np.array([0, *updates], float)
    return Trained(unbound(state.params), untrained, at, history, seconds, done)


def before(objectives: list[Predicts]) -> Transformer:
    """Draws the weights that training starts with."""
    every = jax.tree.map(lambda *leaves: jnp.stack(leaves), *objectives)
    return eqx.filter_jit(jax.vmap(lambda one: one.start(one.key())[0]))(every)


def unbound(stacked: Transformer) -> Transformer:
    """Frees arrays of the device that a checkpoint binds them to.

    With both kinds every program would be compiled twice.
    """
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), stacked)


def kept(file: Path) -> Legality:
    """Reads a measurement."""
    with np.load(file) as found:
        return Legality(**{name: found[name] for name in Legality._fields})


def measured(stacked: Transformer, games: OthelloGames) -> Legality:
    """Measures models of several seeds, `[seed]` each."""
    return jax.tree.map(np.asarray, _measured(stacked, games))


@eqx.filter_jit
def _measured(stacked: Transformer, games: OthelloGames) -> Legality:
    def one(model: Transformer) -> Legality:
        logits = jax.vmap(lambda tokens: model(tokens)[0])(games.tokens[:, :-1])
        return legality(jax.nn.log_softmax(logits), games)

    return jax.lax.map(one, stacked)


def legality(chances: Float[Array, "game move vocab"], games: OthelloGames) -> Legality:
    """Compares predictions with what is legal.

    Args:
        chances: logarithms of the probabilities of all tokens, `pad` the last one, at
            every position but the last.
        games: what was predicted.

    Returns:
        Means over positions that a move follows.
    """
    mask, legal = games.mask[:, :-1], games.legal[:, :-1]
    legal = jnp.pad(legal, ((0, 0), (0, 0), (0, 1)))
    count = jnp.maximum(legal.sum(-1), 1)
    top = jnp.argmax(chances, axis=-1)[..., None]
    found = (
        ~jnp.take_along_axis(legal, top, axis=-1)[..., 0],
        1 - jnp.where(legal, jnp.exp(chances), 0).sum(-1),
        -jnp.where(legal, chances, 0).sum(-1) / count - jnp.log(count),
    )
    return Legality(*((each * mask).sum() / mask.sum() for each in found))


def by_frequency(games: OthelloGames, held_out: OthelloGames) -> Legality:
    """Measures a prediction that knows how often each move comes at each turn alone."""
    vocab = games.legal.shape[-1] + 1
    counts = jax.nn.one_hot(games.tokens[:, 1:], vocab) * games.mask[:, :-1, None]
    counts = counts.sum(0) + 1e-6
    chances = jnp.log(counts / counts.sum(-1, keepdims=True))
    every = jnp.broadcast_to(chances, (len(held_out.tokens), *chances.shape))
    return legality(every, held_out)
