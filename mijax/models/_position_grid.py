"""Learned positions of a grid of patches, for grids of other sizes."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def resized_positions(
    table: Float[Array, "rows columns embed"],
    rows: int,
    columns: int,
    *,
    antialias: bool,
) -> Float[Array, "row column embed"]:
    """Resize positions by cubic interpolation, as PyTorch does.

    Args:
        table: positions of the grid that the model was trained with.
        rows: rows of the new grid.
        columns: columns of the new grid.
        antialias: True for wider kernels where the grid shrinks; PyTorch has another
            kernel then (`a` is -0.5 instead of -0.75).

    Returns:
        Positions of the new grid.
    """
    if table.shape[:2] == (rows, columns):
        return table
    down, across = (
        _matrix(old, new, antialias)
        for old, new in zip(table.shape[:2], (rows, columns), strict=True)
    )
    tall = jnp.tensordot(jnp.asarray(down), table, axes=1)
    return jnp.einsum("nc,rce->rne", jnp.asarray(across), tall)


def bucketed_positions(
    table: Float[Array, "rows columns embed"], rows: int, columns: int
) -> Float[Array, "row column embed"]:
    """Take the position in whose bucket each patch begins (Idefics3).

    The sides of an image and of the grid of positions are from 0 to 1, compared in
    float32. Where a patch begins at the border of two buckets, it is in the later one,
    up to rounding.

    Args:
        table: positions of the grid that the model was trained with.
        rows: rows of the new grid.
        columns: columns of the new grid.

    Returns:
        Positions of the new grid.
    """
    down, across = (
        _buckets(old, new)
        for old, new in zip(table.shape[:2], (rows, columns), strict=True)
    )
    return table[down][:, across]


def _buckets(old: int, new: int) -> np.ndarray:
    """Return the bucket of each new place."""
    step = np.float32(1) / np.float32(new)
    places = np.minimum(np.arange(new, dtype=np.float32) * step, np.float32(1 - 1e-6))
    # The order in which torch.arange adds and rounds.
    edges = (1 / old + np.arange(old - 1) * (1 / old)).astype(np.float32)
    return np.searchsorted(edges, places, side="right")


def _matrix(old: int, new: int, antialias: bool) -> Float[np.ndarray, "new old"]:
    """Return the weights of old places for each new one."""
    a = -0.5 if antialias else -0.75
    step = old / new
    width = max(step, 1.0) if antialias else 1.0
    centers = (np.arange(new) + 0.5) * step - 0.5
    matrix = np.zeros((new, old))
    reach = int(np.ceil(2 * width)) + 1
    for i, center in enumerate(centers):
        for j in range(
            int(np.floor(center)) - reach, int(np.floor(center)) + reach + 1
        ):
            if antialias and not 0 <= j < old:
                continue
            # Without antialiasing places beyond the border repeat the last one.
            matrix[i, min(max(j, 0), old - 1)] += _cubic(abs(center - j) / width, a)
    return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)


def _cubic(x: float, a: float) -> float:
    """Return the cubic kernel (Keys 1981)."""
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0
