"""Training on every pair of a part at once, for as long as it takes to grok."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mijax import train
from mijax.data import AbstractSource, Batch
from mijax.io import replace_file
from mijax.nn import Transformer

from ._model import initial, logits, losses


class Adds(train.AbstractObjective):
    """Addition modulo p (Nanda et al. 2023).

    Attributes:
        p: the modulus (static).
        embed: width of the model (static).
        heads: of its attention (static).
        mlp: its neurons (static).
        seed: of its weights.
        weight_decay: of AdamW.
    """

    p: int = eqx.field(static=True)
    embed: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)
    mlp: int = eqx.field(static=True)
    seed: Any = 0
    weight_decay: Any = 1.0

    def key(self) -> PRNGKeyArray:
        """Returns the key of the seed."""
        return jax.random.key(self.seed)

    def start(self, key: PRNGKeyArray) -> tuple[Any, None]:
        """Draws weights."""
        sizes = {"embed": self.embed, "heads": self.heads, "mlp": self.mlp}
        model = initial(key, self.p, **sizes)
        return eqx.filter(model, eqx.is_array), None

    def loss(
        self, params: Any, memory: None, batch: Any, step: train.Step
    ) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], None]]:
        """Returns the mean loss of the pairs."""
        found = losses(logits(params, batch.x), batch.y)
        return step.mean(found.mean()), ({}, None)

    def optimiser(self) -> optax.GradientTransformation:
        """Returns AdamW as published: a rise over ten updates, decay of all weights."""
        rise = lambda step: 1e-3 * jnp.minimum((step + 1) / 10, 1)  # noqa: E731
        return optax.adamw(rise, b1=0.9, b2=0.98, weight_decay=self.weight_decay)


class Whole(AbstractSource):
    """All pairs of a part, every time.

    Attributes:
        pairs: the numbers a and b.
        answers: their sums modulo p.
    """

    pairs: Int[Array, "pair 2"]
    answers: Int[Array, " pair"]

    def start(self) -> Int[Array, ""]:
        """Returns how many batches have been given: none."""
        return jnp.int32(0)

    def batch(self, state: Int[Array, ""]) -> tuple[Int[Array, ""], Batch]:
        """Returns all pairs."""
        return state + 1, Batch(self.pairs, self.answers)


def every_pair(p: int) -> Int[np.ndarray, "pair 2"]:
    """Lists all pairs of numbers below p, the second one varying first."""
    return np.stack(np.meshgrid(*[np.arange(p)] * 2, indexing="ij"), -1).reshape(-1, 2)


def chosen(p: int, share: float, seed: int) -> Int[np.ndarray, " train"]:
    """Draws which pairs are trained on, as indices of `every_pair`."""
    order = np.random.default_rng(seed).permutation(p * p)
    return np.sort(order[: int(share * p * p)])


def snapshots(
    objectives: list[Adds],
    pairs: Int[np.ndarray, "pair 2"],
    *,
    epochs: int,
    every: int,
    folder: Path,
    progress: Callable[[int, int], None],
) -> list[Path]:
    """Trains models side by side, and keeps their weights on the way.

    Args:
        objectives: one for each seed.
        pairs: what is trained on.
        epochs: updates.
        every: updates between two snapshots.
        folder: where checkpoints and snapshots are; a run goes on from there.
        progress: takes updates done and all.

    Returns:
        Files of all models' weights, after 0, `every`, 2 `every`, ... updates.
    """
    answers = pairs.sum(1) % objectives[0].p
    source = Whole(jnp.asarray(pairs), jnp.asarray(answers))
    files = [folder / f"{at}.npz" for at in range(0, epochs + 1, every)]
    if not files[0].exists():
        begun = [objective.start(objective.key())[0] for objective in objectives]
        keep(jax.tree.map(lambda *leaves: jnp.stack(leaves), *begun), files[0])
    for i, file in enumerate(files[1:], 1):
        if not file.exists():
            state = train.fit(
                *(objectives, source),
                steps=i * every,
                report=every,
                checkpoint=folder / "checkpoints",
                every=every,
                scan=every,
            )
            keep(state.params, file)
        progress(i * every, epochs)
    return files


def keep(params: Any, file: Path) -> None:
    """Writes weights to a file, whole or not at all."""
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    replace_file(file, lambda path: np.savez(path, *arrays))


def restore(file: Path, like: Adds) -> Transformer:
    """Reads the weights of all models, each array with a leading axis."""
    model = like.start(like.key())[0]
    with np.load(file) as kept:
        arrays = [jnp.asarray(kept[name]) for name in kept.files]
    return jax.tree.unflatten(jax.tree.structure(model), arrays)
