"""Activations whose features are known."""

import itertools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from mijax.data import AbstractSource, Examples
from mijax.features import squeeze
from mijax.testing import Compiled, PlantedFeatures, tracr, unit_directions

LONG = 0.5
FRESH = 16
SAME = 0.999
SMALL = 1e-4
PROGRAMS = ("reverse", "xproportion")
DATASETS = ("synthetic", "superposition", *PROGRAMS)


class Known(NamedTuple):
    """A data set.

    Attributes:
        source: what dictionaries are trained on.
        score: by directions, "MMCS", or by how much of each feature is there, "MCC".
        features: the known directions, `[feature, embed]`.
        x: activations to score with, `[example, embed]`.
        activity: how much of each feature is in them, `[example, feature]`.
        latents: of the dictionaries.
        k: features that are there on average.
    """

    source: AbstractSource
    score: str
    features: jax.Array
    x: jax.Array
    activity: jax.Array
    latents: int
    k: int


def planted(name: str, config: Any) -> Known:
    """Returns random directions or those of a toy model, and sums of them."""
    if name == "synthetic":
        key = jax.random.key(0)
        features: Any = unit_directions(key, config.features, config.embed)
    else:
        shape = (1, config.features)
        model = squeeze(
            *(jnp.ones(shape), jnp.full(shape, config.density)),
            embed=config.embed,
            steps=config.toy_steps,
            batch=config.batch,
        )
        features = model.weights[0]
        features = features[np.linalg.norm(features, axis=1) > LONG]
    source = PlantedFeatures(
        features, batch=config.batch, density=config.density, low=0.0, seed=1
    )
    # By batches that no training has seen.
    states = [jnp.int32(1_000_000 + i) for i in range(FRESH)]
    return Known(
        source,
        "MMCS",
        source.features,
        jnp.concatenate([source.batch(state)[1].x for state in states]),
        jnp.concatenate([source.coefficients(state) for state in states]),
        config.latents,
        max(1, round(config.features * config.density)),
    )


def compiled(name: str, config: Any) -> Known:
    """Returns the last residual stream of a compiled program, turned at random.

    Features are values of the program's variables. One that never changes is none;
    those that are always there together are one. Places in inputs of every length are
    as frequent, and so are the inputs of a length.
    """
    program = tracr(name)
    stream = residual(program, config.examples)
    groups = together(stream)
    sums = np.zeros((len(groups), stream.shape[1]), np.float32)
    for row, group in zip(sums, groups, strict=True):
        first = stream[:, group[0]]
        row[group] = stream[:, group].T @ first / (first @ first)
    activity = stream[:, [group[0] for group in groups]]
    # Axes of the stream are the features: turned, no axis tells what they are.
    key = jax.random.key(0)
    turn = jnp.linalg.qr(jax.random.normal(key, (stream.shape[1],) * 2))[0]
    x = jnp.asarray(stream) @ turn
    return Known(
        Examples(x, batch=config.batch, seed=1),
        "MCC",
        jnp.asarray(sums) @ turn,
        x,
        jnp.asarray(activity),
        3 * len(groups) // 2,
        round((activity > SMALL).sum(1).mean()),
    )


@eqx.filter_jit
def final(model: Any, tokens: jax.Array) -> jax.Array:
    """Runs a compiled model up to its last residual stream."""
    return jax.vmap(lambda row: model(row)[1].blocks.resid_post[-1])(tokens)


def residual(program: Compiled, examples: int) -> np.ndarray:
    """Returns activations of as many inputs of every length, `[example, embed]`."""
    rng, rows = np.random.default_rng(0), []
    for length, inputs in itertools.groupby(program.inputs(), len):
        tokens = np.stack([np.asarray(program.encode(one)) for one in inputs])
        acts = np.asarray(final(program.model, jnp.asarray(tokens)))
        count = -(-examples // (program.max_seq_len * (length + 1)))
        rows.append(acts[rng.integers(0, len(acts), count)].reshape(-1, acts.shape[-1]))
    return np.concatenate(rows)


def together(stream: np.ndarray) -> list[list[int]]:
    """Groups the directions that vary by those that always vary together."""
    alive = [i for i in range(stream.shape[1]) if stream[:, i].std() > SMALL]
    alike = np.corrcoef(stream[:, alive].T)
    groups: list[list[int]] = []
    for i, row in enumerate(alike):
        same = [alive[j] for j in range(i, len(alive)) if row[j] > SAME]
        if not any(same[0] in group for group in groups):
            groups.append(same)
    return groups
