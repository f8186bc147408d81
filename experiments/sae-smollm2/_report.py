"""Tables, numbers and pictures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import mijax.experiment
from mijax import viz

from ._scoring import COLUMNS, Score
from ._training import Choice, middle

QUANTITIES = ("fvu", "l0", "dead")
RIVALS = ("random", "PCA")


def tables(scores: Mapping[Choice, Mapping[str, Score]], run: Any) -> None:
    """Reports a table of each dictionary, with its rivals beside it."""
    for choice, found in scores.items():
        rows: list[list[Any]] = [
            [name, *(score.numbers[name] for score in found.values())]
            for name in COLUMNS
        ]
        for name in ("dead", "dense"):
            # Two latents stand for one component: their density says nothing.
            cells = [None if n == "PCA" else getattr(s, name) for n, s in found.items()]
            rows.append([name, *cells])
        run.table(choice.label, ["", *found], rows)


def numbers(
    scores: Mapping[Choice, Mapping[str, Score]], run: mijax.experiment.Run
) -> None:
    """Reports the numbers of each dictionary, and the least gain of each kind."""
    gains: dict[tuple[str, str], list[float]] = {}
    for choice, found in scores.items():
        score = found["trained"]
        run.number(f"l0_{choice.name}", score.l0)
        run.number(f"fvu_{choice.name}", score.fvu)
        nmse = score.numbers["NMSE"]
        run.number(f"nmse_{choice.name}", nmse, note="relative to zero")
        share = score.numbers["CE share, mean"]
        run.number(f"ce_{choice.name}", share, note="recovered of mean ablation")
        for rival in RIVALS:
            gain = 1 - score.fvu.mean / found[rival].fvu.mean
            gains.setdefault((rival, choice.kind), []).append(gain)
    for (rival, kind), values in gains.items():
        note = f"least share of FVU saved against {rival} with as many active latents"
        # Unlike min, it keeps a NaN.
        run.number(f"gain_over_{rival}_{kind}", np.min(values), note=note)


def curves(file: Path, choices: list[Choice], run: mijax.experiment.Run) -> None:
    """Draws how error and sparsity changed in training."""
    records = [json.loads(line) for line in file.read_text().splitlines()]
    runs = {
        choice.label: [
            {"step": record["step"]}
            | {name: record[f"{choice.name}/{name}"] for name in QUANTITIES}
            for record in records
        ]
        for choice in choices
    }
    picture = viz.training_curves(
        runs, quantities=QUANTITIES, log=["fvu", "l0"], title="Training"
    )
    run.figure("training", picture, caption="All dictionaries see the same batches.")


def pareto(
    scores: Mapping[Choice, Mapping[str, Score]], run: mijax.experiment.Run
) -> None:
    """Draws error against sparsity, with the rivals."""
    points: dict[str, list[Score]] = {}
    for choice, found in scores.items():
        label = f"{choice.kind} {choice.latents:,}"
        points.setdefault(label, []).append(found["trained"])
    for rival in RIVALS:
        points[rival] = [found[rival] for found in scores.values()]
    series = {}
    for label, several in points.items():
        active = [score for score in several if score.l0.mean > 0]
        if active:
            ends = [(s.l0.mean, s.fvu.mean, s.fvu.low, s.fvu.high) for s in active]
            series[label] = tuple(np.array(ends).T)
    if series:
        run.figure(
            "pareto",
            viz.pareto(series, title="Error and sparsity on held-out text"),
            caption="Random directions and principal components have as many active "
            "latents as the dictionaries.",
        )


def densities(
    scores: Mapping[Choice, Mapping[str, Score]], run: mijax.experiment.Run
) -> None:
    """Draws how often latents are active, for one dictionary of each kind."""
    chosen = dict.fromkeys(middle(list(scores), choice.kind) for choice in scores)
    found = {choice.label: scores[choice]["trained"].density for choice in chosen}
    run.figure(
        "density",
        viz.density_histogram(found, title="How often latents are active"),
        caption="Of each kind the largest dictionary with a sparsity in the middle.",
    )
