"""Tables of convolutional models whose trees have the names of their files."""

from collections.abc import Callable
from typing import Any

import numpy as np

from mijax.models._family import Rule, Table, leaf_shapes, same

BATCH_NORM = {".mean": ".running_mean", ".variance": ".running_var"}


def mirrored(skeleton: Any, rename: Callable[[str], str] = lambda name: name) -> Table:
    """Return a table with a rule for each leaf of a model.

    Statistics of batch normalization have the names of PyTorch, and biases of
    convolutions one axis in the file.

    Args:
        skeleton: the model with shapes in place of arrays.
        rename: from the path of a leaf to its name in the file.

    Returns:
        The table. Counters of batch normalization are ignored.
    """
    rules = []
    for leaf, array in leaf_shapes(skeleton).items():
        name = leaf
        for ours, theirs in BATCH_NORM.items():
            name = name.removesuffix(ours) + theirs if name.endswith(ours) else name
        column = array.ndim == 3 and array.shape[1:] == (1, 1)
        shape = array.shape[:1] if column else array.shape
        rules.append(Rule(rename(name), shape, {leaf: as_column if column else same}))
    return Table(tuple(rules), ignored=(r".*\.num_batches_tracked",))


def as_column(bias: np.ndarray) -> np.ndarray:
    """Return a bias with the shape that a convolution adds."""
    return bias[:, None, None]
