"""Which models are trained: those of the paper's notebook, and its phase diagrams."""

import numpy as np

from ._training import Setup


def densities(instances: int, least: float = 0.05) -> np.ndarray:
    """Returns chances from 1 down to the least, `[instance]`."""
    return least ** np.linspace(0, 1, instances)


def intro(instances: int, *, steps: int, batch: int) -> Setup:
    """Five features in two dimensions, of falling importance."""
    importance = np.tile(0.9 ** np.arange(5), (instances, 1))
    density = np.tile(densities(instances)[:, None], (1, 5))
    return Setup(importance, density, 2, steps, batch)


def many(instances: int, features: int, embed: int, *, steps: int, batch: int) -> Setup:
    """Many features, the first a hundred times as important as the last."""
    importance = np.tile(100.0 ** -np.linspace(0, 1, features), (instances, 1))
    density = np.tile(densities(instances)[:, None], (1, features))
    return Setup(importance, density, embed, steps, batch)


def uniform(
    instances: int, features: int, embed: int, *, steps: int, batch: int
) -> Setup:
    """Many features of equal importance, whose geometry shows."""
    density = np.tile(densities(instances)[:, None], (1, features))
    return Setup(np.ones_like(density), density, embed, steps, batch)


def phases(cells: int, embed: int, *, steps: int, batch: int) -> Setup:
    """One feature more than there are dimensions, a model for each cell.

    Cells are those of a square, `[density, importance]` flattened: densities from 1 to
    0.01, importances of the last feature from 0.1 to 10.
    """
    p, extra = np.meshgrid(*axes(cells), indexing="ij")
    density = np.tile(p.reshape(-1, 1), (1, embed + 1))
    importance = np.ones_like(density)
    importance[:, -1] = extra.ravel()
    return Setup(importance, density, embed, steps, batch)


def axes(cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns densities and relative importances of a phase diagram."""
    return np.logspace(0, -2, cells), np.logspace(-1, 1, cells)
