"""Dictionaries of every architecture on activations whose features are known.

Papers: Elhage et al. 2022, "Toy Models of Superposition",
https://transformer-circuits.pub/2022/toy_model; Sharkey, Braun and Millidge 2022,
"Taking features out of superposition with sparse autoencoders", for recovering known
features and the score of it, the mean over features of the largest cosine with a
latent (MMCS).

Claim: on sums of a few known directions, more than there are dimensions, sparse
autoencoders find the directions: MMCS of 0.95 and more, where a dictionary that was not
trained stays far below. There is no published number for these two data sets; 0.95 is
the usual bar.

`synthetic` draws directions at random; `superposition` takes them from a toy model that
was trained to squeeze features into fewer numbers, where only those count that it
represents (a row of W longer than 0.5). Every architecture is trained with several
seeds at once, as lanes of one program, with half as many latents again as there are
features; its sparsity is the only number chosen for each architecture, and the groups
of Matryoshka. Error and L0 are
of fresh examples, by batches that no dictionary has seen. The range is that of the
seeds.

Command:
    mijax run sae-toy
    mijax run sae-toy/tiny          (fewer features and steps)

Runtime: see experiments/README.md.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mijax.experiment
from mijax import dictionaries as d
from mijax import viz
from mijax._errors import ConfigError, nearest
from mijax.data import AbstractSource
from mijax.features import squeeze
from mijax.testing import PlantedFeatures, unit_directions

from ._scoring import BASELINES, Row, baselines, keep, scored

LONG = 0.5


class Config(mijax.experiment.Config):
    """What is trained."""

    datasets: tuple[str, ...] = ("synthetic", "superposition")
    "Known features: drawn at random, or those of a toy model."
    architectures: tuple[str, ...] = (
        *("ReLU", "ReLU, tanh", "ReLU, sqrt", "Gated", "JumpReLU"),
        *("TopK", "BatchTopK", "Matryoshka"),
    )
    "Which are trained."
    features: int = 64
    "How many there are."
    latents: int = 96
    "Latents of every dictionary."
    embed: int = 32
    "Numbers that they are squeezed into."
    density: float = 0.03
    "Chance that a feature is there."
    steps: int = 4000
    "Updates of every dictionary."
    toy_steps: int = 10_000
    "Updates of the toy model."
    batch: int = 1024
    "Examples of an update."
    seeds: int = 3
    "Dictionaries of each architecture."
    learning_rate: float = 3e-3
    "Of Adam, at its peak."


def architectures(k: int) -> dict[str, d.AbstractArchitecture]:
    """Returns every architecture; those that keep k keep what there is on average."""
    return {
        "ReLU": d.ReLU(0.2),
        "ReLU, tanh": d.ReLU(0.2, penalty="tanh"),
        "ReLU, sqrt": d.ReLU(0.05, penalty="sqrt"),
        "Gated": d.Gated(0.4),
        "JumpReLU": d.JumpReLU(0.06, threshold=0.05, bandwidth=0.1),
        "TopK": d.TopK(k),
        "BatchTopK": d.BatchTopK(k),
        # The first group restores alone: it has more latents than there are features.
        "Matryoshka": d.Matryoshka((5 / 6, 1 / 6), k=k),
    }


def run(config: Config, run: mijax.experiment.Run) -> None:
    """Trains and scores everything."""
    k = max(1, round(config.features * config.density))
    every = architectures(k)
    for name in config.architectures:
        if name not in every:
            raise ConfigError(f"No architecture {name!r}.{nearest(name, every)}")
    kinds = {name: every[name] for name in config.architectures}
    found: dict[str, dict[str, Row]] = {}
    with run.progress("train") as progress:
        total = len(config.datasets) * len(kinds)
        for name in config.datasets:
            source = planted(name, config)
            run.seed(name, source.seed)
            rows = found.setdefault(name, {})
            for kind, architecture in kinds.items():
                file = run.scratch / f"{name}-{kind}.npz"
                if not file.exists():
                    keep(scored(trained(architecture, source, config), source), file)
                with np.load(file) as kept:
                    rows[kind] = Row(**kept)
                progress(sum(map(len, found.values())), total)
            rows |= baselines(source, config.latents, k=k, seeds=config.seeds)
    report(found, run)


def planted(name: str, config: Config) -> PlantedFeatures:
    """Returns activations of known features."""
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
        lengths = np.linalg.norm(features, axis=1)
        features = features[lengths > LONG]
    return PlantedFeatures(
        features, batch=config.batch, density=config.density, low=0.0, seed=1
    )


def trained(
    architecture: d.AbstractArchitecture, source: AbstractSource, config: Config
) -> list[d.Dictionary]:
    """Trains one architecture with every seed at once."""
    given = [
        d.Training(
            *(architecture, d.SAE(config.embed)),
            latents=config.latents,
            steps=config.steps,
            learning_rate=config.learning_rate,
            warmup=config.steps // 20,
            decay=config.steps // 4,
            sparsity_warmup=config.steps // 20,
            unit_norm=True,
            dead_after=50 * config.batch,
            resample=config.steps // 8,
            seed=seed,
        )
        for seed in range(config.seeds)
    ]
    return d.train(given, source, report=config.steps)


def report(found: dict[str, dict[str, Row]], run: mijax.experiment.Run) -> None:
    """Reports a table for each data set, the numbers that must hold, a picture."""
    for name, rows in found.items():
        columns = ["architecture", "MMCS", "of seeds", "found", "FVU", "L0", "dead"]
        run.table(name, columns, [[kind, *row.cells()] for kind, row in rows.items()])
        learned = {kind: row for kind, row in rows.items() if kind not in BASELINES}
        least = min(row.mmcs.min() for row in learned.values())
        run.number(f"{name}_least_mmcs", float(least), note="of all seeds")
        random = float(rows["random"].mmcs.mean())
        run.number(f"{name}_random_mmcs", random, note="of dictionaries not trained")
        run.figure(
            f"mmcs-{name}",
            viz.bars(
                np.array([row.mmcs.mean() for row in rows.values()]),
                labels=list(rows),
                low=np.array([row.mmcs.min() for row in rows.values()]),
                high=np.array([row.mmcs.max() for row in rows.values()]),
                title=f"Known features that dictionaries find: {name}",
                y="mean max cosine",
            ),
            caption="Bars: mean of the seeds; lines: their range.",
        )
