"""Subspaces of a hypothesis' variables, at every layer and of every size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import mijax
from mijax import causal, train
from mijax.causal import MLP, Alignment, Counterfactuals, Search, Subspaces

LAYERS = (0, 1, 2)
Tasks = tuple[Counterfactuals, ...]


class Cell(NamedTuple):
    """Where a variable, or two, are looked for.

    Attributes:
        task: index of the hypothesis.
        layer: counted from 0.
        sizes: dimensions of each variable; 0 where there is no second one.
    """

    task: int
    layer: int
    sizes: tuple[int, int]

    @property
    def site(self) -> mijax.Site:
        """Returns the hidden layer."""
        return mijax.Site("mlp_post", layer=self.layer, position=0)


def cells(width: int, shares: tuple[int, ...], variables: list[int]) -> list[Cell]:
    """Lists hypotheses, layers and sizes.

    Args:
        width: of the layers.
        shares: sizes, as what the width is divided by.
        variables: of each hypothesis.

    Returns:
        Every combination.
    """
    return [
        Cell(task, layer, (width // share, width // share if count == 2 else 0))
        for task, count in enumerate(variables)
        for layer in LAYERS
        for share in shares
    ]


def rotations(
    models: list[MLP],
    where: list[Cell],
    source: causal.Drawn,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    sink: train.AbstractSink,
) -> Alignment:
    """Fits a rotation for every model and cell, all in one program."""
    searches = [Search(causal.DAS(c.sizes), c.site, c.task) for c in where]
    return causal.align(
        *(models, searches, source),
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
        sinks=[sink],
        report=max(1, steps // 40),
    )


def learned_sizes(
    models: list[MLP],
    where: list[Cell],
    source: causal.Drawn,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
) -> dict[str, Alignment]:
    """Fits rotations with boundaries, and masks on neurons."""
    kinds = {"boundless DAS": causal.BoundlessDAS, "DBM": causal.DBM}
    found = {}
    for name, kind in kinds.items():
        searches = [
            Search(kind([size > 0 for size in c.sizes]), c.site, c.task) for c in where
        ]
        found[name] = causal.align(
            *(models, searches, source),
            steps=steps,
            learning_rate=learning_rate,
            seed=seed,
        )
    return found


def brute_force(
    models: list[MLP], where: list[Cell], held_out: Tasks, test: Tasks
) -> Float[np.ndarray, "model cell"]:
    """Measures every block of neurons; the best one is that of held-out examples.

    Args:
        models: perceptrons.
        where: the cells.
        held_out: examples to choose by.
        test: examples to measure the chosen ones on.

    Returns:
        Accuracy of the best blocks.
    """
    width = models[0].weights[0].shape[1]
    of_sizes = {c.sizes: causal.blocks(width, c.sizes) for c in where}
    many = [of_sizes[c.sizes] for c in where]
    counts = [len(one.mask) for one in many]
    spaces = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *many)
    sites = [c.site for c, n in zip(where, counts, strict=True) for _ in range(n)]
    tasks = [c.task for c, n in zip(where, counts, strict=True) for _ in range(n)]
    every = causal.stated(spaces, sites, tasks)
    score = np.asarray(causal.agreement(models, every, held_out)).mean(-1)
    ends = np.cumsum(counts)
    best = [
        end - n + score[:, end - n : end].argmax(-1)
        for end, n in zip(ends, counts, strict=True)
    ]
    chosen = Subspaces(spaces.basis[np.stack(best, 1)], spaces.mask[np.stack(best, 1)])
    return measured(models, placed(chosen, where), test)


def closest(
    models: list[MLP], where: list[Cell], found: Alignment, test: Tasks
) -> Float[np.ndarray, "model cell"]:
    """Measures the neurons that the rotations are closest to."""
    plain = causal.closest_neurons(found.subspaces)
    return measured(models, placed(plain, where), test)


def measured(
    models: list[MLP], alignment: Alignment, test: Tasks
) -> Float[np.ndarray, "model cell"]:
    """Returns interchange-intervention accuracy."""
    return np.asarray(causal.agreement(models, alignment, test)).mean(-1)


def placed(subspaces: Subspaces, where: list[Cell]) -> Alignment:
    """Puts the subspaces of every model at the cells."""
    return causal.stated(subspaces, [c.site for c in where], [c.task for c in where])
