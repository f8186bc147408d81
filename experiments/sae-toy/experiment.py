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
represents (a row of W longer than 0.5).

`reverse` and `xproportion` are transformers compiled from programs (Lindner et al.
2023, arXiv:2301.05062): features are the values of a program's variables in the last
residual stream. Variables follow from each other there, and the values of each exclude
each other, so directions are not defined (a constant may move from all values of a
variable to the bias) and the mean over features of the largest correlation with a
latent (MCC) tells what was found.

Every architecture is trained with several
seeds at once, as lanes of one program, with half as many latents again as there are
features; its sparsity is the only number chosen for each architecture, and the groups
of Matryoshka. Scores of toy data are of batches that no dictionary has seen; programs
have few inputs, and scores are of those that were trained on. Ranges are those of the
seeds.

Command:
    mijax run sae-toy
    mijax run sae-toy/compiled      (the two programs)
    mijax run sae-toy/tiny          (fewer features and steps)

Runtime: see experiments/README.md.
"""

import jax.numpy as jnp
import numpy as np

import mijax.experiment
from mijax import dictionaries as d
from mijax import viz
from mijax._errors import ConfigError, nearest

from ._known import DATASETS, PROGRAMS, Known, compiled, planted
from ._scoring import BASELINES, Row, baselines, keep, scored


class Config(mijax.experiment.Config):
    """What is trained."""

    datasets: tuple[str, ...] = ("synthetic", "superposition")
    "Known features: drawn at random, of a toy model, of compiled programs."
    architectures: tuple[str, ...] = (
        *("ReLU", "ReLU, tanh", "ReLU, sqrt", "Gated", "JumpReLU"),
        *("TopK", "BatchTopK", "Matryoshka"),
    )
    "Which are trained."
    features: int = 64
    "How many there are."
    latents: int = 96
    "Latents of every dictionary; for programs, half as many again as features."
    embed: int = 32
    "Numbers that they are squeezed into."
    density: float = 0.03
    "Chance that a feature is there."
    steps: int = 4000
    "Updates of every dictionary."
    toy_steps: int = 10_000
    "Updates of the toy model."
    examples: int = 16_000
    "Activations of a compiled program."
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
    for name in config.architectures:
        if name not in (every := architectures(1)):
            raise ConfigError(f"No architecture {name!r}.{nearest(name, every)}")
    for name in config.datasets:
        if name not in DATASETS:
            raise ConfigError(f"No data set {name!r}.{nearest(name, DATASETS)}")
    found: dict[str, dict[str, Row]] = {}
    with run.progress("train") as progress:
        total = len(config.datasets) * len(config.architectures)
        for name in config.datasets:
            known = (compiled if name in PROGRAMS else planted)(name, config)
            run.seed(name, 1)
            rows = found.setdefault(name, {})
            for kind in config.architectures:
                file = run.scratch / f"{name}-{kind}.npz"
                if not file.exists():
                    architecture = architectures(known.k)[kind]
                    keep(scored(trained(architecture, known, config), known), file)
                with np.load(file) as kept:
                    rows[kind] = Row(**kept)
                progress(sum(map(len, found.values())), total)
            rows |= baselines(known, seeds=config.seeds)
    report(found, run)


def trained(
    architecture: d.AbstractArchitecture, known: Known, config: Config
) -> list[d.Dictionary]:
    """Trains one architecture with every seed at once."""
    given = [
        d.Training(
            *(architecture, d.SAE(known.x.shape[1])),
            latents=known.latents,
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
    return d.train(given, known.source, report=config.steps)


def report(found: dict[str, dict[str, Row]], run: mijax.experiment.Run) -> None:
    """Reports a table for each data set, the numbers that must hold, a picture."""
    for name, rows in found.items():
        score = "MCC" if name in PROGRAMS else "MMCS"
        columns = ["architecture", score, "of seeds", "found", "FVU", "L0", "dead"]
        run.table(name, columns, [[kind, *row.cells()] for kind, row in rows.items()])
        scores, score = {kind: row.score for kind, row in rows.items()}, score.lower()
        learned = {k: of for k, of in scores.items() if k not in BASELINES}
        # Unlike min, it keeps a NaN.
        least = np.min([of.min() for of in learned.values()])
        run.number(f"{name}_least_{score}", float(least), note="of all seeds")
        random = float(scores["random"].mean())
        run.number(f"{name}_random_{score}", random, note="of dictionaries not trained")
        best = max(learned, key=lambda kind: learned[kind].mean())
        seeds = mijax.interval(jnp.asarray(learned[best]), method="range")
        run.number(f"{name}_best_{score}", seeds, note=best)
        if name in PROGRAMS:
            run.number(f"{name}_above_random", float(least - scores["random"].max()))
        run.figure(
            f"{score}-{name}",
            viz.bars(
                np.array([of.mean() for of in scores.values()]),
                labels=list(rows),
                low=np.array([of.min() for of in scores.values()]),
                high=np.array([of.max() for of in scores.values()]),
                title=f"Known features that dictionaries find: {name}",
                y="Mean max " + ("correlation" if name in PROGRAMS else "cosine"),
            ),
            caption="Bars: mean of the seeds; lines: their range.",
        )
