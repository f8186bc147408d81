"""Toy models that are trained once, with their losses on fresh examples."""

import time
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import mijax.experiment
from mijax.features import SparseFeatures, ToyModel, squeeze, toy_losses
from mijax.io import replace_file

FRESH, TESTS = 1_000_000, 16


class Setup(NamedTuple):
    """What is trained.

    Attributes:
        importance: `[instance, feature]`.
        density: `[instance, feature]`.
        embed: into how many numbers.
        steps: updates.
        batch: examples of an update.
    """

    importance: np.ndarray
    density: np.ndarray
    embed: int
    steps: int
    batch: int


class Trained(NamedTuple):
    """Models of several seeds.

    Attributes:
        weights: `[seed, instance, feature, embed]`.
        bias: `[seed, instance, feature]`.
        losses: on fresh examples, `[seed, instance]`.
        seconds: of each seed, that of the first with compilation.
    """

    weights: np.ndarray
    bias: np.ndarray
    losses: np.ndarray
    seconds: np.ndarray


def trained(name: str, setup: Setup, seeds: int, run: mijax.experiment.Run) -> Trained:
    """Trains models of every seed, one after another in one compiled program."""
    found = []
    with run.progress(name) as progress:
        for seed in range(seeds):
            file = run.scratch / f"{name}-{seed}.npz"
            if not file.exists():
                arrays = one(setup, seed)
                replace_file(
                    file, lambda path, a=arrays: np.savez(path, allow_pickle=False, **a)
                )
            with np.load(file) as kept:
                found.append(dict(kept))
            progress(seed + 1, seeds)
    return Trained(**{key: np.stack([row[key] for row in found]) for key in found[0]})


def one(setup: Setup, seed: int) -> dict[str, np.ndarray]:
    """Trains models of one seed."""
    start = time.perf_counter()
    importance, density = (
        jnp.asarray(array, jnp.float32) for array in (setup.importance, setup.density)
    )
    model = squeeze(
        importance,
        density,
        embed=setup.embed,
        steps=setup.steps,
        batch=setup.batch,
        seed=seed,
    )
    jax.block_until_ready(model.weights)
    seconds = time.perf_counter() - start
    # The same examples for all seeds, so that their losses compare.
    source = SparseFeatures(density, batch=setup.batch)
    at = range(FRESH, FRESH + TESTS)
    losses = [score(model, source, np.int32(i), importance) for i in at]
    return {
        "weights": np.asarray(model.weights),
        "bias": np.asarray(model.bias),
        "losses": np.mean(losses, axis=0),
        "seconds": np.asarray(seconds),
    }


@eqx.filter_jit
def score(
    model: ToyModel,
    source: SparseFeatures,
    at: Any,
    importance: Float[Array, "instance feature"],
) -> Float[Array, " instance"]:
    """Returns the losses on one batch."""
    return toy_losses(model, source.batch(at)[1].x, importance)
